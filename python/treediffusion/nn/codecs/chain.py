"""The published "cnn1": chains of convolutions for grey images.

Sides and widths lie on a line from the image to the latent map, and kernels are chosen so that each
map has exactly the planned side; every leaf has its own mirror image of the encoder.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from ...config import TreeConfig
from ...errors import ConfigError
from ..activation import make_activation
from ..stacked import StackedConvTranspose, StackedNorm


class Encoder(nn.Module):
    """Image to the first bottom-up map: [B, C, H, W] -> [B, C_b, R, R]."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        sizes = codec_sizes(config, image_size)
        channels = _line(config, image_channels, config.channels, len(sizes))
        layers: list[nn.Module] = []
        for (width, out_width), (size, out_size) in zip(
            pairwise(channels), pairwise(sizes), strict=True
        ):
            stride = max(size // out_size, 1)
            kernel = size - stride * (out_size - 1) + 2
            conv = nn.Conv2d(width, out_width, kernel, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out_width), make_activation(config)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] float in 0..1 -> [B, C_b, R, R]."""
        y: Tensor = self.layers(images)
        return y


class LeafDecoders(nn.Module):
    """Every leaf's decoder: [B, L, Z, R, R] -> [B, L, C, H, W] logits or pixels."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        super().__init__()
        sizes = codec_sizes(config, image_size)[::-1]
        channels = _line(config, config.latent_channels, image_channels, len(sizes), mirrored=True)
        self.activation = make_activation(config)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for (width, out_width), (size, out_size) in zip(
            pairwise(channels), pairwise(sizes), strict=True
        ):
            stride = max(out_size // size, 1)
            kernel = out_size - stride * (size - 1) + 2
            self.convs.append(
                StackedConvTranspose(leaves, width, out_width, kernel=kernel, stride=stride)
            )
            self.norms.append(StackedNorm(leaves, out_width))
        del self.norms[-1]

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, L, Z, R, R] -> [B, L, C, H, W], before the likelihood's sigmoid, if it has one."""
        for conv, norm in zip(self.convs, self.norms, strict=False):
            z = self.activation(norm(conv(z)))
        images: Tensor = self.convs[-1](z)
        return images


def codec_sizes(config: TreeConfig, image_size: int) -> tuple[int, ...]:
    """Sides of the encoder's maps, image first, latent side last.

    Raises:
        ConfigError: configured sizes do not begin with the image's side, grow, or are too few.
    """
    if config.codec_sizes is None:
        return tuple(int(size) for size in np.linspace(image_size, config.latent_size, 4))
    sizes = config.codec_sizes
    if len(sizes) < 2 or sizes[0] != image_size or any(a < b for a, b in pairwise(sizes)):
        raise ConfigError(
            "tree.codec_sizes",
            got=sizes,
            expected=f"two or more shrinking sides from {image_size} on",
        )
    return sizes


def _line(
    config: TreeConfig, first: int, last: int, points: int, *, mirrored: bool = False
) -> tuple[int, ...]:
    """Widths of the maps: as configured, or whole numbers on a line."""
    inner = config.codec_channels
    if inner is None:
        return tuple(int(width) for width in np.linspace(first, last, points))
    return (first, *(inner[::-1] if mirrored else inner), last)
