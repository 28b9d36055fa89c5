"""One large shape whose colour depends on its kind, as often as one likes: what do models make of a correlation?"""

import dataclasses

import torch

from mtdiff.datasets.base import Dataset
from mtdiff.datasets.shapes import BACKGROUNDS, COLOURS, RENDERING, SHAPES, hashed, layout, numbers, paint

OWN = (0, 1, 2)
"""The colour of its own that each shape has, an index into `COLOURS`: circles red, squares green, triangles blue."""
SHARES = {"planted60": 0.60, "planted80": 0.80, "planted95": 0.95}
"""Sets that experiments know by name, and how often a shape has its own colour there."""
RADIUS, PLACE = 0.30, 0.10
"""Mean radius of a shape, and how far from the middle its own may be, in widths of the image."""


def planted(share: float, split: str = "train", size: int = 16, n: int | None = None, seed: int = 0) -> Dataset:
    """One large shape on grey, in a colour of its own with probability `share`, else in any of the five others.

    Values: "image" (N, 3, s, s), "label" (N,) the shape and "colour" (N,). Kind, size and place do not depend on the share
    in [0, 1], of which 1/6 is no correlation: the scenes of two shares differ in colour alone. The rest is as in `shapes`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    index = numbers(split, n, seed, objects=1)
    scenes, (luck, other) = layout(index, seed), hashed(index, seed + 2**32, 2).T
    own = torch.tensor(OWN)[scenes.shape[:, 0]]
    colour = torch.where(luck < share, own, (own + 1 + (5 * other).long()) % len(COLOURS))
    scenes = dataclasses.replace(
        scenes,
        colour=torch.stack([colour, colour, colour], 1),
        background=torch.full_like(scenes.background, BACKGROUNDS.index("grey")),
        radius=RADIUS * (0.95 + 0.1 * hashed(index, seed + 2**33, 3).float()),
        x=0.5 + 2 * PLACE * (scenes.x - 0.5),
        y=0.5 + 2 * PLACE * (scenes.y - 0.5),
    )
    image = paint(scenes, size, ("image",))["image"]
    values = {"image": image, "label": scenes.shape[:, 0], "colour": colour}
    source = f"planted {share} {split} {size} seed {seed}, rendering {RENDERING}"
    return Dataset(f"planted{round(100 * share)}/{split}", values, SHAPES, source)
