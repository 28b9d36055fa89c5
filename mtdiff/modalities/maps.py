"""Modalities with a discrete value at every pixel: label maps (segmentation) and masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.checks import check_ids
from mtdiff.laws import Binary, Categorical
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.label import class_names, simplex_codes


class DenseMap(Modality):
    """What label maps and masks share: a convolutional head of K logits a pixel, and one code per class and pixel.

    Args:
        size: (H, W) of the map, which is that of the space.
        channels: slice of the space's channels that the codes are written to; None is all of it (superposed).
        tell: True lets the backbone be given the map, by an `entrance` of its own (theory 4, rule 3).
    """

    given_as = "map"
    law: type[Categorical] = Categorical

    def __init__(self, size: Sequence[int], channels: slice | None, tell: bool):
        size = tuple(size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (H, W), got {size}")
        super().__init__(channels)
        self.size, self.tell = size, tell

    def build(self, backbone: nn.Module) -> None:
        """Create codes, head and entrance; see `Modality.build`."""
        if self.slice_shape[1:] != self.size:
            raise ValueError(f"{self.name!r} is a map of {self.size}, but its part of the space is {self.slice_shape}")
        codes = self.class_codes(self.slice_shape[0])  # (K, C)
        self.register_buffer("codes", codes)
        self.out = backbone.readout((len(codes), *self.size))
        self.embed = self.entrance(backbone, (len(codes), *self.size))

    def class_codes(self, channels: int) -> Tensor:
        """The code of each class at a pixel, (K, channels)."""
        raise NotImplementedError

    def classes_of(self, value: Tensor) -> Tensor:
        """The value as class ids, (B, H, W) int64."""
        return value.long()

    def code(self, value: Tensor) -> Tensor:
        """The code of the class at each pixel, (B, *slice)."""
        return self.codes[self.classes_of(value)].movedim(-1, 1)

    def condition(self, value: Tensor) -> Tensor:
        """The one-hot map through an `entrance` of the backbone."""
        one_hot = F.one_hot(self.classes_of(value), len(self.codes)).movedim(-1, 1)
        return super().condition(one_hot.to(self.codes.dtype))

    def head(self, view: View) -> Categorical:
        """A class at each pixel, independently: logits (B, K, H, W)."""
        return self.law(self.out(view.features).to(view.z.dtype), self._mix)

    def _mix(self, chances: Tensor) -> Tensor:
        """sum_k p(class k at the pixel) c_k, (B, K, H, W) -> (B, *slice)."""
        return torch.einsum("bkhw,kc->bchw", chances, self.codes.to(chances.dtype))


class LabelMap(DenseMap):
    """A class 0..K-1 at every pixel, such as a segmentation: value (B, H, W) integer.

    E writes the code of the pixel's class, a corner of a simplex in the channels; p(map | z_t) is a softmax at each pixel.

    Args:
        classes: K, at least 2.
        names: K class names, for people; None counts 0..K-1.
        seed: seed of the codes, see `simplex_codes`.

    Source: ours; the codes as for labels (theory 5: unit RMS, centred over the classes).
    """

    def __init__(
        self,
        classes: int,
        size: Sequence[int],
        names: Sequence[str | int] | None = None,
        channels: slice | None = None,
        tell: bool = False,
        seed: int = 0,
    ):
        names = class_names(classes, names)
        super().__init__(size, channels, tell)
        self.classes, self.names, self._seed = classes, names, seed

    def class_codes(self, channels: int) -> Tensor:
        """A simplex in the channels, (K, channels)."""
        return simplex_codes(self.classes, (channels,), self._seed)

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer tensor (B, H, W) of class ids."""
        height, width = self.size
        check_ids(repr(self.name), value, self.classes, f"class ids (B, {height}, {width})", height, width)


class Mask(DenseMap):
    """A binary mask (B, 1, H, W), float or bool, 1 where something is: known, visible, inside.

    E writes +1 or -1 to every channel of its slice; p(mask | z_t) is a Bernoulli at each pixel.

    Source: ours; masks as a modality of masked-image training: Chen et al. 2024.
    """

    law = Binary

    def __init__(self, size: Sequence[int], channels: slice | None = None, tell: bool = False):
        super().__init__(size, channels, tell)

    def class_codes(self, channels: int) -> Tensor:
        """-1 for 0 and +1 for 1, (2, channels)."""
        return torch.tensor([[-1.0], [1.0]]).expand(2, channels).clone()

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is (B, 1, H, W), float or bool, of zeros and ones."""
        height, width = self.size
        known = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
        if not known or tuple(value.shape[1:]) != (1, height, width):
            self.refuse(value, f"a float or bool tensor of zeros and ones (B, 1, {height}, {width})")
        if value.device.type == "cpu" and value.is_floating_point():
            wrong = value[(value != 0) & (value != 1)]
            if len(wrong):
                raise ValueError(f"{self.name!r} has values other than 0 and 1: {wrong.unique().tolist()[:8]}")

    def classes_of(self, value: Tensor) -> Tensor:
        """0 or 1 at each pixel, (B, H, W)."""
        return value[:, 0].long()
