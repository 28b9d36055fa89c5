"""A small diffusion transformer: patches of the space are tokens, and so is what it is told."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone, Maybe, NoiseLevel, check_map, zero
from mtdiff.backbones.unet import attend
from mtdiff.checks import check_whole


class DiT(Backbone):
    """Transformer over the patches of (C, H, W); scale, shift and gate of each block come from level and condition.

    Tokens that it is given stand behind the patches, in one sequence. The defaults have 0.7M parameters; the paper's DiT-S/2
    is `DiT(space, width=384, blocks=12, heads=6)`.

    Args:
        space: (C, H, W); H and W divisible by `patch`.
        width: of a token, divisible by `heads`.
        patch: height and width of a patch; the time is that of (H W / patch^2)^2 pairs.

    Source: Peebles and Xie 2023 (adaLN-Zero; tokens: their in-context conditioning). Positions are learned.
    """

    attends = True

    def __init__(self, space: Sequence[int], width: int = 96, blocks: int = 4, heads: int = 4, patch: int = 2):
        super().__init__()
        space = tuple(space)
        check_whole(space=space, width=width, blocks=blocks, heads=heads, patch=patch)
        if len(space) != 3 or space[1] % patch or space[2] % patch:
            raise ValueError(f"space must be (C, H, W) with H and W divisible by {patch}, got {space}")
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split over {heads} attention heads")
        self.space, self.embedding, self.pooled, self.patch = space, width, width, patch
        self.level = NoiseLevel(width)
        self.enter = nn.Conv2d(space[0], width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, space[1] * space[2] // patch**2, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, z: Tensor, u: Tensor, condition: Maybe = None, context: Maybe = None, tokens: Maybe = None, keep: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.forward`; the map holds the patches, (B, H W / patch^2, width), the pooled vector their mean."""
        level = self.level(u)
        level = F.silu(level if condition is None else level + condition)
        h = self.enter(z)  # (B, width, H/patch, W/patch)
        h = (h if context is None else h + context).flatten(2).transpose(1, 2) + self.position  # (B, N, width)
        patches, mask = h.shape[1], None
        if tokens is not None:
            h = torch.cat([h, tokens], 1)  # (B, N + L, width)
            mask = None if keep is None else F.pad(keep, (patches, 0), value=True)[:, None, None]  # (B, 1, 1, N + L)
        for block in self.blocks:
            h = block(h, level, mask)
        h = self.norm(h[:, :patches])
        return h, h.mean(1)

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised layer from each token to its patch of (B, *shape); ValueError for another size."""
        check_map(self, "write", shape)
        return Patches(zero(nn.Linear(self.embedding, shape[0] * self.patch**2)), shape[1] // self.patch, self.patch)

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """Patches of data (B, *shape) as tokens; ValueError for other sizes than the space's."""
        check_map(self, "take", shape)
        return nn.Conv2d(shape[0], self.embedding, self.patch, self.patch)


class DiTBlock(nn.Module):
    """Attention and an MLP, each behind a layer norm with scale, shift and gate; it begins as the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.modulate = heads, zero(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, level: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, width), (B, width), (B, 1, 1, N) bool -> (B, N, width)."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulate(level)[:, None].chunk(6, 2)
        q, k, v = self.qkv(F.layer_norm(h, h.shape[2:]) * (1 + scale) + shift).chunk(3, 2)  # (B, N, width) each
        h = h + gate * self.out(attend(q, k, v, self.heads, mask))
        return h + gate_mlp * self.mlp(F.layer_norm(h, h.shape[2:]) * (1 + scale_mlp) + shift_mlp)


class Patches(nn.Module):
    """Puts the patches of an image together, `rows` of them above each other."""

    def __init__(self, layer: nn.Linear, rows: int, patch: int):
        super().__init__()
        self.layer, self.rows, self.patch = layer, rows, patch

    def forward(self, h: Tensor) -> Tensor:
        """(B, N, width) -> (B, C, H, W)."""
        x = self.layer(h).transpose(1, 2).unflatten(2, (self.rows, -1))  # (B, C patch^2, H/patch, W/patch)
        return F.pixel_shuffle(x, self.patch)
