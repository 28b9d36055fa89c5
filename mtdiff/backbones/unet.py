"""The U-Net of diffusion models: residual blocks, attention at chosen resolutions, skips from down to up."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone, Maybe, NoiseLevel, check_map, zero
from mtdiff.checks import check_whole


class UNet(Backbone):
    """U-Net over (C, H, W). From 0.3M parameters at 8x8 to the size of ADM at 64x64 by its arguments alone.

    `UNet((3, 64, 64), base=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8))` has ADM's widths and depth at
    64x64 and 277M parameters; ADM's own 296M include residual blocks where this one has plain strided convolutions.

    Args:
        space: (C, H, W); H and W divisible by 2 once for each level after the first.
        base: channels of the first convolution, and the unit of all widths.
        multipliers: channels of level l are base * multipliers[l]; each level after the first halves H and W.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: heights H at which self-attention follows each residual block (the middle always has one).
        head_channels: channels per attention head, at least (one head where a level has fewer).
        cross: heights at which the network attends to tokens that it is given, after each residual block.
        cells: the pooled vector holds the means of cells x cells parts of the smallest map: 1 forgets what was where.

    Source: Ho et al. 2020; Dhariwal and Nichol 2021, section 3 (scale and shift from the embedding).
    """

    def __init__(
        self,
        space: Sequence[int],
        base: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
        cross: Sequence[int] = (),
        cells: int = 1,
    ):
        super().__init__()
        space = tuple(space)
        check_whole(space=space, base=base, multipliers=multipliers, blocks=blocks, head_channels=head_channels, cells=cells)
        _check_levels(space, multipliers, {"attention": attention, "cross": cross})
        self.space, self.embedding, self.cells = space, 4 * base, cells
        self.pooled = base * multipliers[-1] * cells**2
        self.width, self.attends = base * multipliers[0], bool(cross)
        self.level = NoiseLevel(self.embedding)
        self.enter = nn.Conv2d(space[0], base, 3, padding=1)

        def stage(c_in: int, c_out: int, height: int) -> "Stage":
            heads = max(1, c_out // head_channels) if height in attention else 0
            return Stage(c_in, c_out, self.embedding, heads, dropout, height in cross)

        height, channels, skips = space[1], base, [base]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(Resize(channels, double=False))
                skips.append(channels)
                height //= 2
            for _ in range(blocks):
                self.down.append(stage(channels, base * multiplier, height))
                channels = base * multiplier
                skips.append(channels)
        heads = max(1, channels // head_channels), 0
        self.middle = nn.ModuleList(Stage(channels, channels, self.embedding, each, dropout) for each in heads)
        self.pool_norm = norm(channels)
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage(channels + skips.pop(), base * multiplier, height))
                channels = base * multiplier
            if level:
                self.up.append(Resize(channels, double=True))
                height *= 2
        self.norm = norm(channels)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, z: Tensor, u: Tensor, condition: Maybe = None, context: Maybe = None, tokens: Maybe = None, keep: Maybe = None
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.forward`; map (B, base * multipliers[0], H, W), pooled (B, base * multipliers[-1] * cells**2)."""
        if tokens is not None and not self.attends:
            raise ValueError("this UNet cannot attend to tokens: build it with cross=(height, ...)")
        level = self.level(u)
        level = F.silu(level if condition is None else level + condition)
        h = self.enter(z.contiguous(memory_format=torch.channels_last))
        h = h if context is None else h + context
        skips = [h]
        for layer in self.down:
            h = layer(h, level, tokens, keep)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, level, tokens, keep)
        pooled = F.adaptive_avg_pool2d(F.silu(self.pool_norm(h)), self.cells).flatten(1)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1) if isinstance(layer, Stage) else h, level, tokens, keep)
        return F.silu(self.norm(h)), pooled

    def readout(self, shape: tuple[int, ...]) -> nn.Module:
        """A zero-initialised 3x3 convolution to (B, *shape); ValueError for other sizes than the space's."""
        check_map(self, "write", shape)
        return zero(nn.Conv2d(self.width, shape[0], 3, padding=1)).to(memory_format=torch.channels_last)

    def entrance(self, shape: tuple[int, ...]) -> nn.Module:
        """A 3x3 convolution from (B, *shape) to the first hidden state; ValueError for other sizes than the space's."""
        check_map(self, "take", shape)
        return nn.Conv2d(shape[0], self.enter.out_channels, 3, padding=1).to(memory_format=torch.channels_last)


def _check_levels(space: tuple[int, ...], multipliers: Sequence[int], heights_of: Mapping[str, Sequence[int]]) -> None:
    """Refuse a space that cannot be halved once for each level after the first, and heights that no level has."""
    halvings = 2 ** (len(multipliers) - 1)
    if len(space) != 3 or space[1] % halvings or space[2] % halvings:
        raise ValueError(f"space must be (C, H, W) with H and W divisible by {halvings}, got {space}")
    heights = [space[1] >> level for level in range(len(multipliers))]
    for what, chosen in heights_of.items():
        if not set(chosen) <= set(heights):
            raise ValueError(f"{what} must be among the heights {heights} of the levels, got {tuple(chosen)}")


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with up to 32 groups of at least 4 channels."""
    groups = max(g for g in range(1, min(32, max(1, channels // 4)) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class Stage(nn.Module):
    """Residual block, self-attention if heads > 0, attention to tokens if `cross`. All branches begin as the identity."""

    def __init__(self, c_in: int, c_out: int, embedding: int, heads: int, dropout: float, cross: bool = False):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * c_out)
        self.norm2, self.conv2 = norm(c_out), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out, heads) if heads else None
        self.cross = CrossAttention(c_out, embedding, max(1, heads)) if cross else None

    def forward(self, x: Tensor, level: Tensor, tokens: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, c_in, H, W), (B, embedding), (B, L, embedding), (B, L) -> (B, c_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(level)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        h = h if self.attention is None else self.attention(h)
        return h if self.cross is None else self.cross(h, tokens, keep)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention in several heads, (B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
    q, k, v = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (q, k, v))  # (B, heads, ., C/heads): flash attention
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention over all positions, added to its input."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split over {heads} attention heads")
        self.heads, self.norm = heads, norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, 2)  # (B, HW, C) each
        return x + self.out(attend(q, k, v, self.heads)).transpose(1, 2).reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention of all positions to tokens, added to its input. A learned token of its own says that nothing is given."""

    def __init__(self, channels: int, embedding: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(embedding, 2 * channels)
        self.nothing = nn.Parameter(torch.zeros(1, 1, embedding))
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor | None, keep: Tensor | None) -> Tensor:
        """(B, C, H, W), (B, L, embedding) or None, (B, L) bool or None -> (B, C, H, W)."""
        given, mask = self.nothing.expand(len(x), 1, -1), None
        if tokens is not None:
            given = torch.cat([given, tokens], 1)  # (B, 1 + L, embedding)
            mask = None if keep is None else F.pad(keep, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + L)
        q = self.query(self.norm(x).flatten(2).transpose(1, 2))  # (B, HW, C)
        k, v = self.key_value(given).chunk(2, 2)  # (B, 1 + L, C) each
        return x + self.out(attend(q, k, v, self.heads, mask)).transpose(1, 2).reshape(x.shape)


class Resize(nn.Module):
    """Halve height and width by a strided convolution, or double them by repetition and a convolution."""

    def __init__(self, channels: int, double: bool):
        super().__init__()
        self.double, self.conv = double, nn.Conv2d(channels, channels, 3, stride=1 if double else 2, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2) or (B, C, 2H, 2W); neither level nor tokens are used."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest") if self.double else x)
