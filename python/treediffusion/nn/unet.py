"""The denoiser's U-Net: residual blocks over a pyramid of maps, and the time embedding.

A residual block is ``x + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale) + shift))``, with the
second norm's scale and shift given by the condition. One linear layer computes them for all blocks
at once, because every block reads the same silu(time + cond): ``project`` is that product and
``body`` is the rest, which is all that a denoising step has to repeat.

The structure is the published one (that of guided diffusion), except that attention lays out its
channels as all q, all k, all v. Norms stay in the dtype of the maps, as compilers fuse them only
then. What is denoised, and what the condition means, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import ConfigError, ShapeError
from ..kernels.cond_silu import cond_silu
from ..kernels.gn_silu import Mode, gn_silu
from .enlarge import Enlarge
from .winograd import Conv3x3

GROUPS = 32


class UNet(nn.Module):
    """Image and embedding in, image out; zero at initialisation.

    Attributes:
        embed_dim: E, width of the embedding.
        image_shape: (C, H, W) of an input.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        config: UNetConfig,
        *,
        out_channels: int | None = None,
        scale_shift: bool = True,
    ) -> None:
        """Builds the network.

        Args:
            image_channels: C.
            image_size: H and W; what the levels do not divide is zero-padded inside.
            config: widths, attention, dropout.
            out_channels: of the output; C unless given.
            scale_shift: blocks scale and shift after the second norm; else they add before it.

        Raises:
            ConfigError: the heads do not divide the width of a level that attends.
        """
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        outputs = image_channels if out_channels is None else out_channels
        self.embed_dim = 4 * config.channels
        self.image_shape = (image_channels, image_size, image_size)
        self.margin = _margin(image_size, 2**last)
        side = image_size + sum(self.margin)
        attends = [
            2**level in config.attention or side // 2**level in config.attention_sides
            for level in range(last + 1)
        ]

        self.stem = Conv3x3(image_channels, widths[0])
        self.down = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            stages = [
                Stage(width if block else skips[-1], width, config, attends[level], scale_shift)
                for block in range(config.blocks)
            ]
            self.down.append(DownLevel(stages, shrink=level < last))
            skips += [width] * (config.blocks + (level < last))

        self.middle = Stage(widths[-1], widths[-1], config, True, scale_shift)
        self.middle_end = Stage(widths[-1], widths[-1], config, False, scale_shift)

        self.up = nn.ModuleList()
        below = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(config.blocks + 1):
                inputs = below + skips.pop()
                stages.append(Stage(inputs, width, config, attends[level], scale_shift))
                below = width
            self.up.append(UpLevel(stages, grow=level > 0))
        self.norm = Norm(widths[0])
        self.head = _zeroed(Conv3x3(widths[0], outputs))

        blocks = [block for block in self.modules() if isinstance(block, ResBlock)]
        self.slices = [block.projected for block in blocks]
        # The default initialisation depends on E alone, so it is that of separate layers.
        self.project = nn.Linear(self.embed_dim, sum(self.slices))

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """The whole network.

        Args:
            x: [B, C, H, W] float, images.
            time: [B, E] float, embedded timesteps; with a condition also [E], one for all images.
            cond: [B, E] float, conditions; None where there are none, or `time` has them in it.

        Returns:
            [B, C_out, H, W] float.
        """
        seen = F.silu(time) if cond is None else cond_silu(time, cond)
        return self.body(x, self.project(seen))

    def body(self, x: Tensor, projection: Tensor) -> Tensor:
        """Everything but the projection.

        Args:
            x: [B, C, H, W] float, images.
            projection: [B, P_tot] float, what `project` gives for silu(time + cond).

        Returns:
            [B, C_out, H, W] float.

        Raises:
            ShapeError: images that are not of the network's size.
        """
        if x.shape[1:] != self.image_shape:
            expected = f"[B, {', '.join(map(str, self.image_shape))}]"
            raise ShapeError("x", got=tuple(x.shape), expected=expected)
        pieces = iter(projection.split_with_sizes(self.slices, dim=1))
        before, after = self.margin
        h: Tensor = self.stem(F.pad(x, (before, after, before, after)))
        skips = [h]
        for level in self.down:
            h = level(h, skips, pieces)
        h = self.middle_end(self.middle(h, next(pieces)), next(pieces))
        for level in self.up:
            h = level(h, skips, pieces)
        h = self.head(self.norm(h))
        _, height, width = self.image_shape
        return h[:, :, before : before + height, before : before + width]


class DownLevel(nn.Module):
    """The stages of one side on the way down, and a strided convolution to the next."""

    def __init__(self, stages: Sequence[Stage], *, shrink: bool) -> None:
        """Takes the stages in order; the last level does not shrink."""
        super().__init__()
        width = stages[-1].width
        self.stages = nn.ModuleList(stages)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1) if shrink else None

    def forward(self, h: Tensor, skips: list[Tensor], pieces: Iterator[Tensor]) -> Tensor:
        """Halves the side; every map on the way is appended to `skips`."""
        for stage in self.stages:
            h = stage(h, next(pieces))
            skips.append(h)
        if self.shrink is not None:
            h = self.shrink(h)
            skips.append(h)
        return h


class UpLevel(nn.Module):
    """The stages of one side on the way up, and an enlargement with a convolution."""

    def __init__(self, stages: Sequence[Stage], *, grow: bool) -> None:
        """Takes the stages in order; the level of the image's own side does not grow."""
        super().__init__()
        width = stages[-1].width
        self.stages = nn.ModuleList(stages)
        self.grow = Enlarge(width, width, 3, padding=1) if grow else None

    def forward(self, h: Tensor, skips: list[Tensor], pieces: Iterator[Tensor]) -> Tensor:
        """Doubles the side; every stage takes the latest map off `skips`."""
        for stage in self.stages:
            h = stage(torch.cat([h, skips.pop()], dim=1), next(pieces))
        if self.grow is not None:
            h = self.grow(h)
        return h


class Stage(nn.Module):
    """A residual block, and attention where the level attends."""

    def __init__(
        self, inputs: int, width: int, config: UNetConfig, attend: bool, scale_shift: bool
    ) -> None:
        """Builds the block, from `inputs` to `width` channels, and the attention."""
        super().__init__()
        self.width = width
        self.block = ResBlock(inputs, width, dropout=config.dropout, scale_shift=scale_shift)
        self.attention = Attention(width, config.heads) if attend else None

    def forward(self, h: Tensor, piece: Tensor) -> Tensor:
        """[B, C_in, H, W] and the block's slice [B, P] of the projection to [B, C_out, H, W]."""
        h = self.block(h, piece)
        return h if self.attention is None else self.attention(h)


class ResBlock(nn.Module):
    """Two convolutions and a skip, conditioned between them.

    Attributes:
        projected: how many numbers of the projection the block reads.
    """

    def __init__(self, inputs: int, width: int, *, dropout: float, scale_shift: bool) -> None:
        """Builds the layers, from `inputs` to `width` channels; a 1x1 skip where these differ."""
        super().__init__()
        self.projected = 2 * width if scale_shift else width
        self.norm1 = Norm(inputs)
        self.conv1 = Conv3x3(inputs, width)
        self.norm2 = Norm(width, mode="scale_shift" if scale_shift else "add")
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(Conv3x3(width, width))
        self.skip = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        """[B, C_in, H, W] and [B, P] to [B, C_out, H, W]."""
        h = self.norm2(self.conv1(self.norm1(x)), piece)
        h = self.conv2(self.dropout(h))
        out: Tensor = self.skip(x) + h
        return out


class Norm(nn.GroupNorm):
    """A group norm, what the condition does to it, and the activation, as one operation."""

    def __init__(self, width: int, *, mode: Mode = "none", silu: bool = True) -> None:
        """Builds the norm; `mode` and `silu` are those of `kernels.gn_silu`."""
        super().__init__(GROUPS, width)
        self.mode: Mode = mode
        self.silu = silu

    def forward(self, x: Tensor, piece: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and the condition's [B, P], if the mode has one, to [B, C, H, W]."""
        return gn_silu(
            x, self.weight, self.bias, groups=self.num_groups, piece=piece, mode=self.mode,
            silu=self.silu, eps=self.eps,
        )  # fmt: skip


class Attention(nn.Module):
    """Every pixel attends to every other, by scaled dot products, with a residual.

    Channels are cut before pixels are moved, which is a mere view of a channels-last map.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Builds the layers.

        Raises:
            ConfigError: the heads do not divide the width.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(
                "heads", got=heads, expected=f"a divisor of {width}, the width of a level"
            )
        self.heads = heads
        self.norm = Norm(width, silu=False)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        batch, width, rows, columns = x.shape
        heads = (batch, self.heads, width // self.heads, rows * columns)
        q, k, v = (
            part.reshape(heads).transpose(2, 3) for part in self.qkv(self.norm(x)).chunk(3, dim=1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(mixed.transpose(2, 3).reshape(x.shape))
        return out


class TimeEmbedding(nn.Module):
    """A timestep as a vector: an MLP of [cos(t w), sin(t w)], w_k = 10000^(-k / (C/2))."""

    def __init__(self, channels: int) -> None:
        """Builds the MLP.

        Args:
            channels: C, number of waves, an even number; the embedding has 4 C.
        """
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(channels, 4 * channels)
        self.second = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        """t: [B] int64, timesteps. Returns [B, E] float."""
        half = self.channels // 2
        steps = torch.arange(half, device=t.device, dtype=torch.float32)
        # Half precision cannot tell neighbouring timesteps apart, so the waves are always float32.
        angle = t.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / half))
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        out: Tensor = self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))
        return out

    def table(self, timesteps: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Embeddings of the S timesteps of a sampling run, on the device of the weights.

        Args:
            timesteps: [S] int.

        Returns:
            [S, E] float.
        """
        return self.forward(torch.as_tensor(timesteps, device=self.first.weight.device))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all parameters zero, so that its residual branch begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _margin(side: int, factor: int) -> tuple[int, int]:
    """Zeros before and after each row so that `factor` divides it: to the next power of two."""
    if side % factor == 0:
        return 0, 0
    extra = max(1 << (side - 1).bit_length(), factor) - side
    return extra // 2, extra - extra // 2
