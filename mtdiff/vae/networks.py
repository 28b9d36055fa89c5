"""Small networks of a multimodal VAE: from a value to its expert, from the latent to what is drawn."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.laws import Categorical, Gaussian, Law, Pixels
from mtdiff.modalities import Continuous, Image, LabelMap, Modality
from mtdiff.modalities.base import View
from mtdiff.modalities.label import Words
from mtdiff.vae.experts import Normal


def drawn_shape(modality: Modality) -> tuple[int, ...]:
    """Numbers that a decoder says of one example: an image's (C, H, W), the logits of a map (K, H, W) or of words (K, L)."""
    if isinstance(modality, Continuous):
        return modality.shape
    if isinstance(modality, LabelMap):
        return (modality.classes, *modality.size)
    if isinstance(modality, Words):
        return (modality.words, *modality.places)
    kinds = "images, vectors, label maps, labels and captions"
    raise ValueError(f"{modality.name!r}: a multimodal VAE has networks for {kinds}, not for a {type(modality).__name__}")


def numbers(modality: Modality, value: Tensor) -> Tensor:
    """A value as the numbers an encoder sees, (B, *drawn_shape): real ones as they are, ids as one-hot."""
    if isinstance(modality, Continuous):
        return value
    return F.one_hot(value.long(), drawn_shape(modality)[0]).movedim(-1, 1).float()


def pictured(shape: tuple[int, ...]) -> bool:
    """Whether there is a height and a width; both must then be multiples of 4 (else a ValueError)."""
    if len(shape) == 3 and (shape[1] % 4 or shape[2] % 4):
        raise ValueError(f"height and width must be multiples of 4, got {shape}")
    return len(shape) == 3


class Encoder(nn.Module):
    """A value -> its expert N(m_i, 1 / l_i) over the latent: convolutions of 4 x 4 patches, or a layer for words."""

    def __init__(self, modality: Modality, latent: int, width: int):
        super().__init__()
        shape = drawn_shape(modality)
        if pictured(shape):
            patches = nn.Conv2d(shape[0], width, 4, 4), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
            size = width * (shape[1] // 4) * (shape[2] // 4)
        else:
            patches, size = (), torch.Size(shape).numel()
        self.body = nn.Sequential(*patches, nn.Flatten(), nn.Linear(size, 2 * width), nn.SiLU())
        self.out = nn.Linear(2 * width, 2 * latent)

    def forward(self, x: Tensor) -> Normal:
        """Numbers (B, *shape) -> mean and precision (B, d)."""
        mean, free = self.out(self.body(x)).chunk(2, 1)
        return Normal(mean, F.softplus(free) + 1e-4)


class Decoder(nn.Module):
    """Latent -> numbers (B, *shape): a map, a convolution, and patches of 4 x 4 pixels; or two layers for words."""

    def __init__(self, shape: tuple[int, ...], latent: int, width: int):
        super().__init__()
        if pictured(shape):
            start = (width, shape[1] // 4, shape[2] // 4)
            self.body = nn.Sequential(
                *(nn.Linear(latent, 2 * width), nn.SiLU()),
                *(nn.Linear(2 * width, torch.Size(start).numel()), nn.SiLU(), nn.Unflatten(1, start)),
                *(nn.Conv2d(width, 16 * shape[0], 3, padding=1), nn.PixelShuffle(4)),
            )
        else:
            out = nn.Linear(2 * width, torch.Size(shape).numel()), nn.Unflatten(1, shape)
            self.body = nn.Sequential(nn.Linear(latent, 2 * width), nn.SiLU(), *out)

    def forward(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, *shape)."""
        return self.body(z)


class FeedForward(nn.Module):
    """p(x | z) in one pass: a Gaussian about a mean, of one learned variance, or a softmax at each place.

    Its draw is the mean, or the likeliest class, as is usual for such decoders.

    Source: one variance, learned with the rest: Rybkin et al. 2021, second-hand.
    """

    def __init__(self, modality: Modality, latent: int, width: int):
        super().__init__()
        self.continuous, self.image = isinstance(modality, Continuous), isinstance(modality, Image)
        self.network = Decoder(drawn_shape(modality), latent, width)
        if self.continuous:
            self.log_std = nn.Parameter(torch.zeros(()))

    def law(self, z: Tensor) -> Law:
        """p(x | z) for latents (B, d)."""
        x = self.network(z)
        if not self.continuous:
            return Categorical(x)
        variance = (2 * self.log_std).exp().expand(len(x), *[1] * (x.ndim - 1))
        return Pixels(x, variance) if self.image else Gaussian(x, variance)

    def draw(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), or the likeliest classes."""
        law = self.law(z)
        return law.draw() if self.continuous else law.logits.argmax(1)


class Hint(Modality):
    """A latent (B, size) that a diffusion decoder is always given: `Decoder` makes a map of it, which the U-Net sees.

    It never enters the diffused state (its weight has to be 0), and is never read off it. The map has `depth` channels,
    `width` is that of the network which makes it.
    """

    given_as, has_code = "map", False

    def __init__(self, size: int, width: int, depth: int = 4):
        super().__init__()
        self.size, self.width, self.depth = size, width, depth

    def build(self, backbone: nn.Module) -> None:
        """Create the way from the latent to the backbone."""
        if len(self.space) != 3:
            raise ValueError(f"{self.name!r} is given to a network of images, not on {self.space}")
        shape = (self.depth, *self.space[1:])
        self.embed = nn.Sequential(Decoder(shape, self.size, self.width), nn.SiLU(), backbone.entrance(shape))

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is floating point (B, size)."""
        if not value.is_floating_point() or value.shape[1:] != (self.size,):
            self.refuse(value, f"floating point (B, {self.size})")

    def code(self, value: Tensor) -> Tensor:
        """Zeros."""
        return value.new_zeros(len(value), *self.slice_shape)

    def head(self, view: View) -> Gaussian:
        """The prior N(0, I): it is never asked."""
        z = view.z.new_zeros(len(view.z), self.size)
        return Gaussian(z, torch.ones_like(z[:, :1]), encode=self.code)
