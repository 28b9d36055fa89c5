"""Scenes of one to three coloured shapes, with eight modalities of each that are known perfectly."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtdiff.datasets.base import Dataset, one_of, some_of

MODALITIES = ("image", "night", "segmentation", "masks", "depth", "sketch", "label", "caption")
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
BACKGROUNDS = ("white", "grey", "brown", "black")
VOCABULARY = ("", *BACKGROUNDS, *SIZES, *COLOURS, *SHAPES)
"""The words of captions; token 0 is padding."""
OBJECTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""The names of labels."""
SETS = {"shapes16": 16, "shapes32": 32}
"""Sets that experiments know by name, and their height and width."""
SPLITS = {"train": (0, 10_000), "test": (10**9, 2_000)}
"""Index of the first scene of each split, and how many there are unless somebody says."""
RENDERING = 1
"""Version of what `paint` does; a change that alters a pixel is another one."""

_OBJECT = " ".join(f"(?:{'|'.join(names)})" for names in (SIZES, COLOURS, SHAPES))
_CAPTION = re.compile(f"(?:{'|'.join(BACKGROUNDS)})(?: {_OBJECT}){{1,3}}")
_SOME = f"(?:(?:{'|'.join(SIZES)}) )?(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(SHAPES)})"
_SENTENCE = re.compile(f"(?:(?:{'|'.join(BACKGROUNDS)}) )?{_SOME}(?:(?: left of)? {_SOME}){{0,2}}")
_FILLERS = ("a", "an", "the", "and", "on", "background")
_INK = ((0.88, 0.12, 0.14), (0.13, 0.62, 0.20), (0.12, 0.26, 0.90))  # of `COLOURS`
_INK += ((0.98, 0.84, 0.10), (0.85, 0.15, 0.75), (0.10, 0.78, 0.86))
_PAPER = ((0.95, 0.95, 0.95), (0.55, 0.55, 0.56), (0.40, 0.27, 0.17), (0.06, 0.06, 0.07))
_RADIUS, _SQUARE, _CIRCUMRADIUS = (0.14, 0.21), 0.90, 1.30  # of the width; half a square's side, a triangle's: of the radius
_EXTENT = ((1.0, 1.0), (_SQUARE, _SQUARE), (_CIRCUMRADIUS * math.sqrt(0.75), _CIRCUMRADIUS * 0.75))  # half width and height
_FOG = 0.35
_MOON, _DARK = ((0.50, 0.08, 0.02), (0.05, 0.55, 0.08), (0.12, 0.14, 0.62)), (0.02, 0.03, 0.09)  # C and floor of `night`
_PALETTE = ((-1.0, -1.0, -1.0), (1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, 1.0))  # a regular simplex


@dataclass(frozen=True)
class Scene:
    """What a caption says: a background, and (size, colour, shape) of each object, left to right."""

    background: str
    objects: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Layout:
    """Everything about N scenes; lengths in widths of the image, objects left to right, the unused last.

    Attributes:
        count: (N,) number of objects, 1..3.
        background: (N,) index into `BACKGROUNDS`.
        shape, colour, size: (N, 3) indices into `SHAPES`, `COLOURS` and `SIZES`.
        radius, x, y: (N, 3) float32; y points down.
        depth: (N, 3) float32 in (0, 0.85), 0 is near; infinite for an object that is not there.
    """

    count: Tensor
    background: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    radius: Tensor
    x: Tensor
    y: Tensor
    depth: Tensor


def shapes(
    split: str = "train", size: int = 16, n: int | None = None, seed: int = 0, modalities: Sequence[str] | None = None
) -> Dataset:
    """Scenes of 1 to 3 shapes on a plain background; scene i is the same whatever n, and the same scene at any size.

    It is the same on every processor, too: all but "night" takes nothing but sums, products, quotients and square roots,
    each of which IEEE arithmetic rounds in one way only. No scene is in both splits.

    The modalities of N scenes of s x s pixels:

    - "image" (N, 3, s, s) in [-1, 1], of 256 levels; what is far is paler (a little fog).
    - "night" (N, 3, s, s): the same by moonlight, see `night`.
    - "segmentation" (N, s, s) int64: 0 background, 1 circle, 2 square, 3 triangle.
    - "masks" (N, 3, s, s) bool: what is seen of each object, left to right.
    - "depth" (N, 1, s, s) in [-1, 1]: of the nearest surface, -1 is near; the background is 1.
    - "sketch" (N, 1, s, s) in [-1, 1]: visible outlines, white on black.
    - "label" (N,) int64: shape and colour of the nearest object, one of `OBJECTS`.
    - "caption" (N, 10) int64: background, then size, colour and shape of each object from left to right, then 0.

    All of them are there unless some are asked for. s is a multiple of 8, at least 16; N is 10,000 to train on and 2,000 to
    test on unless given; another seed is another world of scenes.
    """
    values = render(numbers(split, n, seed), size, seed, modalities)
    return Dataset(f"shapes{size}/{split}", values, OBJECTS, f"shapes {split} {size} seed {seed}, rendering {RENDERING}")


def numbers(split: str, n: int | None = None, seed: int = 0, objects: int | None = None) -> np.ndarray:
    """Indices (n,) of the first scenes of a split, ascending; of those with 1, 2 or 3 `objects` alone, a third each."""
    one_of("split", split, SPLITS)
    one_of("objects", objects, (None, 1, 2, 3))
    first, usual = SPLITS[split]
    n, most = usual if n is None else n, 10**9 if objects is None else 10**7
    if not 1 <= n <= most:
        raise ValueError(f"n must be in 1..{most}, got {n}")
    if objects is None:
        return np.arange(first, first + n)
    index = np.arange(first, first + 4 * n + 100)
    return index[(1 + 3 * hashed(index, seed, 1)[:, 0]).long().numpy() == objects][:n]


def render(
    index: Sequence[int] | Tensor, size: int, seed: int = 0, modalities: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """`shapes` of N given indices >= 0, of which there are endlessly many; test scenes begin at 10**9."""
    wanted = MODALITIES if modalities is None else modalities
    some_of("modalities", wanted, MODALITIES)
    if size < 16 or size % 8:
        raise ValueError(f"size must be a multiple of 8, at least 16, got {size}")
    index = torch.as_tensor(index if isinstance(index, Tensor) else np.asarray(index, dtype=np.int64))
    if index.ndim != 1 or not len(index) or index.min() < 0:
        raise ValueError(f"index must be some numbers >= 0 in a row, got {index}")
    return paint(layout(index, seed), size, wanted)


def paint(scenes: Layout, size: int, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The modalities of given layouts as in `shapes`, a few scenes at a time."""
    room = max(1, 2**17 // (3 * size**2))  # scenes that stay in a core's cache
    parts = zip(*(field.split(room) for field in vars(scenes).values()), strict=True)
    drawn = [_draw(Layout(*part), size, wanted) for part in parts]
    return {name: torch.cat([part.pop(name) for part in drawn]) for name in list(drawn[0])}  # popped: not all is there twice


def layout(index: Sequence[int] | Tensor, seed: int = 0) -> Layout:
    """What is where in the scenes of N given indices: the law that `shapes` draws from."""
    u = hashed(np.asarray(index), seed, 2 + 3 * 8)  # (N, 26)
    count, background = (1 + 3 * u[:, 0]).long(), (len(BACKGROUNDS) * u[:, 1]).long()
    shape, colour, word, jitter, x, y, order, depth = u[:, 2:].unflatten(1, (3, 8)).unbind(-1)  # (N, 3) each
    shape, colour, word = ((len(names) * v).long() for names, v in ((SHAPES, shape), (COLOURS, colour), (SIZES, word)))
    radius = torch.tensor(_RADIUS, dtype=torch.float64)[word] * (0.95 + 0.1 * jitter)
    margin = torch.tensor(_EXTENT, dtype=torch.float64)[shape] * radius[..., None] + 0.015  # (N, 3, 2)
    slot, n = torch.arange(3), count[:, None]
    x = ((slot + 0.35 + 0.3 * x) / n).clamp(margin[..., 0], 1 - margin[..., 0])
    y = margin[..., 1] + (1 - 2 * margin[..., 1]) * y
    absent = slot >= n
    rank = order.masked_fill(absent, math.inf).argsort(1).argsort(1)  # 0 is the nearest
    depth = (0.85 * (rank + 0.15 + 0.7 * depth) / n).masked_fill(absent, math.inf)
    return Layout(count, background, shape, colour, word, radius.float(), x.float(), y.float(), depth.float())


def hashed(index: np.ndarray, seed: int, fields: int) -> Tensor:
    """Uniform numbers in [0, 1) that are the same for ever, each a hash of seed, index and field: (N, fields) float64.

    Source: Steele, Lea and Flood 2014 (splitmix64).
    """

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    world = mix(np.array([seed], dtype=np.int64).astype(np.uint64) * golden + golden)
    scene = mix(world + index.astype(np.uint64) * golden)[:, None]
    bits = mix(scene + np.arange(1, fields + 1, dtype=np.uint64) * golden)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _draw(scene: Layout, size: int, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The modalities of a few scenes, painted from far to near."""
    far_first = scene.depth.argsort(1, descending=True)  # (N, 3)
    sdf = _distances(scene, far_first, size) * size  # (N, 3, s, s) in pixels
    n, rows = len(sdf), torch.arange(len(sdf))[:, None]
    out: dict[str, Tensor] = {}
    if {"image", "night"} & set(wanted):
        paper, fog = torch.tensor(_PAPER)[scene.background], (_FOG * scene.depth.clamp(max=1))[..., None]
        ink = (torch.tensor(_INK)[scene.colour] * (1 - fog) + paper[:, None] * fog)[rows, far_first]  # (N, 3, RGB)
        image = paper[:, :, None, None].repeat(1, 1, size, size)
        for k in range(3):
            cover = (0.5 - sdf[:, k, None]).clamp(0, 1)
            image += cover * (ink[:, k, :, None, None] - image)
        out["image"] = _levels(image)
        if "night" in wanted:
            out["night"] = night(out["image"])
    if "sketch" in wanted:
        reach, lines = 0.85 + size / 100, torch.zeros(n, size, size)
        for k in range(3):
            lines *= 1 - (0.5 - sdf[:, k]).clamp(0, 1)  # what is nearer hides
            lines = torch.maximum(lines, (reach - sdf[:, k].abs()).clamp(0, 1))
        out["sketch"] = _levels(lines[:, None])
    if {"segmentation", "masks", "depth"} & set(wanted):
        owner = torch.full((n, size, size), 3)  # which object is seen; 3 is the background
        for k in range(3):
            owner = torch.where(sdf[:, k] < 0, far_first[:, k, None, None], owner)
        nobody, at = torch.zeros(n, 1), owner.flatten(1)
        kinds = torch.cat([scene.shape + 1, nobody.long()], 1)
        depths = torch.cat([2 * scene.depth - 1, nobody + 1], 1)
        out["segmentation"] = kinds.gather(1, at).view_as(owner)
        out["masks"] = owner[:, None] == torch.arange(3)[:, None, None]
        out["depth"] = depths.gather(1, at).view_as(owner)[:, None]
    label = scene.shape * len(COLOURS) + scene.colour
    out["label"] = label[rows[:, 0], scene.depth.argmin(1)]
    out["caption"] = _caption(scene)
    return {name: out[name] for name in wanted}


def _distances(scene: Layout, order: Tensor, size: int) -> Tensor:
    """Signed distance to each object's edge in widths, negative inside, (N, 3, s, s); objects in the given order."""
    out = torch.full((*order.shape, size, size), 9.0)
    grid = (torch.arange(size) + 0.5) / size
    rows = torch.arange(len(order))[:, None]
    kind, present = scene.shape[rows, order], scene.depth[rows, order].isfinite()
    for k in range(len(SHAPES)):
        i, j = torch.nonzero(present & (kind == k), as_tuple=True)
        x, y, r = (v[i, order[i, j], None, None] for v in (scene.x, scene.y, scene.radius))
        dx, dy = grid - x, grid[:, None] - y  # (M, 1, s) and (M, s, 1)
        if k == 0:
            out[i, j] = torch.from_numpy(np.sqrt((dx * dx + dy * dy).numpy())) - r  # torch's root may be off by one bit
        elif k == 1:
            out[i, j] = torch.maximum(dx.abs(), dy.abs()) - _SQUARE * r
        else:  # the base and two sides, at half the circumradius from a centre that is a quarter of it below the middle
            side = math.sqrt(0.75) * dx.abs() - 0.5 * (dy - 0.25 * _CIRCUMRADIUS * r)
            out[i, j] = torch.maximum(side, dy - 0.25 * _CIRCUMRADIUS * r) - 0.5 * _CIRCUMRADIUS * r
    return out


def night(image: Tensor, rounded: bool = True) -> Tensor:
    """The same scenes by night: moonlight from the upper right, dim and blue, and colours that glow.

    With x the image in [0, 1], C a colour matrix, l(p) the light at a place and x - mean x its colour,
    night = floor + l(p) C x + glow blur(max(x - mean x, 0)). Day can be had back from it, but not by one colour matrix.
    (N, 3, s, s) in [-1, 1] become as many; a gradient passes only where they are not `rounded` to 256 levels.
    """
    x, size = (image.double() + 1) / 2, image.shape[-1]  # in float64 no processor's rounding reaches a level
    grid = (torch.arange(size, device=x.device) + 0.5).double() / size
    light = 0.32 + 0.58 / (1 + ((grid - 0.8) ** 2 + (grid[:, None] - 0.15) ** 2) / 0.45**2)
    mix, floor = (torch.tensor(v, device=x.device, dtype=x.dtype) for v in (_MOON, _DARK))
    tinted = torch.einsum("cd,ndij->ncij", mix, x)
    colour = (x - x.mean(1, keepdim=True)).clamp(min=0)
    blur = (-0.5 * ((grid - grid[:, None]) / 0.08) ** 2).exp()
    blur = (blur / blur.sum(1, keepdim=True)).expand(len(x) * 3, -1, -1)
    halo = (blur @ colour.flatten(0, 1) @ blur.mT).view_as(x)
    dark = floor[:, None, None] + light * tinted + 0.75 * halo
    return (_levels(dark) if rounded else 2 * dark - 1).to(image.dtype)


def _levels(x: Tensor) -> Tensor:
    """Values in [0, 1] as pixels: 256 levels in [-1, 1]."""
    return (255 * x).round_().div_(127.5).sub_(1)


def _caption(scene: Layout) -> Tensor:
    """Tokens (N, 10)."""
    bases = [VOCABULARY.index(names[0]) for names in (SIZES, COLOURS, SHAPES)]
    objects = torch.stack([scene.size, scene.colour, scene.shape], -1) + torch.tensor(bases)  # (N, 3, 3)
    objects = objects * scene.depth.isfinite()[..., None]
    return torch.cat([scene.background[:, None] + VOCABULARY.index(BACKGROUNDS[0]), objects.flatten(1)], 1)


def words(tokens: Tensor) -> list[str]:
    """Captions (N, 10) or (10,) as N texts, such as "grey small red circle large blue square"."""
    tokens = torch.atleast_2d(tokens)
    if tokens.min() < 0 or tokens.max() >= len(VOCABULARY):
        raise ValueError(f"tokens must be in 0..{len(VOCABULARY) - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    return [" ".join(VOCABULARY[k] for k in row if k) for row in tokens.tolist()]


def parse(captions: Tensor | str | Sequence[str]) -> list[Scene | None]:
    """What captions say, tokens (N, 10) or (10,) padded at the end only, or texts; None for one that is not well formed."""
    if isinstance(captions, Tensor):
        word = dict(enumerate(VOCABULARY))
        texts = [" ".join(word.get(k, "?") for k in row).rstrip() for row in torch.atleast_2d(captions).tolist()]
    else:
        texts = [" ".join(text.split()) for text in ([captions] if isinstance(captions, str) else captions)]
    said = [text.split() if _CAPTION.fullmatch(text) else None for text in texts]
    return [row and Scene(row[0], tuple(zip(row[1::3], row[2::3], row[3::3], strict=True))) for row in said]


def read_caption(text: str, seed: int = 0) -> str:
    """The caption that a sentence says: 1 to 3 objects from left to right, before or after them the background.

    What it leaves out, the background, sizes and colours, is drawn evenly by the seed, as it is in this world. ValueError,
    with an example, for what is no scene of it.
    """
    said = [word for word in re.findall(r"[^\s,.]+", text.lower()) if word not in _FILLERS]
    if said and said[-1] in BACKGROUNDS:
        said = [said[-1], *said[:-1]]
    if not _SENTENCE.fullmatch(" ".join(said)):
        example = "a small red circle left of a large blue square on a grey background"
        parts = f"shape ({', '.join(SHAPES)}), and if you like size ({', '.join(SIZES)}) and colour ({', '.join(COLOURS)})"
        scene = f"1 to 3 objects from left to right by {parts}, and a background ({', '.join(BACKGROUNDS)})"
        raise ValueError(f"{text!r} is no caption of this world, which is {scene}: {example!r}")
    draw, found = random.Random(seed).choice, []
    caption = [said.pop(0) if said[0] in BACKGROUNDS else draw(BACKGROUNDS)]
    for word in said:
        found.append(word)
        if word in SHAPES:
            caption += [next((w for w in found if w in names), None) or draw(names) for names in (SIZES, COLOURS, SHAPES)]
            found = []
    return " ".join(caption)


def palette(segmentation: Tensor) -> Tensor:
    """A segmentation (N, H, W) as an image (N, 3, H, W), in four colours as far apart as can be."""
    return torch.tensor(_PALETTE, device=segmentation.device)[segmentation].movedim(-1, 1).contiguous()


def unpalette(image: Tensor) -> Tensor:
    """The segmentation (N, H, W) whose palette is nearest to an image (N, 3, H, W), pixel by pixel."""
    colours = torch.tensor(_PALETTE, device=image.device, dtype=image.dtype)
    return torch.einsum("kc,nchw->nkhw", colours, image).argmax(1)  # all are equally long: the nearest is the best aligned


def as_picture(name: str, value: Tensor) -> Tensor:
    """A modality of scenes as an image of three channels: a segmentation by `palette`, what has one channel repeated."""
    value = palette(value) if name == "segmentation" else value
    return value.expand(-1, 3, -1, -1)
