"""The U-Net of the library diffusers as a backbone."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone, Maybe, check_map, zero
from mtdiff.backbones.unet import norm
from mtdiff.optional import needed


class DiffusersUNet(Backbone):
    """`UNet2DModel` of diffusers, between an entrance and readouts of ours. The defaults have 1.2M parameters.

    Args:
        space: (C, H, W).
        block_out_channels: widths of the levels.
        down_block_types: kinds of blocks on the way down, those without an image of their own.
        up_block_types: kinds of blocks on the way up.
        options: all else that `UNet2DModel` takes.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: a space or blocks that do not fit.
    """

    def __init__(
        self,
        space: Sequence[int],
        block_out_channels: Sequence[int] = (32, 64, 64),
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types: Sequence[str] = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        resnet_time_scale_shift: str = "scale_shift",
        **options,
    ):
        super().__init__()
        with needed("DiffusersUNet", "diffusers"):
            from diffusers import UNet2DModel
        halvings = 2 ** (len(block_out_channels) - 1)
        if len(space) != 3 or space[1] % halvings or space[2] % halvings:
            raise ValueError(f"space must be (C, H, W) with H and W divisible by {halvings}, got {tuple(space)}")
        if skipping := [kind for kind in (*down_block_types, *up_block_types) if "Skip" in kind]:
            raise ValueError(f"DiffusersUNet has no place for the images of {skipping}")
        self.net = UNet2DModel(
            in_channels=space[0], out_channels=1, block_out_channels=tuple(block_out_channels),
            down_block_types=tuple(down_block_types), up_block_types=tuple(up_block_types),
            layers_per_block=layers_per_block, norm_num_groups=norm_num_groups,
            resnet_time_scale_shift=resnet_time_scale_shift, **options,
        )  # fmt: skip
        self.net.conv_out = nn.Identity()  # readouts take its place
        self.space, self.width, self.pooled = tuple(space), block_out_channels[0], block_out_channels[-1]
        self.embedding = self.net.time_embedding.linear_2.out_features
        self.pool_norm = norm(self.pooled)

    def forward(
        self, z: Tensor, u: Tensor, condition: Maybe = None, context: Maybe = None, tokens: Maybe = None, keep: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.forward`; `UNet2DModel.forward`, at step 1000 u, with what we add. ValueError for tokens."""
        if tokens is not None:
            raise ValueError("a DiffusersUNet cannot attend to tokens: use a DiT, or a UNet with cross=...")
        level = self.net.time_embedding(self.net.time_proj(1000 * u).to(z.dtype))
        level = level if condition is None else level + condition
        h = self.net.conv_in(z)
        h = h if context is None else h + context
        skips = [h]
        for block in self.net.down_blocks:
            h, passed = block(h, level)
            skips += passed
        h = h if self.net.mid_block is None else self.net.mid_block(h, level)
        pooled = F.silu(self.pool_norm(h)).mean((2, 3))
        for block in self.net.up_blocks:
            count = len(block.resnets)
            h, skips = block(h, tuple(skips[-count:]), level), skips[:-count]
        return self.net.conv_act(self.net.conv_norm_out(h)), pooled

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised 3x3 convolution to (B, *shape); ValueError for other sizes than the space's."""
        check_map(self, "write", shape)
        return zero(nn.Conv2d(self.width, shape[0], 3, padding=1))

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """A 3x3 convolution from (B, *shape) to the first hidden state; ValueError for other sizes than the space's."""
        check_map(self, "take", shape)
        return nn.Conv2d(shape[0], self.width, 3, padding=1)
