"""What a head says of a modality: a law p(x_i | z_t) that knows its variance, and where its value is known already."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Law(Protocol):
    """What every law offers, those of a reader's own, too."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(x_i = value | z_t) of what is not known already, in nats, (B,)."""

    def loss(self, value: Tensor) -> Tensor:
        """The training loss of each example, (B,): the term that lambda_i multiplies (theory 3)."""

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """A value of the modality, as data."""

    def expected_code(self) -> Tensor:
        """E[E_i(x_i) | z_t] on the modality's part of the space, (B, *slice): mean of the code, not code of the mean."""


def detached(law: Law) -> Law:
    """A law of tensors without their gradients; one that is no dataclass stays as it is."""
    if not is_dataclass(law):
        return law
    return replace(law, **{name: part.detach() for name, part in vars(law).items() if isinstance(part, Tensor)})


def gaussian_log_prob(value: Tensor, mean: Tensor, variance: Tensor, where: Tensor | None = None) -> Tensor:
    """Log N(value; mean, variance I) summed over all but the batch, or over what is True in `where`, in nats, (B,)."""
    variance = variance.expand_as(mean)
    terms = (value - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi)
    return -0.5 * (terms if where is None else torch.where(where, terms, 0.0)).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, variance I) over real data, with a mean (B, *shape) and a variance (B, 1, ...).

    Attributes:
        known: bool that broadcasts over the mean, where the value is given and the mean is that value. None: nowhere.
        encode: the encoder, for E[E(x)] = E(mean) where it is linear; None: x is its own code.
    """

    mean: Tensor
    variance: Tensor
    known: Tensor | None = None
    encode: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log N(value; mean, variance I) over the coordinates that are not known, in nats, (B,)."""
        return gaussian_log_prob(value, self.mean, self.variance, None if self.known is None else ~self.known)

    def loss(self, value: Tensor) -> Tensor:
        """Mean over coordinates of (x - mean)^2 / variance, (B,); up to a factor and a constant -log p(x | z_t)."""
        return ((value - self.mean) ** 2 / self.variance).flatten(1).mean(1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """The mean: at the read-out step what is left of the noise is far below the data's scale."""
        return self.mean

    def expected_code(self) -> Tensor:
        """E of the mean."""
        return self.mean if self.encode is None else self.encode(self.mean)


@dataclass(frozen=True, eq=False)
class Pixels(Gaussian):
    """A Gaussian over images in [-1, 1], of `levels` evenly spaced values if that is no None: then discretised.

    Source: discretised likelihood: Ho et al. 2020, eq. 13.
    """

    levels: int | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the Gaussian's mass in each pixel's bin (the outer ones are open), or its density, of unknown pixels."""
        if self.levels is None:
            return super().log_prob(value)
        half, std = 1 / (self.levels - 1), self.variance.sqrt().expand_as(self.mean)
        low = torch.where(value - half <= -1, -1e4, (value - half - self.mean) / std)
        high = torch.where(value + half >= 1, 1e4, (value + half - self.mean) / std)
        low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)  # the exact tail
        top = torch.special.log_ndtr(high)
        each = top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))
        return (each if self.known is None else torch.where(self.known, 0.0, each)).flatten(1).sum(1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """The mean, limited to what an image can be, [-1, 1]."""
        return self.mean.clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class CodedGaussian(Gaussian):
    """A Gaussian whose encoder is not linear: its expected code is an estimate of its own (theory 5).

        loss = mean (x - mean)^2 / variance + mean (E(x) - code)^2 / code_variance

    The gradient of the second term goes to the head alone: else the encoder would be rewarded for codes that say little.

    Attributes:
        code: (B, *slice) the estimate of E[E(x) | z_t].
        code_variance: (B, 1, ...) 1 / (1 + SNR_t).
    """

    code: Tensor = None
    code_variance: Tensor = None

    def loss(self, value: Tensor) -> Tensor:
        """Weighted mean squares of the mean's error and of the expected code's, (B,)."""
        error = (self.encode(value).detach() - self.code) ** 2 / self.code_variance
        return super().loss(value) + error.flatten(1).mean(1)

    def expected_code(self) -> Tensor:
        """The estimate."""
        return self.code


@dataclass(frozen=True, eq=False)
class Categorical:
    """One of K classes at each position, independently: the softmax of logits. Values are ids (B, *positions).

    Attributes:
        logits: (B, K, *positions).
        mix: probabilities (B, K, *positions) -> code (B, *slice). Codes are linear in one-hot values: this is exact.
    """

    logits: Tensor
    mix: Callable[[Tensor], Tensor] = field(default=None, repr=False)

    @property
    def probs(self) -> Tensor:
        """p(class | z_t), (B, K, *positions)."""
        return self.logits.softmax(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log softmax at the class, summed over positions, in nats, (B,)."""
        return -self._nats(value).sum(1)

    def loss(self, value: Tensor) -> Tensor:
        """Cross-entropy in nats per position, (B,)."""
        return self._nats(value).mean(1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """A class at each position, (B, *positions) int64."""
        rows = self.logits.float().softmax(1).movedim(1, -1)  # (B, *positions, K)
        return torch.multinomial(rows.reshape(-1, rows.shape[-1]), 1, generator=generator).reshape(rows.shape[:-1])

    def expected_code(self) -> Tensor:
        """sum_k p(class k | z_t) c_k, at each position or over all of them."""
        return self.mix(self.probs)

    def _nats(self, value: Tensor) -> Tensor:
        """Cross-entropy at every position, (B, positions)."""
        return F.cross_entropy(self.logits, value.long(), reduction="none").reshape(len(value), -1)


@dataclass(frozen=True, eq=False)
class Binary(Categorical):
    """Zeros and ones at each pixel: logits (B, 2, H, W), values (B, 1, H, W) float or bool."""

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, (B, 1, H, W) float."""
        return super().draw(generator)[:, None].float()

    def _nats(self, value: Tensor) -> Tensor:
        return super()._nats(value[:, 0])
