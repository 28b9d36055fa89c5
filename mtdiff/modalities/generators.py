"""Learned encoders into the diffusion space: small generators, and tables of codes that keep their scale (theory 5)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

KINDS = ("learned", "generator")
"""How a table of codes can be learned: every number of it freely, or as what a generator makes of an embedding."""


def generator(source: Sequence[int], target: Sequence[int], width: int = 32) -> nn.Sequential:
    """A small network from data of one shape to another: the learned encoder g of the paper's second kind.

    To a vector it is an MLP. From a vector to an image it goes by a small map, linear, that is doubled by repetition and
    convolution as often as its size allows; from image to image it is three convolutions.

    The source is (d,), or (C, H, W) where the target (n,) or (C', H, W) has the same H and W or is a vector; other images
    are a ValueError.

    Source: a generator that maps into the diffusion space: Chen et al. 2024; its form is ours.
    """
    source, target, conv = tuple(source), tuple(target), partial(nn.Conv2d, kernel_size=3, padding=1)
    if len(target) == 1:
        size = torch.Size(source).numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.SiLU(), nn.Linear(width, target[0]))
    channels, height, width_px = target
    if len(source) == 3:
        if source[1:] != target[1:]:
            raise ValueError(f"a generator from {source} to {target} needs the same height and width")
        return nn.Sequential(conv(source[0], width), nn.SiLU(), conv(width, width), nn.SiLU(), conv(width, channels))
    doublings = 0
    while doublings < 3 and all(size % 2 ** (doublings + 1) == 0 and size >> doublings > 4 for size in (height, width_px)):
        doublings += 1
    small = (width, height >> doublings, width_px >> doublings)
    layers = [nn.Linear(source[0], torch.Size(small).numel()), nn.Unflatten(1, small), nn.SiLU()]
    for _ in range(doublings):
        layers += [nn.Upsample(scale_factor=2), conv(width, width), nn.SiLU()]
    return nn.Sequential(*layers, conv(width, channels))


class CodeTable(nn.Module):
    """A learned code for each class, (classes, *shape); for sequences one for each position and class.

    At every use it is centred over the classes and divided by its RMS, so that W alone carries the scale: whatever
    training would like, codes cannot shrink, blow up or all be the same (theory 5). Some classes can come to share a code,
    though, and those of a generator do (notebook 08, section 6). A value is one-hot in the table, so the code is linear in
    it and the expected code is exact.

    Args:
        kind: one of `KINDS`.
        rows: (K,) classes, or (L, K) positions and classes. The code of a sequence is the sum over its positions.
        shape: shape of one code.
        width: width of the generator and its embedding.

    Source: ours, theory 5.
    """

    def __init__(self, kind: str, rows: Sequence[int], shape: Sequence[int], width: int = 32):
        super().__init__()
        self.rows, self.shape, count = tuple(rows), tuple(shape), torch.Size(rows).numel()
        if kind == "learned":
            self.table, self.network = nn.Parameter(torch.randn(count, *shape)), None
        else:
            self.table, self.network = nn.Parameter(torch.randn(count, width)), generator((width,), shape, width)

    def forward(self) -> Tensor:
        """The table, (*rows, *shape): centred over the classes, of mean square 1 (summed over positions)."""
        table = self.table if self.network is None else self.network(self.table)
        table = table.reshape(*self.rows, *self.shape)
        classes = len(self.rows) - 1
        table = table - table.mean(classes, keepdim=True)
        square = table.square().mean(classes).reshape(*self.rows[:-1], -1).mean(-1).sum()
        return table / square.clamp(min=1e-24).sqrt()
