"""What every backbone offers to the model and to the heads."""

import math

import torch
from torch import Tensor, nn

from mtdiff.recorded import Recorded

Maybe = Tensor | None
"""What a backbone may be given, or not."""


class Backbone(Recorded, nn.Module):
    """A shared network: (z, u, conditions) -> (feature map, pooled vector). It knows nothing of modalities.

    It is conditioned in three ways: a vector that is added to the embedding of the noise level, a map that is added
    to the first hidden state (the same as concatenating an image to z), and tokens that it attends to.

    Attributes:
        space: shape of one z.
        embedding: width of the condition vector, and of a token.
        pooled: width of the pooled vector.
        cells: into how many parts a side of the map is cut, of which the pooled vector holds the means.
        attends: whether it takes tokens, which else are a ValueError.

    A subclass implements `forward`, `readout` and `entrance`; its arguments are noted by themselves (see `Recorded`), those
    that cannot be are a ValueError.
    """

    space: tuple[int, ...]
    embedding: int
    pooled: int
    cells: int = 1
    attends: bool = False

    def forward(
        self, z: Tensor, u: Tensor, condition: Maybe = None, context: Maybe = None, tokens: Maybe = None, keep: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """Features of a noisy state.

        Args:
            z: (B, *space).
            u: (B,) noise level t/T in [0, 1], in float32 at least: half precision cannot tell 1000 steps apart.
            condition: (B, embedding) vector, added to the embedding of u; None is zero.
            context: what layers of `entrance` put out, added to the first hidden state; None is zero.
            tokens: (B, L, embedding) to attend to, where `attends`; None: there are none.
            keep: (B, L) bool, the tokens that count; None: all. Of an example that is given nothing none counts, which has
                to be the same as no tokens: attend to a learned token of your own as well, as `UNet` does.

        Returns:
            The feature map (what `readout` takes) and the pooled vector (B, pooled).
        """
        raise NotImplementedError

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised layer from the feature map to (B, *shape): heads begin at their linear guess."""
        raise NotImplementedError

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """A layer from data (B, *shape) to the first hidden state, by which the network is given a `context`."""
        raise NotImplementedError


class NoiseLevel(nn.Module):
    """Embeds the noise level, (B,) -> (B, width): sinusoids of u at geometric frequencies, then a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.half = width // 4
        self.mlp = nn.Sequential(nn.Linear(2 * self.half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, u: Tensor) -> Tensor:
        """The sinusoids are in float32 at least, in whatever the network computes."""
        frequencies = torch.exp(torch.linspace(math.log(1.0), math.log(1000.0), self.half, device=u.device))
        angles = u[:, None] * frequencies  # no buffer, which .to(torch.bfloat16) would round
        return self.mlp(torch.cat([angles.sin(), angles.cos()], 1).to(self.mlp[0].weight.dtype))


def check_map(backbone: Backbone, what: str, shape: tuple[int, ...]) -> None:
    """Refuse a map whose height and width are not those of the backbone's space."""
    if tuple(shape[1:]) != backbone.space[1:]:
        which = f"a {type(backbone).__name__} on {backbone.space} cannot {what} {tuple(shape)}"
        raise ValueError(f"{which}: height and width differ")


def zero(layer: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero: a residual branch that begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def vector_head(backbone: Backbone, size: int) -> nn.Sequential:
    """An MLP from the pooled vector to `size` numbers that begin as zeros, with pooled / cells hidden units."""
    hidden = backbone.pooled // backbone.cells
    return nn.Sequential(nn.Linear(backbone.pooled, hidden), nn.SiLU(), zero(nn.Linear(hidden, size)))
