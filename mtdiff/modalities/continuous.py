"""Modalities that are tensors of real numbers: images and vectors. Identity encoder, Gaussian head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtdiff.modalities.base import Modality, View, gaussian_log_prob


class Continuous(Modality):
    """Real-valued data that live in the space as they are: E(x) = x, p(x | z_t) = N(mean, variance_t I).

    The head starts from the best linear guess and learns what is missing, in units of the noise that is left:
    mean = k_t z_t + sqrt(variance_t) F(z_t, t), variance_t = 1 / (1 + SNR_t) (`ForwardProcess.wiener`). For W = 1
    that is v-prediction; and the training loss mean((x - mean)^2 / variance_t) is, up to a factor and a constant,
    -log p(x | z_t) of the bound. With start="rest" the guess is k_t (z_t - sqrt(abar_t) sum_{j != i} W_t^j e_j): codes
    that are told, and those that other heads estimate, are taken out of the sum first. With start="nothing" the mean is
    the learned F alone: for data that are a function of others, buried under them in the state.

    Args:
        shape: shape of one example: the space, or its `channels`.
        channels: slice of the space that the data are written to; None is all of it.
        head: False for data alone in its channels: its mean is then its slice of the aggregate over W_t.
        start: what the linear guess starts from, "state" (z_t), "rest" (what the other codes leave of it) or "nothing".
        tell: True lets the backbone be told the value, by an `entrance` of its own (theory 4, rule 3).

    Raises:
        ValueError: shape is not made of positive sizes, or an unknown start.

    Source: identity encoder and convolutional head: Chen et al. 2024; the parametrisation is ours (theory 1, 3).
    """

    told_as = "map"

    def __init__(
        self,
        shape: Sequence[int],
        channels: slice | None = None,
        head: bool = True,
        start: str = "state",
        tell: bool = False,
    ):
        shape = tuple(shape)
        if not shape or any(size < 1 for size in shape):
            raise ValueError(f"shape must be positive sizes, got {shape}")
        if start not in ("state", "rest", "nothing"):
            raise ValueError(f'start must be "state", "rest" or "nothing", got {start!r}')
        super().__init__(channels)
        self.shape, self.has_head, self.start, self.tell = shape, head, start, tell

    def build(self, backbone: nn.Module) -> None:
        """Create the head; see `Modality.build`."""
        if self.shape != self.slice_shape:
            raise ValueError(f"{self.name!r} has shape {self.shape}, but its part of the space is {self.slice_shape}")
        self.out = backbone.readout(self.shape) if self.has_head else None
        self.embed = backbone.entrance(self.shape) if self.tell else None

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is floating point, (B, *shape) and, on a CPU, finite."""
        expected = f"floating point (B, {', '.join(map(str, self.shape))})"
        if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape[1:]) != self.shape:
            self.refuse(value, expected)
        if value.device.type == "cpu" and not bool(value.isfinite().all()):
            bad = (~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"{self.name!r} has values that are not finite (NaN or inf) in rows {bad[:8]}")

    def code(self, value: Tensor) -> Tensor:
        """E(x) = x."""
        return value

    def condition(self, value: Tensor) -> Tensor:
        """The value through an `entrance` of the backbone."""
        return super().condition(value) if self.embed is None else self.embed(value)

    def head(self, view: View) -> Tensor:
        """The mean of p(x | z_t), (B, *shape)."""
        if self.out is None:
            return self.take(view.aggregate) / view.weight
        if self.start == "nothing":
            return self.out(view.features)
        return view.gain * self.take(view.z) + view.variance.sqrt() * self.out(view.features)

    def log_prob(self, value: Tensor, params: Tensor, variance: Tensor, where: Tensor | None = None) -> Tensor:
        """Log N(value; mean, variance_t I) in nats, (B,); of the coordinates that are True in `where`."""
        return gaussian_log_prob(value, params, variance, where)

    def loss(self, value: Tensor, params: Tensor, variance: Tensor) -> Tensor:
        """Mean over coordinates of (x - mean)^2 / variance_t, (B,)."""
        return ((value - params) ** 2 / variance).flatten(1).mean(1)

    def expected_code(self, params: Tensor) -> Tensor:
        """The mean itself: the encoder is linear."""
        return params

    def draw(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean: at the read-out step what is left of the noise is far below the data's scale."""
        return params


class Vector(Continuous):
    """A vector of d numbers of about unit scale, such as a point or a representation; shape (B, d).

    Args:
        size: d.
        channels: slice of a vector space that it is written to.
        head: as in `Continuous`.
        start: as in `Continuous`.
        tell: as in `Continuous`.
    """

    def __init__(
        self, size: int, channels: slice | None = None, head: bool = True, start: str = "state", tell: bool = False
    ):
        super().__init__((size,), channels, head, start, tell)


class Image(Continuous):
    """An image (B, C, H, W), float in [-1, 1], channels first; any number of channels.

    Args:
        shape: (C, H, W).
        channels: slice of the space's channels that it is written to.
        head: as in `Continuous`.
        levels: number of values a pixel can have, evenly spaced from -1 to 1 (256 for 8-bit images). The likelihood is then
            the probability of the pixel's bin, a discretised Gaussian; None leaves it a density.
        start: as in `Continuous`.
        tell: as in `Continuous`.
        revealed_by: (picture, mask): names of a masked image and its mask. Where both are told and the mask is 1, the head
            returns the told pixel: it is not predicted, costs no loss, and stays as it is in samples.

    Raises:
        ValueError: shape is not (C, H, W), fewer than two levels, or revealed_by is not a pair.

    Source: discretised likelihood: Ho et al. 2020, eq. 13.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: slice | None = None,
        head: bool = True,
        levels: int | None = None,
        start: str = "state",
        tell: bool = False,
        revealed_by: Sequence[str] = (),
    ):
        if len(shape) != 3:
            raise ValueError(f"an image's shape is (C, H, W), got {tuple(shape)}")
        if levels is not None and levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        if len(revealed_by) not in (0, 2):
            raise ValueError(f"revealed_by must be (picture, mask), got {tuple(revealed_by)}")
        super().__init__(shape, channels, head, start, tell)
        self.levels, self.revealed_by = levels, tuple(revealed_by)

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is a batch of images in [-1, 1]."""
        super().check(value)
        if value.device.type == "cpu" and value.numel() and float(value.abs().max()) > 1 + 1e-4:
            low, high = float(value.min()), float(value.max())
            raise ValueError(f"{self.name!r} must lie in [-1, 1], got values in [{low:.3g}, {high:.3g}]")

    def log_prob(self, value: Tensor, params: Tensor, variance: Tensor, where: Tensor | None = None) -> Tensor:
        """Log of the Gaussian's mass in each pixel's bin (the outer ones are open), or its density, summed; nats, (B,).

        With `where`, a bool tensor that broadcasts over the value, of the pixels that are True there.
        """
        if self.levels is None:
            return super().log_prob(value, params, variance, where)
        half, std = 1 / (self.levels - 1), variance.sqrt().expand_as(params)
        low = torch.where(value - half <= -1, -1e4, (value - half - params) / std)
        high = torch.where(value + half >= 1, 1e4, (value + half - params) / std)
        low, high = torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high)  # the exact tail
        top = torch.special.log_ndtr(high)
        each = top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))
        return (each if where is None else torch.where(where, each, 0.0)).flatten(1).sum(1)

    def draw(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean, limited to what an image can be, [-1, 1]."""
        return params.clamp(-1, 1)
