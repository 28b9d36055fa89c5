"""What every backbone offers to the model and to the heads."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """A shared network: (z, u, condition) -> (feature map, pooled vector). It knows nothing of modalities.

    Attributes:
        space: shape of one z.
        embedding: width of the condition vector that is added to the embedding of the noise level.
        pooled: width of the pooled vector.

    A subclass implements `forward` and `readout`, and stores its arguments in `self.config`.
    """

    kinds: ClassVar[dict[str, type["Backbone"]]] = {}
    space: tuple[int, ...]
    embedding: int
    pooled: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Backbone.kinds[cls.__name__] = cls

    @staticmethod
    def from_config(config: dict) -> "Backbone":
        """Rebuild a backbone from its card entry.

        Raises:
            ValueError: the kind is unknown: the class that defines it has not been imported.
        """
        config = dict(config)
        kind = config.pop("kind")
        if kind not in Backbone.kinds:
            raise ValueError(f"unknown backbone kind {kind!r}; known: {sorted(Backbone.kinds)}. Import the class first")
        return Backbone.kinds[kind](**config)

    def forward(self, z: Tensor, u: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of a noisy state.

        Args:
            z: (B, *space).
            u: (B,) noise level t/T in [0, 1].
            condition: (B, embedding) vector, added to the embedding of u; None is zero.

        Returns:
            The feature map (what `readout` takes) and the pooled vector (B, pooled).
        """
        raise NotImplementedError

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised layer from the feature map to (B, *shape): heads begin at their linear guess."""
        raise NotImplementedError


class NoiseLevel(nn.Module):
    """Embeds the noise level: sinusoids of u at geometric frequencies, then a two-layer MLP.

    Args:
        width: width of the embedding, even.
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 4
        frequencies = torch.exp(torch.linspace(math.log(1.0), math.log(1000.0), half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, u: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        angles = u[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], 1))


def zero(layer: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero: a residual branch that begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
