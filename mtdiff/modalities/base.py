"""What every kind of modality does: enter the diffusion space, and be read back from it (theory 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtdiff.checks import described
from mtdiff.laws import Law
from mtdiff.process import ForwardProcess
from mtdiff.recorded import Recorded

MISSING = -1
"""The id of a class or a word in a training set that stands for none; of real numbers that is NaN."""


@dataclass(frozen=True)
class View:
    """What a head may look at, for a batch of noisy states. Of a state that has not been looked at, `features` is None.

    Attributes:
        features: (B, ...) feature map of the backbone.
        pooled: (B, P) pooled vector of the backbone.
        z: (B, *Z) the noisy state z_t.
        rest: (B, *Z) what is left of it when the codes of the others are taken out: those that are known, and the estimates
            of those that have been read.
        aggregate: (B, *Z) the model's E[m_t | z_t], where that is an output of its own.
        weight: (B, 1, ...) the modality's W_t.
        gain: (B, 1, ...) k_t of `mtdiff.process.At`.
        variance: (B, 1, ...) posterior variance of a unit-variance coordinate at this step.
        given: {name: value (B, ...)} what the user knows.
        known: {name: (B,) bool} of those, in which examples.
        sensed: what the state shows of the modality by itself, of one that is sensed (`Modality.sensed`).
    """

    features: Tensor | None
    pooled: Tensor | None
    z: Tensor
    rest: Tensor
    aggregate: Tensor | None
    weight: Tensor
    gain: Tensor
    variance: Tensor
    given: Mapping[str, Tensor] = field(default_factory=dict)
    known: Mapping[str, Tensor] = field(default_factory=dict)
    sensed: Law | None = None


class Modality(Recorded, nn.Module):
    """One kind of data: its encoder E_i into the space, and its head D_i, which says a law of it (`mtdiff.laws`).

    A subclass implements `build`, `check`, `code` and `head`, and `condition` if the backbone can be given the value. Its
    arguments are noted in saved models' cards by themselves (see `Recorded`); those that cannot be are a ValueError that
    names them, when it is made or where it meets a model. Values are batched tensors; a code is
    (B, *slice): the part of the space that the modality writes. The other methods have uses of their own; most kinds leave
    them as they are.

    Args:
        channels: slice of the space's first axis that the codes are written to; None is all of it.

    Attributes:
        given_as: how `condition` reaches the backbone: as a "vector", a "map" or "tokens" (see `mtdiff.backbones`).
        reads_rest: True for a head that looks at what the others leave: it is read after them.
        has_head: False for what is its slice of the model's aggregate.
        has_code: False for what never enters z_t: its weight has to be 0, and given values only condition the backbone.
        sense: True for what the backbone gets to see as far as the state shows it to a linear guess; see `sensed`.
    """

    given_as: ClassVar[str] = "vector"
    reads_rest: bool = False
    has_head: bool = True
    has_code: bool = True
    sense: bool = False

    def __init__(self, channels: slice | None = None):
        super().__init__()
        if channels is not None and channels.step not in (None, 1):
            raise ValueError(f"channels must be a slice without a step, got {channels}")
        self.channels, self.name = channels, type(self).__name__.lower()  # until it has one in a model
        self.space: tuple[int, ...] = ()

    def attach(self, name: str, space: Sequence[int], backbone: nn.Module) -> None:
        """Bind to a space and a backbone; creates the parameters of encoder and head. The model calls it once.

        Raises:
            ValueError: the channels leave the space, the modality is already part of a model, or it is given as tokens to a
                backbone that cannot attend to them.
        """
        if self.space:
            raise ValueError(f"modality {name!r} is already part of a model; make a new one")
        self.name, self.space = name, tuple(space)
        self.span = range(self.space[0])[self.channels or slice(None)]
        if not self.span or (self.channels and (self.channels.stop or 0) > self.space[0]):
            raise ValueError(f"{name!r}: channels {self.channels} leave the space {self.space}")
        if self.given_as == "tokens" and not backbone.attends:
            which = f"{name!r} is given as tokens, which this {type(backbone).__name__} cannot attend to"
            raise ValueError(f"{which}: use DiT(), UNet(cross=...), or set `attends` of a backbone of your own")
        self.slice_shape = (len(self.span), *self.space[1:])
        self.build(backbone)

    def build(self, backbone: nn.Module) -> None:
        """Create parameters and buffers for `self.slice_shape`; raise ValueError where data and space do not fit."""
        raise NotImplementedError

    def join(self, others: Mapping[str, "Modality"], process: ForwardProcess) -> None:
        """Look at the company in a model, once all are attached; raise ValueError where they do not go together."""

    def check(self, value: Tensor) -> None:
        """Raise ValueError, naming the modality, unless `value` is a valid batch. Values on a GPU are not read back."""
        raise NotImplementedError

    def missing(self, value: Tensor) -> Tensor:
        """(B,) bool: which examples of a training set have no value: all of it is NaN, or -1 where values are ids."""
        if value.dtype in (torch.bool, torch.uint8):  # which have room for neither
            return torch.zeros(len(value), dtype=torch.bool, device=value.device)
        flat = value.reshape(len(value), -1)
        return (flat.isnan() if value.is_floating_point() else flat == MISSING).all(1)

    def filled(self, value: Tensor) -> Tensor:
        """The values, with zeros in place of those that are missing."""
        gone = self.missing(value).reshape(-1, *[1] * (value.ndim - 1))
        return torch.where(gone, torch.zeros_like(value), value)

    def tidy(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Values of a whole batch without what others among them make irrelevant."""
        return values

    def code(self, value: Tensor) -> Tensor:
        """E_i(x_i) on the modality's own slice, (B, *slice), of unit RMS for discrete data."""
        raise NotImplementedError

    def condition(self, value: Tensor) -> Tensor:
        """The value as the backbone is given it (theory 4, rule 3): what `given_as` says.

        A vector is (B, backbone.embedding), a map the output of `backbone.entrance`, tokens are (B, L, backbone.embedding).
        If a subclass does not say otherwise, `self.embed` of the value.
        """
        if getattr(self, "embed", None) is None:
            raise ValueError(f"{self.name!r} cannot condition the backbone: it was made without tell=True")
        return self.embed(value)

    def entrance(self, backbone: nn.Module, shape: Sequence[int]) -> nn.Module | None:
        """A layer by which the backbone is given data (B, *shape); None without `tell`."""
        if not self.tell:
            return None
        return (
            backbone.entrance(shape) if self.given_as == "map" else nn.Linear(torch.Size(shape).numel(), backbone.embedding)
        )

    def head(self, view: View) -> Law:
        """p(x_i | z_t)."""
        raise NotImplementedError

    def shown(self, state: Tensor, view: View) -> Tensor:
        """What the network sees of the modality's slice of a state (B, *slice)."""
        return state

    def sensed(self, rest: Tensor, gain: Tensor, variance: Tensor) -> Law:
        """What a state shows of the modality by itself: its law as if all else in its channels were noise.

        Gain and variance are those of `View`, with all that is not this modality's code taken for noise.
        """
        raise NotImplementedError

    def hint(self, law: Law) -> Tensor:
        """What `sensed` says, as the backbone gets it, (B, backbone.embedding)."""
        raise NotImplementedError

    def encode(self, value: Tensor) -> Tensor:
        """E_i(x_i) in the whole space, (B, *Z): zero outside the modality's channels."""
        return self.place(self.code(value))

    def place(self, code: Tensor) -> Tensor:
        """Write what broadcasts to (B, *slice) into an otherwise empty space (B, *Z)."""
        code = code.expand(-1, *self.slice_shape)
        if self.slice_shape == self.space:
            return code
        out = code.new_zeros(len(code), *self.space)
        out[:, self.span.start : self.span.stop] = code
        return out

    def take(self, z: Tensor) -> Tensor:
        """The modality's slice (B, *slice) of a tensor on the space (B, *Z)."""
        return z[:, self.span.start : self.span.stop]

    def shares(self, other: "Modality") -> bool:
        """Whether another one writes into the same channels."""
        return bool(set(self.span) & set(other.span))

    def refuse(self, value: object, expected: str) -> None:
        """Raise the ValueError that names the modality, what came and what was expected."""
        raise ValueError(f"{self.name!r} must be {expected}, got {described(value)}")
