"""The paper's convolutional encoder and decoder, at any size.

Submodules carry the names of the released checkpoints (`down.0.block.0.norm1`, ...).
"""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["Decoder", "Encoder", "set_checkpointing"]


def _norm(channels: int, most: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, `most` at most."""
    groups = next(g for g in range(min(most, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class _Block(nn.Module):
    """A block whose activations may be computed anew in the backward pass instead of kept."""

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self.compute, x, use_reentrant=False))
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """Do what the block is for."""
        raise NotImplementedError


class ResidualBlock(_Block):
    """Norm, SiLU, conv, twice, beside a shortcut that is 1×1 where the widths differ."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.nin_shortcut(x) + h)


class AttentionBlock(_Block):
    """One head of self-attention over the H·W places of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def compute(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        h = self.norm(x)
        # an axis for the one head: without it torch takes its slow path
        q, k, v = (part(h).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        return cast(Tensor, x + self.proj_out(h))


class Downsample(nn.Module):
    """Halve the resolution: pad right and bottom by one, then conv 3×3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then conv 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W)."""
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class _Level(nn.Module):
    """The blocks of one resolution, each followed by attention where that is asked for."""

    def __init__(
        self,
        widths: Sequence[int],
        attention: bool,
        groups: int,
        dropout: float,
        **resample: nn.Module,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList(ResidualBlock(a, b, groups, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttentionBlock(b, groups) for _, b in pairs if attention)
        for name, module in resample.items():
            self.add_module(name, module)
        self.resample = next(iter(resample), None)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return cast(Tensor, self.get_submodule(self.resample)(x)) if self.resample else x


def _middle(channels: int, groups: int, dropout: float) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResidualBlock(channels, channels, groups, dropout),
            "attn_1": AttentionBlock(channels, groups),
            "block_2": ResidualBlock(channels, channels, groups, dropout),
        }
    )


class Encoder(nn.Module):
    """Images to feature maps, 2^(levels-1) times smaller.

    Args:
        image_channels: Channels C of the images.
        resolution: Side of the images; only says where `attention` applies.
        channels: Width of the first level.
        multipliers: Width of each level as a multiple of `channels`, highest resolution first.
        blocks: Residual blocks a level.
        attention: Resolutions at which every block is followed by attention.
        middle: Whether block, attention, block follow at the lowest resolution.
        latent_channels: Channels of the result.
        norm_groups: Groups of GroupNorm, at most; the paper has 32. Groups of one channel
            make it forget how bright an image is, so narrow networks want fewer.
        dropout: Dropout inside residual blocks.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        resolution: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle: bool,
        latent_channels: int,
        norm_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = channels
        for level, multiplier in enumerate(multipliers):
            last = level == len(multipliers) - 1
            widths = [width] + [channels * multiplier] * blocks
            width = widths[-1]
            resample = {} if last else {"downsample": Downsample(width)}
            self.down.append(
                _Level(widths, resolution in attention, norm_groups, dropout, **resample)
            )
            resolution = resolution if last else resolution // 2
        self.mid = _middle(width, norm_groups, dropout) if middle else nn.ModuleDict()
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, latent_channels, h, w)."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        for block in self.mid.values():
            x = block(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class Decoder(nn.Module):
    """Feature maps to images: the encoder's mirror with one block more a level.

    Takes the encoder's arguments; no activation follows the last convolution.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        resolution: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle: bool,
        latent_channels: int,
        norm_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        width = channels * multipliers[-1]
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = _middle(width, norm_groups, dropout) if middle else nn.ModuleDict()
        levels: list[nn.Module] = []
        for level in reversed(range(len(multipliers))):
            widths = [width] + [channels * multipliers[level]] * (blocks + 1)
            width = widths[-1]
            here = resolution // 2**level in attention
            resample = {"upsample": Upsample(width)} if level else {}
            levels.append(_Level(widths, here, norm_groups, dropout, **resample))
        self.up = nn.ModuleList(reversed(levels))  # index 0 is the highest resolution
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, latent_channels, h, w) to images (B, C, H, W)."""
        x = self.conv_in(features)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(list(self.up)):
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


def set_checkpointing(module: nn.Module, wanted: bool) -> None:
    """Say whether every block inside a module is computed anew in the backward pass.

    Memory then grows with the number of blocks and no longer with what is inside them, for about
    a third more time.

    Args:
        module: An encoder, a decoder, or what contains them.
        wanted: Whether to do it.

    References:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
        https://arxiv.org/abs/1604.06174.
    """
    for block in module.modules():
        if isinstance(block, _Block):
            block.checkpointing = wanted
