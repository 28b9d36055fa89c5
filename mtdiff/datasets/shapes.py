"""The shapes world: scenes of one to three objects, of which every modality is known perfectly."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtdiff.datasets.base import Dataset

SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 0.15, "large": 0.23}
COLOURS = {
    "red": (0.88, 0.12, 0.14),
    "green": (0.10, 0.62, 0.22),
    "blue": (0.12, 0.28, 0.90),
    "yellow": (0.97, 0.85, 0.10),
    "purple": (0.58, 0.16, 0.72),
    "cyan": (0.10, 0.80, 0.85),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.94),
    "grey": (0.58, 0.58, 0.60),
    "sand": (0.87, 0.74, 0.55),
    "black": (0.08, 0.08, 0.10),
}
VOCABULARY = ("", *BACKGROUNDS, *SIZES, *COLOURS, *SHAPES)
"""Words of captions; entry 0 is padding."""
MODALITIES = ("image", "night", "segmentation", "masks", "depth", "sketch", "label", "caption")
OBJECTS = 3
"""Most objects of a scene."""
LENGTH = 1 + 3 * OBJECTS
"""Tokens of a caption: the background, then size, colour and shape of each object from left to right."""
TEST = 10**9
"""Index of the first scene to test on."""
_PALETTE = torch.tensor([[-0.9, -0.9, -0.9], [0.9, -0.2, -0.6], [-0.6, 0.7, -0.2], [-0.2, 0.1, 0.95]])


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Attributes:
        background: its name.
        objects: (size, colour, shape) of each object, left to right.
    """

    background: str
    objects: tuple[tuple[str, str, str], ...]


def shapes(
    split: str = "train",
    size: int = 16,
    n: int | None = None,
    seed: int = 0,
    modalities: Collection[str] | None = None,
) -> Dataset:
    """Scenes of objects on a plain background. Scene i is the same for every n, and at every size.

    Each object has a shape, a colour, one of two sizes, a place and a depth; the distant ones fade a little towards the
    background. Edges are smooth: the coverage of a pixel is clamp(1/2 - signed distance in pixels).

    Args:
        split: "train" (scenes 0, 1, ...) or "test" (other scenes).
        size: height and width in pixels, a multiple of 8, at least 16.
        n: number of scenes; None: 10000 to train on, 2000 to test on.
        seed: another seed gives another world of scenes.
        modalities: names to keep, which saves memory; None: all.

    Returns:
        The data set; `names` are those of the label. Its values, N scenes of s x s pixels:
        "image" (N, 3, s, s) in [-1, 1], with 256 levels; "night" (N, 3, s, s): the same under a lamp, with a glow;
        "segmentation" (N, s, s) int64: 0 background, else 1 + shape; "masks" (N, 3, s, s) bool: what is seen of each object,
        left to right; "depth" (N, 1, s, s) in [-1, 1], 1 is far; "sketch" (N, 1, s, s) in [-1, 1]: outlines, 1 on -1;
        "label" (N,) int64: colour and shape of the nearest object; "caption" (N, 10) int64: see `words`.

    Raises:
        ValueError: an unknown split or modality, or size or n out of range.

    Source: ours.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    if size < 16 or size % 8:
        raise ValueError(f"size must be a multiple of 8, at least 16, got {size}")
    n = {"train": 10000, "test": 2000}[split] if n is None else n
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    wanted = MODALITIES if modalities is None else tuple(modalities)
    unknown = [name for name in wanted if name not in MODALITIES]
    if unknown or not wanted:
        raise ValueError(f"modalities must be among {MODALITIES}, got {wanted}")
    first, chunk = TEST if split == "test" else 0, max(1, 2**18 // size**2)
    parts = []
    for start in range(0, n, chunk):
        index = np.arange(first + start, first + min(start + chunk, n), dtype=np.uint64)
        drawn = _render(_parameters(index, seed), size)
        parts.append({name: drawn[name] for name in wanted})
    values = {name: torch.cat([part[name] for part in parts]) for name in wanted}
    names = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
    return Dataset(f"shapes{size}/{split}", values, names)


def words(tokens: Tensor) -> list[str]:
    """Captions as text, such as "grey small red circle large blue square".

    Args:
        tokens: (N, 10) int64.

    Returns:
        N texts.
    """
    return [" ".join(VOCABULARY[k] for k in row if k) for row in tokens.tolist()]


def parse(text: str) -> Scene:
    """The scene that a caption describes.

    Args:
        text: as from `words`.

    Returns:
        The scene.

    Raises:
        ValueError: a caption that is not well formed: a background, then one to three times size, colour and shape.
    """
    background, *rest = text.split() or [""]
    objects = tuple(zip(rest[0::3], rest[1::3], rest[2::3], strict=False))
    known = background in BACKGROUNDS and all(a in SIZES and b in COLOURS and c in SHAPES for a, b, c in objects)
    if not known or len(rest) % 3 or not 1 <= len(objects) <= OBJECTS:
        raise ValueError(
            f"not a caption: {text!r}; expected a background, then size, colour and shape of 1 to {OBJECTS} objects"
        )
    return Scene(background, objects)


def palette(segmentation: Tensor) -> Tensor:
    """A segmentation as a picture: a colour for each class.

    Args:
        segmentation: (N, H, W) int64 in 0..3.

    Returns:
        (N, 3, H, W) in [-1, 1].
    """
    return _PALETTE[segmentation].movedim(-1, 1).contiguous()


def unpalette(picture: Tensor) -> Tensor:
    """The class of the nearest palette colour at each pixel.

    Args:
        picture: (N, 3, H, W).

    Returns:
        (N, H, W) int64.
    """
    return torch.cdist(picture.movedim(1, -1).flatten(1, 2), _PALETTE.to(picture)).argmin(-1).unflatten(1, picture.shape[2:])


def _uniform(index: np.ndarray, field: int, seed: int) -> Tensor:
    """One number in [0, 1) for each index: a counter-based generator (splitmix64), so that scene i needs no other scene."""
    with np.errstate(over="ignore"):
        x = index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03) * np.uint64(1 + field + 1000 * seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) / 2.0**53)


def _parameters(index: np.ndarray, seed: int) -> dict[str, Tensor]:
    """What scenes are made of: (N,) or, object by object from left to right, (N, 3)."""

    def pick(field: int, k: int) -> Tensor:
        return (_uniform(index, field, seed) * k).long()

    def each(field: int) -> Tensor:
        return torch.stack([_uniform(index, field + k, seed) for k in range(OBJECTS)], 1)

    count, slot = 1 + pick(0, OBJECTS), torch.arange(OBJECTS)
    size = (each(30) * len(SIZES)).long()
    radius = torch.tensor(tuple(SIZES.values()), dtype=torch.float64)[size] * (0.95 + 0.1 * each(40))
    x = ((slot + 0.35 + 0.3 * each(50)) / count[:, None]).clamp(radius, 1 - radius)
    y = 1.2 * radius + (1 - 2.4 * radius) * each(60)
    exists = slot < count[:, None]
    rank = torch.where(exists, each(70), 2.0).argsort(1).argsort(1)  # 0 is the nearest
    depth = (rank + 0.2 + 0.6 * each(80)) / count[:, None]
    return {
        "count": count, "background": pick(1, len(BACKGROUNDS)), "exists": exists, "rank": rank, "depth": depth,
        "shape": (each(10) * len(SHAPES)).long(), "colour": (each(20) * len(COLOURS)).long(), "size": size,
        "radius": radius, "x": x, "y": y,
    }  # fmt: skip


def _distance(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside; corners are those of the planes that bound the shape."""
    circle = (dx**2 + dy**2).sqrt() - radius
    square = torch.maximum(dx.abs(), dy.abs()) - 0.88 * radius
    triangle = torch.maximum(dy, 0.75**0.5 * dx.abs() - 0.5 * dy) - 0.64 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def _render(p: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """All modalities of scenes from their parameters; objects are painted from far to near."""
    n = len(p["count"])
    ink = torch.tensor(tuple(COLOURS.values()))
    ground = torch.tensor(tuple(BACKGROUNDS.values()))[p["background"]][:, :, None, None]
    at = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    image, glow = ground.expand(n, 3, size, size).clone(), torch.zeros(n, 3, size, size)
    owner = torch.full((n, size, size), -1)
    depth, sketch = torch.ones(n, size, size), torch.zeros(n, size, size)
    order, rows = p["rank"].argsort(1, descending=True), torch.arange(n)
    for k in order.unbind(1):

        def of(name: str, k: Tensor = k) -> Tensor:
            return p[name][rows, k].to(torch.float32 if p[name].is_floating_point() else torch.int64)[:, None, None]

        sdf = _distance(of("shape"), at - of("x"), at[:, None] - of("y"), of("radius")) * size  # in pixels
        sdf = torch.where(of("exists") > 0, sdf, float(size))
        cover = (0.5 - sdf).clamp(0, 1)
        own = ink[p["colour"][rows, k]][:, :, None, None]
        shade = torch.lerp(own, ground, 0.35 * of("depth")[:, None])
        image = torch.lerp(image, shade, cover[:, None])
        glow = torch.lerp(glow, own, cover[:, None])
        inside = cover > 0.5
        owner = torch.where(inside, k[:, None, None], owner)
        depth = torch.where(inside, of("depth"), depth)
        sketch = torch.maximum(sketch * (1 - cover), (1.25 - sdf.abs()).clamp(0, 1))
    light = 0.3 + 0.7 * torch.exp(-((at - 0.8) ** 2 + (at[:, None] - 0.15) ** 2) / 0.2)
    night = image * light * torch.tensor([0.42, 0.48, 0.80])[:, None, None] + 0.35 * _blur(glow, 0.07 * size)
    nearest = p["rank"].argmin(1)
    kind = torch.where(owner < 0, 0, 1 + p["shape"].gather(1, owner.clamp(min=0).flatten(1)).reshape(owner.shape))
    return {
        "image": _levels(image),
        "night": _levels(night),
        "segmentation": kind,
        "masks": owner[:, None] == torch.arange(OBJECTS)[:, None, None],
        "depth": depth[:, None] * 2 - 1,
        "sketch": sketch[:, None] * 2 - 1,
        "label": p["shape"][rows, nearest] * len(COLOURS) + p["colour"][rows, nearest],
        "caption": _caption(p),
    }


def _caption(p: dict[str, Tensor]) -> Tensor:
    """Token ids (N, 10): the background, then the objects, then padding."""
    start = np.cumsum([1, len(BACKGROUNDS), len(SIZES), len(COLOURS)]).tolist()
    parts = torch.stack([p["size"] + start[1], p["colour"] + start[2], p["shape"] + start[3]], 2)  # (N, 3, 3)
    objects = torch.where(p["exists"][:, :, None], parts, 0).flatten(1)
    return torch.cat([p["background"][:, None] + start[0], objects], 1)


def _levels(picture: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1] in 256 levels."""
    return (picture.clamp(0, 1) * 255).round() / 127.5 - 1


def _blur(picture: Tensor, width: float) -> Tensor:
    """Gaussian blur of (N, 3, H, W) with a standard deviation in pixels."""
    reach = int(3 * width) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    picture = torch.nn.functional.conv2d(picture, kernel, padding=(0, reach), groups=3)
    return torch.nn.functional.conv2d(picture, kernel.mT, padding=(reach, 0), groups=3)
