"""A small diffusion transformer (Peebles and Xie 2023) as a backbone of one's own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtdiff as mt
from mtdiff.backbones.base import NoiseLevel, zero


class DiT(mt.Backbone):
    """Tokens are patches of the space; scale, shift and gate of each block come from the noise level and the condition.

    Args:
        space: (C, H, W); H and W divisible by `patch`.
        width: of a token.
        blocks: number of transformer blocks.
        heads: of attention; divides the width.
        patch: height and width of a patch.
    """

    def __init__(self, space: Sequence[int], width: int = 384, blocks: int = 12, heads: int = 6, patch: int = 4):
        super().__init__()
        self.space, self.embedding, self.pooled, self.patch = tuple(space), width, width, patch
        self.rows, self.columns = space[1] // patch, space[2] // patch
        self.level = NoiseLevel(width)
        self.enter = nn.Conv2d(space[0], width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.rows * self.columns, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor, u: Tensor, condition=None, context=None, tokens=None, keep=None) -> tuple[Tensor, Tensor]:
        """Features (B, N, width) of the patches, and their mean."""
        level = self.level(u)
        level = F.silu(level if condition is None else level + condition)
        h = self.enter(z)
        h = (h if context is None else h + context).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            h = block(h, level)
        h = self.norm(h)
        return h, h.mean(1)

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised linear layer from each token to its patch of (B, *shape)."""
        return Patches(zero(nn.Linear(self.config["width"], shape[0] * self.patch**2)), self.rows, self.patch)

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """Patches of data (B, *shape) as tokens."""
        return nn.Conv2d(shape[0], self.config["width"], self.patch, self.patch)


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm whose scale, shift and gate follow the level; the identity at first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulate = zero(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """(B, N, width), (B, width) -> (B, N, width)."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulate(level)[:, None].chunk(6, 2)
        x = F.layer_norm(h, h.shape[2:]) * (1 + scale) + shift
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        h = h + gate * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + gate_mlp * self.mlp(F.layer_norm(h, h.shape[2:]) * (1 + scale_mlp) + shift_mlp)


class Patches(nn.Module):
    """Tokens (B, N, width) to an image (B, C, H, W)."""

    def __init__(self, layer: nn.Linear, rows: int, patch: int):
        super().__init__()
        self.layer, self.rows, self.patch = layer, rows, patch

    def forward(self, h: Tensor) -> Tensor:
        """Each token becomes its patch."""
        x = self.layer(h).transpose(1, 2).unflatten(2, (self.rows, -1))  # (B, C p p, rows, columns)
        return F.pixel_shuffle(x, self.patch)
