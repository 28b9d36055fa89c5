"""Modalities that are tensors of real numbers: images and vectors. Identity encoder, Gaussian head."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtdiff.checks import check_choice, check_real, check_whole
from mtdiff.laws import Gaussian, Pixels
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.maps import Mask
from mtdiff.process import ForwardProcess


class Continuous(Modality):
    """Real-valued data of any shape that live in the space as they are: E(x) = x, p(x | z_t) = N(mean, variance_t I).

    The head starts from the best linear guess and learns what is missing, in units of the noise that is left:
    mean = k_t z_t + sqrt(variance_t) F(z_t, t), variance_t = 1 / (1 + SNR_t) (`mtdiff.process.At`). For W = 1
    that is v-prediction; and the training loss mean((x - mean)^2 / variance_t) is, up to a factor and a constant,
    -log p(x | z_t) of the bound. With start="rest" the guess is k_t (z_t - sqrt(abar_t) sum_{j != i} W_t^j e_j): codes
    that are known, and those that other heads estimate, are taken out of the sum first. With start="nothing" the mean is
    the learned F alone: for data that are a function of others, buried under them in the state.

    Args:
        shape: shape of one example: the space, or its `channels`.
        channels: slice of the space that the data are written to; None is all of it.
        head: False for data alone in its channels: its mean is then its slice of the aggregate over W_t.
        start: what the linear guess starts from, "state" (z_t), "rest" (what the other codes leave of it) or "nothing".
        tell: True lets the backbone be given the value, by an `entrance` of its own (theory 4, rule 3).

    Source: identity encoder and convolutional head: Chen et al. 2024; the parametrisation is ours (theory 1, 3).
    """

    given_as = "map"

    def __init__(
        self,
        shape: Sequence[int],
        channels: slice | None = None,
        head: bool = True,
        start: str = "state",
        tell: bool = False,
    ):
        shape = tuple(shape)
        check_whole(shape=shape)
        check_choice("start", start, ("state", "rest", "nothing"))
        super().__init__(channels)
        self.shape, self.has_head, self.start, self.tell = shape, head, start, tell
        self.reads_rest = start == "rest"

    def build(self, backbone: nn.Module) -> None:
        """Create the head; see `Modality.build`."""
        if self.shape != self.slice_shape:
            raise ValueError(f"{self.name!r} has shape {self.shape}, but its part of the space is {self.slice_shape}")
        self.out = backbone.readout(self.shape) if self.has_head else None
        self.embed = self.entrance(backbone, self.shape)

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is floating point, (B, *shape) and, on a CPU, finite."""
        check_real(repr(self.name), value, self.shape)

    def code(self, value: Tensor) -> Tensor:
        """E(x) = x."""
        return value

    def head(self, view: View) -> Gaussian:
        """N(mean, variance_t I)."""
        return Gaussian(self._mean(view), view.variance)

    def join(self, others: Mapping[str, Modality], process: ForwardProcess) -> None:
        """Without a head it reads its slice of the aggregate: nobody else may write there, and W_t > 0."""
        if self.has_head:
            return
        if bool((process.cumulative(self.name) == 0).any()):
            raise ValueError(f"{self.name!r} has no head, so its weight must not be 0 at any step")
        for other, rival in others.items():
            if other != self.name and self.shares(rival) and other in process.entering:
                raise ValueError(f"{self.name!r} has no head but shares channels {list(self.span)} with {other!r}")

    def _mean(self, view: View) -> Tensor:
        """The mean of p(x | z_t), (B, *shape)."""
        if self.out is None:
            return self.take(view.aggregate) / view.weight
        if self.start == "nothing":
            return self.out(view.features)
        guess = view.gain * self.take(view.rest if self.reads_rest else view.z)
        return guess + view.variance.sqrt() * self.out(view.features)


class Vector(Continuous):
    """A vector of `size` numbers of about unit scale, such as a point or a representation; shape (B, d)."""

    def __init__(
        self, size: int, channels: slice | None = None, head: bool = True, start: str = "state", tell: bool = False
    ):
        super().__init__((size,), channels, head, start, tell)


class Image(Continuous):
    """An image (B, C, H, W), float in [-1, 1], channels first; any number of channels.

    Args:
        levels: number of values a pixel can have, evenly spaced from -1 to 1 (256 for 8-bit images). The likelihood is then
            the probability of the pixel's bin, a discretised Gaussian; None leaves it a density.
        revealed_by: (picture, mask): names of a masked image and its mask. Where both are given and the mask is 1, the head
            returns the known pixel: it is not predicted, costs no loss, and stays as it is in samples.

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
        if isinstance(value, Tensor) and value.dtype == torch.uint8:
            self.refuse(value, "floating point in [-1, 1], of bytes x / 127.5 - 1")
        super().check(value)
        if value.device.type == "cpu" and value.numel() and float(value.abs().max()) > 1 + 1e-4:
            low, high = float(value.min()), float(value.max())
            raise ValueError(f"{self.name!r} must lie in [-1, 1], got values in [{low:.3g}, {high:.3g}]")

    def join(self, others: Mapping[str, Modality], process: ForwardProcess) -> None:
        """What reveals a picture are pictures of its own shape and a mask of their pixels; see `shown`."""
        super().join(others, process)
        if not self.revealed_by:
            return
        picture, mask = map(others.get, self.revealed_by)
        if getattr(picture, "shape", None) != self.shape or not isinstance(mask, Mask) or mask.size != self.shape[1:]:
            raise ValueError(f"{self.name!r} is revealed by {self.revealed_by}: expected a picture of its shape and a mask")
        rivals = [other for name, other in others.items() if name in process.entering and name not in self.revealed_by]
        self.alone = not any(other is not self and self.shares(other) for other in rivals)

    def rounded(self, value: Tensor) -> Tensor:
        """Images as a file has them: each pixel the nearest of the `levels`; as they are without such."""
        if self.levels is None:
            return value
        return ((value.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round() / (self.levels - 1) * 2 - 1

    def tidy(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The picture that reveals is 0 where its mask is 0."""
        if not self.revealed_by or not set(self.revealed_by) <= set(values):
            return values
        picture, mask = self.revealed_by
        return {**values, picture: torch.where(values[mask].bool(), values[picture], 0.0)}

    def head(self, view: View) -> Pixels:
        """A Gaussian at each pixel; of one that is revealed the mean is the pixel, known."""
        mean, known = self._mean(view), self._revealed(view)
        if known is not None:
            mean = torch.where(known, view.given[self.revealed_by[0]].to(mean.dtype), mean)
        return Pixels(mean, view.variance, known, levels=self.levels)

    def shown(self, state: Tensor, view: View) -> Tensor:
        """Where it is revealed, the best linear guess of the picture: the pixel itself where it is known, else k_t z.

        Where others write into its channels, the state says something of them at every pixel, and stays.
        """
        known = self._revealed(view)
        if known is None or not self.alone:
            return state
        picture, mask = self.revealed_by
        guess = torch.where(known, view.given[picture].to(state.dtype), view.gain * self.take(view.rest))
        return torch.where((view.known[picture] & view.known[mask]).reshape(-1, 1, 1, 1), guess, state)

    def _revealed(self, view: View) -> Tensor | None:
        """(B, 1, H, W) bool: the pixels that are given, as picture and mask are and the mask is 1 there."""
        if not self.revealed_by or not set(self.revealed_by) <= set(view.given):
            return None
        picture, mask = self.revealed_by
        return view.given[mask].bool() & (view.known[picture] & view.known[mask]).reshape(-1, 1, 1, 1)
