"""Dense prediction as pictures: four tasks on one scene, whose answers are pictures that can be read back."""

import itertools

import torch
from torch import Tensor

from mtdiff.datasets.base import one_of
from mtdiff.datasets.shapes import SHAPES, palette, render, shapes
from mtdiff.degradations import Blur

TASKS = ("depth", "segmentation", "instances", "restoration")
"""What can be asked of a picture."""
OBJECTS = 3
"""The most objects of a scene."""
CLASSES = (0, *(1 + shape for _ in range(OBJECTS) for shape in range(len(SHAPES))))
"""The class of each id of an instance map: 0 is the background, 1 + 3 k + c the k-th object from the left, of shape c."""
BLUR, NOISE = 1.0, 0.2
"""What a picture to be restored went through: a Gaussian blur in pixels, then white noise in units of [-1, 1]."""


def colour_code(k: int) -> Tensor:
    """Colours (k, 3) in [-1, 1]: the simplex of `palette`, the cube's other corners, its centre, its faces, its edges.

    Up to 4 are sqrt(8) apart at least, up to 8 are 2, and up to 27 are 1. ValueError for k outside 2..27.
    """
    if not 2 <= k <= 27:
        raise ValueError(f"k must be in 2..27, got {k}")
    simplex = palette(torch.arange(4).reshape(4, 1, 1)).flatten(1)
    grid = torch.tensor(list(itertools.product((1.0, -1.0, 0.0), repeat=3)))
    new = grid[~(grid[:, None] == simplex).all(2).any(1)]
    size = new.square().sum(1)  # 3 for corners, 0 for the centre, 1 for faces, 2 for edges
    rank = torch.tensor([1, 2, 3, 0])[size.long()]
    return torch.cat([simplex, new[rank.argsort(stable=True)]])[:k]


def coloured(ids: Tensor, k: int) -> Tensor:
    """Ids (N, H, W) of 0..k-1 as a picture (N, 3, H, W) by `colour_code`; ValueError for another id."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < k:
        raise ValueError(f"ids must be in 0..{k - 1}, got {int(ids.min())}..{int(ids.max())}")
    return colour_code(k).to(ids.device)[ids.long()].movedim(-1, 1).contiguous()


def ids_of(picture: Tensor, k: int) -> Tensor:
    """The ids (N, H, W) whose colours are nearest to a picture (N, 3, H, W), pixel by pixel."""
    colours = colour_code(k).to(picture)
    aligned = torch.einsum("kc,nchw->nkhw", colours, picture) - colours.square().sum(1)[:, None, None] / 2
    return aligned.argmax(1)  # |p - c|^2 = |p|^2 - 2 (p c - |c|^2 / 2)


def distance(picture: Tensor) -> Tensor:
    """Distance (N, H, W) that a grey picture (N, 3, H, W) says: 1 (near) to 5 (background), 3 + 2 x of its mean channel x.

    A picture is read as far as it goes: beyond black or white is black or white.
    """
    return 3 + 2 * picture.mean(1).clamp(-1, 1)


def degraded(image: Tensor, seed: int = 0) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] after a `Blur`, and `NOISE` of a seed, saturated at black and white."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (Blur(BLUR)(image) + NOISE * noise.to(image)).clamp(-1, 1)


def answer(task: str, scenes: dict[str, Tensor]) -> Tensor:
    """What a task wants of scenes with "image", "depth", "segmentation" and "masks": (N, 3, s, s) in [-1, 1]."""
    one_of("task", task, TASKS)
    if task == "depth":
        return scenes["depth"].expand(-1, 3, -1, -1)
    if task == "segmentation":
        return palette(scenes["segmentation"])
    if task == "instances":
        return coloured(instance_ids(scenes["segmentation"], scenes["masks"]), len(CLASSES))
    return scenes["image"]


def instance_ids(segmentation: Tensor, masks: Tensor) -> Tensor:
    """Which object, and of which class, is seen at each pixel: ids (N, s, s) of `CLASSES`.

    Of a segmentation (N, s, s) and masks (N, 3, s, s) bool of the objects, left to right.
    """
    order = (masks * torch.arange(OBJECTS, device=masks.device)[:, None, None]).sum(1)
    return torch.where(segmentation > 0, len(SHAPES) * order + segmentation, 0)


def class_maps(split: str, k: int, n: int, size: int = 16, seed: int = 0) -> Tensor:
    """Maps of k classes (n, s, s): of each scene the background and every object have a class that the seed draws.

    They are different ones as far as k goes. `coloured` makes pictures of them.
    """
    scenes, generator = shapes(split, size, n, modalities=("masks",)), torch.Generator().manual_seed(seed)
    masks = scenes.values["masks"]
    region = (masks * torch.arange(1, OBJECTS + 1)[:, None, None]).sum(1)  # (n, s, s), 0 is the background
    order = torch.rand(n, max(k, OBJECTS + 1), generator=generator).argsort(1)[:, : OBJECTS + 1] % k
    return order.gather(1, region.flatten(1)).view_as(region)


def tasks(index: Tensor, size: int, seed: int = 0) -> dict[str, Tensor]:
    """All tasks on scenes of N given indices (see `render`): row i asks task i modulo 4 of scene i // 4.

    Values "image" (4 N, 3, s, s), what is given, `degraded` by this seed where it is to be restored; "task" (4 N,), ids of
    `TASKS`; and "target" (4 N, 3, s, s), the `answer`.
    """
    scenes = render(index, size, modalities=("image", "depth", "segmentation", "masks"))
    shown = [degraded(scenes["image"], seed) if task == "restoration" else scenes["image"] for task in TASKS]
    image, target = (torch.stack(each, 1).flatten(0, 1) for each in (shown, [answer(task, scenes) for task in TASKS]))
    return {"image": image, "task": torch.arange(len(image)) % len(TASKS), "target": target}
