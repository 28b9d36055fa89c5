"""Random masks: each hides the share of pixels at which a random field is largest, so that shares are exact."""

import torch
from torch import Tensor

from mtdiff.datasets.base import one_of

MASKS = ("box", "border", "blobs", "strokes", "pixels")
"""Kinds of mask. Hidden is a rectangle, all but a rectangle (outpainting), free-form blobs, brush strokes, single pixels."""


def masks(n: int, size: int, kind: str = "mixed", hidden: float | tuple[float, float] = (0.1, 0.9), seed: int = 0) -> Tensor:
    """Random masks (n, 1, size, size), 1.0 where a pixel is known and 0.0 where it is hidden.

    A kind is one of `MASKS` or "mixed", which takes them in turn; `hidden` is the share of hidden pixels, in (0, 1) and
    exact up to one pixel, or its range, from which it is drawn uniformly.

    Source: ours; the kinds follow the inpainting literature (Lugmayr et al. 2022, RePaint).
    """
    low, high = hidden if isinstance(hidden, tuple) else (hidden, hidden)
    one_of("kind", kind, (*MASKS, "mixed"))
    if n < 1 or size < 2:
        raise ValueError(f"n must be at least 1 and size at least 2, got {n} and {size}")
    if not 0 < low <= high < 1:
        raise ValueError(f"hidden must be a share in (0, 1), or a range of such, got {hidden}")
    g = torch.Generator().manual_seed(seed)
    share = low + (high - low) * torch.rand(n, generator=g)
    names = MASKS if kind == "mixed" else (kind,)
    fields = torch.empty(n, size, size)
    for k, name in enumerate(names):
        rows = slice(k, None, len(names))
        fields[rows] = _field(name, len(fields[rows]), size, g)
    order = fields.flatten(1).argsort(dim=1, descending=True, stable=True)  # equals, on the edge of a box: in their order
    ranks = order.argsort(1)  # 0 is the pixel that is hidden first
    known = ranks >= (share * size**2).round()[:, None]
    return known.reshape(n, 1, size, size).float()


def _field(kind: str, n: int, size: int, g: torch.Generator) -> Tensor:
    """A random function of the pixel, (n, size, size); what is hidden is a level set of it."""
    if kind in ("pixels", "blobs"):
        noise = torch.randn(n, 1, size, size, generator=g)
        for _ in range(3 if kind == "blobs" else 0):
            noise = torch.nn.functional.avg_pool2d(noise, size // 8 * 2 + 1, 1, size // 8, count_include_pad=False)
        return noise[:, 0]
    grid = (torch.arange(size) + 0.5) / size
    point = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)  # (H, W, 2)
    if kind == "strokes":
        a, b = torch.rand(2, n, 3, 1, 1, 2, generator=g)  # three brush strokes from a to b
        along = (((point - a) * (b - a)).sum(-1) / (b - a).square().sum(-1)).clamp(0, 1)  # (n, 3, H, W)
        return -(point - a - along[..., None] * (b - a)).norm(dim=-1).amin(1)
    centre = 0.25 + 0.5 * torch.rand(n, 1, 1, 2, generator=g)
    aspect = torch.exp(0.8 * (torch.rand(n, 1, 1, generator=g) - 0.5))
    offset = (point - centre).abs()
    box = torch.maximum(offset[..., 0] * aspect, offset[..., 1] / aspect)
    return -box if kind == "box" else box
