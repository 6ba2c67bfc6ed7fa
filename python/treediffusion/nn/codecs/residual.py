"""The published "cnn2": pre-activated residual blocks for colour images, in both forms of TreeVAE.

    block(x) = shortcut(x) + 0.1 conv(act(norm(... conv(act(norm(x))))))

The CNN form has blocks of three convolutions and maps of R x R latents; the MLP form has blocks of
two, and one dense layer between its vectors and maps of 4 x 4. The encoder is a stack of one. A CPU
runs one leaf's whole decoder after another's, whose maps then stay in its caches.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import TreeConfig
from ...errors import ConfigError
from ..activation import make_activation
from ..stacked import StackedConv, StackedConvTranspose, StackedNorm, apply_rows

STEM = 8
"""Width next to the image in the CNN form."""
FLAT_WIDTHS = (32, 64, 128, 256, 256)
"""Widths in the MLP form from the image on; images of 32 pixels stop before the last."""
FLAT_SIDE = 4
BRANCH = 0.1


class ResidualBlock(nn.Module):
    """Pre-activated 3x3 convolutions beside a shortcut, of every row: [B, n, C, S, S]."""

    def __init__(self, rows: int, widths: tuple[int, ...], config: TreeConfig) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.activation = make_activation(config)
        self.norms = nn.ModuleList(StackedNorm(rows, width) for width in widths[:-1])
        self.convs = nn.ModuleList(StackedConv(rows, a, b, bias=True) for a, b in pairwise(widths))
        self.shortcut = StackedConv(rows, first, last, kernel=1) if first != last else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S, S]."""
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(self.activation(norm(y)))
        return torch.add(x if self.shortcut is None else self.shortcut(x), y, alpha=BRANCH)


class Down(nn.Module):
    """Halves the side of the encoder's map, [B, 1, C, S, S], by a convolution or by averaging."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.layer: nn.Module = (
            nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            if learned
            else nn.AvgPool2d(3, stride=2, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 1, C, S, S] -> [B, 1, C, S/2, S/2]."""
        y: Tensor = self.layer(x.flatten(1, 2))
        return y[:, None]


class Up(nn.Module):
    """Doubles the side of every leaf's map by a transposed convolution or by interpolation."""

    def __init__(self, leaves: int, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.conv = (
            StackedConvTranspose(leaves, channels, channels, kernel=4, stride=2)
            if learned
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, L, C, S, S] -> [B, L, C, 2 S, 2 S]."""
        if self.conv is not None:
            y: Tensor = self.conv(x)
            return y
        y = F.interpolate(x.flatten(1, 2), scale_factor=2, mode="bilinear")
        return y.view(*x.shape[:3], *y.shape[-2:])


class Trunk(nn.Module):
    """Image to a map of the last width: a convolution, then blocks with halvings in between."""

    def __init__(
        self, widths: tuple[int, ...], image_channels: int, config: TreeConfig, *, learned: bool
    ) -> None:
        super().__init__()
        self.stem = StackedConv(1, image_channels, widths[0], bias=True)
        layers: list[nn.Module] = [_block(1, widths[0], widths[0], config)]
        for width, out_width in pairwise(widths):
            layers += [Down(width, learned=learned), _block(1, width, out_width, config)]
        self.layers = nn.Sequential(*layers)
        self.norm = StackedNorm(1, widths[-1])
        self.activation = make_activation(config)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] float in 0..1 -> [B, widths[-1], S, S]."""
        y: Tensor = self.activation(self.norm(self.layers(self.stem(images[:, None]))))
        return y.flatten(1, 2)


class Crown(nn.Module):
    """Every leaf's map to its image: blocks with doublings in between, then a convolution."""

    def __init__(
        self,
        leaves: int,
        widths: tuple[int, ...],
        image_channels: int,
        config: TreeConfig,
        *,
        learned: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, out_width in pairwise(widths):
            layers += [
                _block(leaves, width, out_width, config),
                Up(leaves, out_width, learned=learned),
            ]
        layers += [
            _block(leaves, widths[-1], widths[-1], config),
            StackedNorm(leaves, widths[-1]),
            make_activation(config),
            # The same maps at stride 1, but the framework starts them from other ranges.
            StackedConvTranspose(leaves, widths[-1], image_channels, kernel=3, stride=1, bias=True)
            if config.is_mlp
            else StackedConv(leaves, widths[-1], image_channels, bias=True),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        """y: [B, L, widths[0], S, S] -> [B, L, C, H, W]."""
        return apply_rows(self.layers, y)


class Encoder(Trunk):
    """The CNN form's encoder: [B, C, H, W] -> [B, C_b, R, R]."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        widths = _line(STEM, config.channels, _halvings(image_size, config.latent_size))
        super().__init__(widths, image_channels, config, learned=config.resize == "learned")


class LeafDecoders(Crown):
    """The CNN form's decoders: [B, L, Z, R, R] -> [B, L, C, H, W]."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        widths = _line(config.latent_channels, STEM, _halvings(image_size, config.latent_size))
        learned = config.resize == "learned"
        super().__init__(leaves, widths, image_channels, config, learned=learned)


class FlatEncoder(nn.Module):
    """The MLP form's encoder: [B, C, H, W] -> [B, 16 * 256, 1, 1]."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        widths = _flat_widths(image_size)
        _check_width(config, FLAT_SIDE**2 * widths[-1])
        self.trunk = Trunk(widths, image_channels, config, learned=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] float in 0..1 -> [B, 4096, 1, 1]."""
        y: Tensor = self.trunk(images)
        return y.flatten(1)[:, :, None, None]


class FlatDecoders(nn.Module):
    """The MLP form's decoders: [B, L, Z, 1, 1] -> [B, L, C, H, W]."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        super().__init__()
        widths = _flat_widths(image_size)[::-1]
        maps = FLAT_SIDE**2 * widths[0]
        self.spread = StackedConv(leaves, config.latent_channels, maps, kernel=1, bias=True)
        self.crown = Crown(leaves, widths, image_channels, config, learned=False)

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, L, Z, 1, 1] -> [B, L, C, H, W], before the likelihood's sigmoid, if any."""
        y: Tensor = self.spread(z)
        images: Tensor = self.crown(y.reshape(*z.shape[:2], -1, FLAT_SIDE, FLAT_SIDE))
        return images


def _block(rows: int, width: int, out_width: int, config: TreeConfig) -> ResidualBlock:
    """One convolution less in the MLP form."""
    first = (width,) if config.is_mlp else (width, width)
    return ResidualBlock(rows, (*first, min(width, out_width), out_width), config)


def _line(first: int, last: int, steps: int) -> tuple[int, ...]:
    return tuple(int(width) for width in np.linspace(first, last, steps + 1))


def _flat_widths(image_size: int) -> tuple[int, ...]:
    steps = _halvings(image_size, FLAT_SIDE)
    if steps >= len(FLAT_WIDTHS):
        raise ConfigError(
            "image size",
            got=image_size,
            expected=f"at most {FLAT_SIDE * 2 ** (len(FLAT_WIDTHS) - 1)} pixels for mlp_cnn2",
        )
    return FLAT_WIDTHS[: steps + 1]


def _halvings(image_size: int, side: int) -> int:
    """How often an image's side is halved down to `side`."""
    steps = max(image_size // side, 1).bit_length() - 1
    if side << steps != image_size:
        raise ConfigError(
            "image size",
            got=image_size,
            expected=f"{side} times a power of two, as cnn2 halves it down to {side}",
            hint="resize the images, or change tree.latent_size",
        )
    return steps


def _check_width(config: TreeConfig, width: int) -> None:
    if (config.encoder_channels or config.channels) != width:
        raise ConfigError(
            "tree.encoder_channels",
            got=config.encoder_channels or config.channels,
            expected=f"{width}, what {config.codec} gives for these images",
        )
