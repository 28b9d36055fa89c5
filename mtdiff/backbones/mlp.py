"""A multi-layer perceptron with residual blocks, for vectors and very small images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone, Maybe, NoiseLevel, zero
from mtdiff.checks import check_whole


class MLP(Backbone):
    """Residual MLP: h <- h + W_2 silu(norm(W_1 norm(h)) (1 + scale) + shift), scale and shift from level and condition.

    The space has any shape, it is flattened; `width` is that of the hidden state.

    Source: the residual block with scale and shift: Perez et al. 2018 (FiLM), as in Dhariwal and Nichol 2021.
    """

    def __init__(self, space: Sequence[int], width: int = 128, blocks: int = 3, dropout: float = 0.0):
        super().__init__()
        check_whole(space=tuple(space), width=width, blocks=blocks)
        self.space, self.embedding, self.pooled = tuple(space), width, width
        self.level = NoiseLevel(width)
        self.enter = nn.Linear(torch.Size(space).numel(), width)
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, z: Tensor, u: Tensor, condition: Maybe = None, context: Maybe = None, tokens: Maybe = None, keep: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.forward`; feature map and pooled vector are the hidden state (B, width). ValueError for tokens."""
        if tokens is not None:
            raise ValueError("an MLP cannot attend to tokens: use a DiT, or a UNet with cross=...")
        level = self.level(u)
        level = F.silu(level if condition is None else level + condition)
        h = self.enter(z.flatten(1))
        h = h if context is None else h + context
        for block in self.blocks:
            h = block(h, level)
        h = F.silu(self.norm(h))
        return h, h

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised linear layer to (B, *shape)."""
        size = torch.Size(shape).numel()
        return nn.Sequential(zero(nn.Linear(self.pooled, size)), nn.Unflatten(1, shape))

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """A linear layer from (B, *shape) to the hidden state."""
        return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), self.pooled))


class MLPBlock(nn.Module):
    """One residual block of `MLP`; it begins as the identity."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.film = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.second = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        """(B, width), (B, width) -> (B, width)."""
        scale, shift = self.film(level).chunk(2, 1)
        inner = F.layer_norm(self.first(self.norm(h)), h.shape[1:]) * (1 + scale) + shift
        return h + self.second(self.dropout(F.silu(inner)))
