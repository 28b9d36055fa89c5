"""What every kind of modality does: enter the diffusion space, and be read back from it (theory 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtdiff.recorded import Recorded


@dataclass(frozen=True)
class View:
    """What a head may look at, for a batch of noisy states.

    Attributes:
        features: (B, ...) feature map of the backbone.
        pooled: (B, P) pooled vector of the backbone.
        z: (B, *Z) the noisy state z_t, or for a modality that starts from the "rest" what the others leave of it.
        aggregate: (B, *Z) the model's E[m_t | z_t].
        weight: (B, 1, ...) the modality's W_t.
        gain: (B, 1, ...) k_t of `ForwardProcess.wiener`.
        variance: (B, 1, ...) posterior variance of a unit-variance coordinate at this step.
    """

    features: Tensor
    pooled: Tensor
    z: Tensor
    aggregate: Tensor
    weight: Tensor
    gain: Tensor
    variance: Tensor


class Modality(Recorded, nn.Module):
    """One kind of data: its encoder E_i into the space, its head D_i, likelihood, estimate and draw.

    A subclass implements `build`, `check`, `code`, `head`, `log_prob`, `loss`, `expected_code` and `draw`. Its arguments
    are noted in saved models' cards by themselves (see `Recorded`). Values are batched tensors; a code is (B, *slice): the
    part of the space that the modality writes.

    Args:
        channels: slice of the space's first axis that the codes are written to; None is all of it.

    Attributes:
        told_as: how `condition` reaches the backbone: as a "vector", a "map" or "tokens" (see `mtdiff.backbones`).
        start: what a head's linear guess starts from: the "state" z_t, or its "rest", z_t less the other codes in it.
        revealed_by: (picture, mask), the modalities that tell its pixels where the mask is 1; () is none.
        has_code: False for what never enters z_t: its weight has to be 0, and given values can only be told.
        sense: True for what the backbone is told as far as the state shows it to a linear guess; see `sensed`.
    """

    told_as: ClassVar[str] = "vector"
    start: str = "state"
    revealed_by: tuple[str, ...] = ()
    has_code: bool = True
    sense: bool = False

    def __init__(self, channels: slice | None = None):
        super().__init__()
        if channels is not None and channels.step not in (None, 1):
            raise ValueError(f"channels must be a slice without a step, got {channels}")
        self.channels = channels
        self.space: tuple[int, ...] = ()

    def attach(self, name: str, space: Sequence[int], backbone: nn.Module) -> None:
        """Bind to a space and a backbone; creates the parameters of encoder and head. The model calls it once.

        Args:
            name: the modality's name in the model, for error messages.
            space: shape of the diffusion space, (C, H, W) or (d,).
            backbone: offers `readout(shape)`, `entrance(shape)`, `pooled` and `embedding` (see `mtdiff.backbones`).

        Raises:
            ValueError: the channels leave the space, or the modality is already part of a model.
        """
        if self.space:
            raise ValueError(f"modality {name!r} is already part of a model; make a new one")
        self.name, self.space = name, tuple(space)
        self.span = range(self.space[0])[self.channels or slice(None)]
        if not self.span or (self.channels and (self.channels.stop or 0) > self.space[0]):
            raise ValueError(f"{name!r}: channels {self.channels} leave the space {self.space}")
        self.slice_shape = (len(self.span), *self.space[1:])
        self.build(backbone)

    def build(self, backbone: nn.Module) -> None:
        """Create parameters and buffers for `self.slice_shape`; raise ValueError where data and space do not fit."""
        raise NotImplementedError

    def check(self, value: Tensor) -> None:
        """Raise ValueError, naming the modality, unless `value` is a valid batch. Values on a GPU are not read back."""
        raise NotImplementedError

    def missing(self, value: Tensor) -> Tensor:
        """(B,) bool: which examples of a training set have no value (a label of -1); of most kinds, none may lack one."""
        return torch.zeros(len(value), dtype=torch.bool, device=value.device)

    def filled(self, value: Tensor) -> Tensor:
        """The values, with zeros in place of those that are missing."""
        gone = self.missing(value).reshape(-1, *[1] * (value.ndim - 1))
        return torch.where(gone, torch.zeros_like(value), value)

    def code(self, value: Tensor) -> Tensor:
        """E_i(x_i) on the modality's own slice, (B, *slice), of unit RMS for discrete data."""
        raise NotImplementedError

    def condition(self, value: Tensor) -> Tensor:
        """The value as the backbone is told it (theory 4, rule 3): what `told_as` says.

        A vector is (B, backbone.embedding), a map the output of `backbone.entrance`, tokens are (B, L, backbone.embedding).
        """
        raise ValueError(f"{self.name!r} cannot condition the backbone: it was made without tell=True")

    def sensed(self, z: Tensor, gain: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """What a state shows of the modality, as if all else in it were noise.

        Args:
            z: (B, *Z).
            gain: (B, 1, ...), as in `View`, of all that is not this modality's code.
            variance: (B, 1, ...) likewise.

        Returns:
            The guess as the backbone is told it (B, embedding), and its expected code (B, *Z), to be taken out of the state.
        """
        raise NotImplementedError

    def steered(self, params: Tensor, z: Tensor, gain: Tensor, variance: Tensor) -> Tensor:
        """The head's parameters, with a gradient along its code where what is told has none; others as in `sensed`."""
        return params

    def head(self, view: View) -> Tensor:
        """Parameters of p(x_i | z_t)."""
        raise NotImplementedError

    def log_prob(self, value: Tensor, params: Tensor, variance: Tensor) -> Tensor:
        """Log p(x_i = value | z_t) in nats, (B,)."""
        raise NotImplementedError

    def loss(self, value: Tensor, params: Tensor, variance: Tensor) -> Tensor:
        """The modality's training loss per example, (B,); the term lambda_i multiplies (theory 3)."""
        raise NotImplementedError

    def expected_code(self, params: Tensor) -> Tensor:
        """E[E_i(x_i) | z_t] on the slice, (B, *slice): the mean of the code, not the code of the mean."""
        raise NotImplementedError

    def draw(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A value of the modality, as data."""
        raise NotImplementedError

    def encode(self, value: Tensor) -> Tensor:
        """E_i(x_i) in the whole space, (B, *Z): zero outside the modality's channels."""
        return self.place(self.code(value))

    def estimate(self, params: Tensor) -> Tensor:
        """E[E_i(x_i) | z_t] in the whole space, (B, *Z)."""
        return self.place(self.expected_code(params))

    def place(self, code: Tensor) -> Tensor:
        """Write a code (B, *slice) into an otherwise empty space (B, *Z)."""
        if self.slice_shape == self.space:
            return code
        out = code.new_zeros(len(code), *self.space)
        out[:, self.span.start : self.span.stop] = code
        return out

    def take(self, z: Tensor) -> Tensor:
        """The modality's slice (B, *slice) of a tensor on the space (B, *Z)."""
        return z[:, self.span.start : self.span.stop]

    def refuse(self, value: object, expected: str) -> None:
        """Raise the ValueError that names the modality, what came and what was expected."""
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{self.name!r} must be {expected}, got {got}")


def gaussian_log_prob(value: Tensor, mean: Tensor, variance: Tensor, where: Tensor | None = None) -> Tensor:
    """Log N(value; mean, variance I) summed over all but the batch, or over what is True in `where`, in nats, (B,)."""
    variance = variance.expand_as(mean)
    terms = (value - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi)
    return -0.5 * (terms if where is None else torch.where(where, terms, 0.0)).flatten(1).sum(1)
