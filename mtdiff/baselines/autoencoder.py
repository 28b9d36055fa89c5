"""A small convolutional autoencoder of pictures: what a latent space of fewer numbers does to what is sent through it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.fit import fit


class Autoencoder(nn.Module):
    """Pictures (B, 3, s, s) to latents (B, 3, s / 2, s / 2), a quarter of the numbers, and back; s even.

    Args:
        width: channels of the layers between.

    Source: ours, as small as can be; latent diffusion draws in such a space (Rombach et al. 2022).
    """

    def __init__(self, width: int = 24):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 4, 2, 1), nn.GELU(), nn.Conv2d(width, 3, 1)
        )
        self.up = nn.Sequential(
            nn.Conv2d(3, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def encode(self, picture: Tensor) -> Tensor:
        """The latents; ValueError for anything but pictures (B, 3, H, W) of even height and width."""
        if picture.ndim != 4 or picture.shape[1] != 3 or picture.shape[2] % 2 or picture.shape[3] % 2:
            raise ValueError(f"expected pictures (B, 3, H, W) of even height and width, got {tuple(picture.shape)}")
        return self.down(picture)

    def forward(self, picture: Tensor) -> Tensor:
        """The round trip, (B, 3, H, W)."""
        return self.up(self.encode(picture))


def fit_autoencoder(pictures: Tensor, steps: int = 600, batch: int = 32, width: int = 24, seed: int = 0) -> Autoencoder:
    """An autoencoder of pictures (N, 3, s, s) in [-1, 1], fitted by the mean square error; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(width)
    batches = (pictures[torch.randint(len(pictures), (batch,), generator=generator)] for _ in range(steps))
    fit(model, batches, lambda model, part, generator: F.mse_loss(model(part), part), steps, lr=3e-3)
    return model.requires_grad_(False)
