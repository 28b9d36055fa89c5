"""Real-valued data that enter the diffusion space by an encoder: an isometry, or a learned generator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import vector_head
from mtdiff.checks import check_choice
from mtdiff.laws import CodedGaussian, Gaussian
from mtdiff.modalities.base import View
from mtdiff.modalities.continuous import Continuous
from mtdiff.modalities.generators import generator
from mtdiff.process import per_example


def _random(size: int, shape: Sequence[int], seed: int) -> Tensor:
    """Orthonormal random directions as columns, (n, size) for a space of n numbers."""
    source = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(torch.Size(shape).numel(), size, dtype=torch.float64, generator=source)).Q


def _tiles(size: int, shape: Sequence[int], _: int) -> Tensor:
    """Columns that are blocks of an image (C, H, W), each a chess board of -1 and 1 over its norm: (C H W, size)."""
    if len(shape) != 3 or min(shape[1:]) < (side := math.ceil(size**0.5)):
        raise ValueError(f"{size} tiles need an image of at least {math.ceil(size**0.5)} pixels a side, got {tuple(shape)}")
    height, width = (torch.arange(pixels) for pixels in shape[1:])
    tiles = torch.zeros(*shape[1:], side**2, dtype=torch.float64)
    block = (height * side // shape[1])[:, None] * side + (width * side // shape[2])[None]
    board = 1.0 - 2.0 * ((height[:, None] + width[None]) % 2)
    tiles = tiles.scatter(2, block[..., None], board[..., None].double())[..., :size]
    tiles = tiles.expand(shape[0], *tiles.shape).flatten(0, 2)
    return tiles / tiles.norm(dim=0)


FRAMES = {"lift": _random, "tiles": _tiles}
"""Orthonormal columns (n, d) by which d numbers are lifted into a space of n."""
ENCODERS = (*FRAMES, "generator")


class Encoded(Continuous):
    """Data of another shape than their part of the space: a representation (d,), a depth map (1, H, W). E(x) = g(x).

    "lift" is fixed and linear, E(x) = s A x with A^T A = I and s^2 = dim Z / dim x, so that codes have the RMS of the data.
    For x ~ N(0, I) the head starts from its posterior mean; the expected code is E of the mean. The columns of A are random
    directions, which no convolution can tell apart; of "tiles", which else is the same, each is a block of the image in the
    pattern of a chess board: a convolution sees which number it belongs to, and images have little of that pattern.

    "generator" is learned, and its output is standardised, each coordinate over the batch (by running statistics in
    evaluation). The code of the mean is not the mean of the code (theory 5), so the head has two outputs: the mean of x with
    variance 1 / (1 + SNR_t) + spread^2, and the expected code, which starts from k_t z_t (`mtdiff.laws.CodedGaussian`).

    Args:
        shape: (d,), or (C, H, W) with the height and width of the space.
        tell: True lets the backbone be given the value: vectors by a linear embedding, images by an `entrance`.
        sense: True tells the backbone the posterior mean of a lifted vector in the state, by a linear embedding, and takes
            its code out: a convolution can neither form the d sums over dim Z numbers, nor look past their pattern.
        width: width of the generator.
        spread: standard deviation in the data that the code is not asked to tell, for "generator".
        seed: seed of the lift.

    Source: encoders that map into the diffusion space: Chen et al. 2024; both forms are ours (theory 1, 5).
    """

    def __init__(
        self,
        shape: Sequence[int],
        encoder: str = "generator",
        channels: slice | None = None,
        start: str = "state",
        tell: bool = False,
        width: int = 32,
        spread: float = 0.1,
        seed: int = 0,
        sense: bool = False,
    ):
        check_choice("encoder", encoder, ENCODERS)
        if len(shape) not in (1, 3):
            raise ValueError(f"shape must be (d,) or (C, H, W), got {tuple(shape)}")
        if not spread > 0:
            raise ValueError(f"spread must be positive, got {spread}")
        if sense and (encoder == "generator" or len(shape) != 1):
            raise ValueError(f"only a vector that is lifted can be sensed in the state, got {encoder!r} of {tuple(shape)}")
        super().__init__(shape, channels, True, start, tell)
        self.encoder, self.width, self.spread, self.seed, self.sense = encoder, width, spread, seed, sense
        self.given_as = "vector" if len(self.shape) == 1 else "map"
        self.size, self.linear = torch.Size(self.shape).numel(), encoder != "generator"

    def build(self, backbone: nn.Module) -> None:
        """Create encoder, heads and embedding; see `Modality.build`."""
        code_size, self.from_map = torch.Size(self.slice_shape).numel(), len(self.shape) == len(self.slice_shape) == 3
        if self.from_map and self.shape[1:] != self.slice_shape[1:]:
            raise ValueError(f"{self.name!r} of {self.shape} needs the height and width of the space {self.slice_shape}")
        if self.linear and code_size < self.size:
            raise ValueError(f"{self.name!r} of {self.shape} cannot be lifted into a smaller space {self.slice_shape}")
        if self.linear:
            self.register_buffer("frame", FRAMES[self.encoder](self.size, self.slice_shape, self.seed).float())
            self.scale = (code_size / self.size) ** 0.5
        else:
            self.network = generator(self.shape, self.slice_shape, self.width)
            self.standard = nn.BatchNorm1d(code_size, eps=1e-10, affine=False)  # no room to shrink
            self.code_out = backbone.readout(self.slice_shape)
        self.out = backbone.readout(self.shape) if self.from_map else vector_head(backbone, self.size)
        self.embed = self.entrance(backbone, self.shape)
        if self.sense:
            self.notice = nn.Linear(self.size, backbone.embedding)

    def code(self, value: Tensor) -> Tensor:
        """E(x), (B, *slice)."""
        if self.linear:
            flat = self.scale * value.flatten(1) @ self.frame.to(value.dtype).T
        else:
            flat = self.standard(self.network(value.to(next(self.network.parameters()).dtype)).flatten(1))
        return flat.unflatten(1, self.slice_shape)

    def head(self, view: View) -> Gaussian:
        """N(mean, what the code leaves open); for a generator with an expected code of its own."""
        free = self.out(view.features if self.from_map else view.pooled).to(view.z.dtype)  # (B, *shape) or (B, d)
        z = self.take(view.rest if self.reads_rest else view.z)
        gain, variance = view.gain.flatten(1), view.variance.flatten(1)
        if self.linear:
            left = self._lifted(variance)
            mean = (self._posterior(z, gain, variance) + left.sqrt() * free.flatten(1)).unflatten(1, self.shape)
            return Gaussian(mean, per_example(left, mean), encode=self.code)
        code = view.gain * z + view.variance.sqrt() * self.code_out(view.features)
        mean, left = free.unflatten(1, self.shape) if free.ndim == 2 else free, variance + self.spread**2
        return CodedGaussian(mean, per_example(left, mean), encode=self.code, code=code, code_variance=view.variance)

    def sensed(self, rest: Tensor, gain: Tensor, variance: Tensor) -> Gaussian:
        """The posterior by the code alone."""
        gain, variance = gain.flatten(1), variance.flatten(1)
        mean = self._posterior(self.take(rest), gain, variance)
        return Gaussian(mean, self._lifted(variance), encode=self.code)

    def hint(self, law: Gaussian) -> Tensor:
        """The posterior mean, embedded."""
        return self.notice(law.mean.to(self.notice.weight.dtype))

    def _posterior(self, z: Tensor, gain: Tensor, variance: Tensor) -> Tensor:
        """E[x | z] for x ~ N(0, I) alone in the slice z, (B, d): A^T z / s sees x through s^2 times the SNR."""
        return gain * self.scale * self._lifted(variance) / variance * (z.flatten(1) @ self.frame.to(z.dtype))

    def _lifted(self, variance: Tensor) -> Tensor:
        """1 / (1 + s^2 SNR) from 1 / (1 + SNR): the lift repeats each number s^2 times."""
        return variance / (variance + self.scale**2 * (1 - variance))
