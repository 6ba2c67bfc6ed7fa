"""Encoders and decoders of TreeVAE's MLP form, whose latents are vectors: R = 1.

    mlp           vectors, such as word weights of texts: dense layers
    mlp_cnn1      grey images of 28 pixels: three strided convolutions
    mlp_omniglot  handwritten characters of 28 pixels: six convolutions

All layers but the last are normalised and activated. Stacked layers see vectors as maps of one
pixel, where a convolution of one pixel is the dense layer.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ...config import TreeConfig
from ...errors import ConfigError
from ..activation import make_activation
from ..stacked import StackedConv, StackedConvTranspose, StackedNorm

GREY_SIDE = 28


class VectorEncoder(nn.Module):
    """[B, D, 1, 1] -> [B, h, 1, 1] through widths 4h, 4h, 2h, h."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        if image_size != 1:
            raise ConfigError(
                "tree.codec",
                got=f"mlp for images of {image_size} pixels' side",
                expected="vectors",
                hint="take a codec for images, or give the images as flat vectors",
            )
        h = _width(config)
        widths = (image_channels, 4 * h, 4 * h, 2 * h, h)
        self.layers = _chain(config, *(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, D, 1, 1] float in 0..1 -> [B, h, 1, 1]."""
        y: Tensor = self.layers(x)
        return y


class GreyEncoder(nn.Module):
    """[B, C, 28, 28] -> [B, h, 1, 1]: 28 -> 13 -> 6 -> 2 pixels, h / 4 channels at the end."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        _check_grey(config, image_size)
        h = _width(config)
        widths = (image_channels, h // 16, h // 8, h // 4)
        convs = (nn.Conv2d(a, b, 3, stride=2, bias=False) for a, b in pairwise(widths))
        self.layers = _chain(config, *convs)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, 28, 28] float in 0..1 -> [B, h, 1, 1]."""
        y: Tensor = self.layers(images)
        return y.flatten(1)[:, :, None, None]


class StrokeEncoder(nn.Module):
    """[B, C, 28, 28] -> [B, 128, 1, 1]: 28 -> 27 -> 13 -> 12 -> 6 -> 5 -> 1 pixels."""

    def __init__(self, config: TreeConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        _check_grey(config, image_size)
        if _width(config) != 128:
            raise ConfigError("tree.channels", got=_width(config), expected="128 for mlp_omniglot")
        self.layers = _chain(
            config,
            nn.Conv2d(image_channels, 32, 4, padding=1, bias=False),
            nn.Conv2d(32, 32, 4, stride=2, padding=1, bias=False),
            nn.Conv2d(32, 64, 4, padding=1, bias=False),
            nn.Conv2d(64, 64, 4, stride=2, padding=1, bias=False),
            nn.Conv2d(64, 128, 4, padding=1, bias=False),
            nn.Conv2d(128, 128, 5, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, 28, 28] float in 0..1 -> [B, 128, 1, 1]."""
        y: Tensor = self.layers(images)
        return y


class Decoders(nn.Module):
    """A chain of stacked layers after a dense one; all but the last normalised and activated."""

    def __init__(
        self,
        leaves: int,
        config: TreeConfig,
        maps: tuple[int, int],
        layers: list[StackedConv | StackedConvTranspose],
        widths: list[int],
    ) -> None:
        """Builds the chain.

        Args:
            leaves: L.
            config: latent channels and activation.
            maps: (C, S) of the maps that the dense layer makes.
            layers: what follows it.
            widths: channels of the results of all layers but the last.
        """
        super().__init__()
        channels, side = maps
        self.maps = (channels, side, side)
        flat = channels * side * side
        self.spread = StackedConv(leaves, config.latent_channels, flat, kernel=1)
        self.spread_norm = StackedNorm(leaves, flat)
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(StackedNorm(leaves, width) for width in widths)
        self.activation = make_activation(config)

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, L, Z, 1, 1] -> [B, L, C, H, W], before the likelihood's sigmoid, if any."""
        y = self.activation(self.spread_norm(self.spread(z)))
        y = y.reshape(*z.shape[:2], *self.maps)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            y = self.activation(norm(layer(y)))
        images: Tensor = self.layers[-1](y)
        return images


class VectorDecoders(Decoders):
    """[B, L, Z, 1, 1] -> [B, L, D, 1, 1] through widths h, 2h, 4h, 4h."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        h = _width(config)
        widths = [2 * h, 4 * h, 4 * h]
        layers = [StackedConv(leaves, a, b, kernel=1) for a, b in pairwise([h, *widths])]
        last = StackedConv(leaves, widths[-1], image_channels, kernel=1, bias=True)
        super().__init__(leaves, config, (h, 1), [*layers, last], widths)


class GreyDecoders(Decoders):
    """[B, L, Z, 1, 1] -> [B, L, C, 28, 28]: 3 -> 7 -> 14 -> 28 pixels."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        _check_grey(config, image_size)
        h = _width(config)
        layers: list[StackedConv | StackedConvTranspose] = [
            StackedConvTranspose(leaves, h // 4, h // 8, kernel=3, stride=2, padding=0),
            StackedConvTranspose(leaves, h // 8, h // 16, kernel=3, stride=2, output_padding=1),
            StackedConvTranspose(
                leaves, h // 16, image_channels, kernel=3, stride=2, output_padding=1, bias=True
            ),
        ]
        super().__init__(leaves, config, (h // 4, 3), layers, [h // 8, h // 16])


class StrokeDecoders(Decoders):
    """[B, L, Z, 1, 1] -> [B, L, C, 28, 28]: 2 -> 7 -> 6 -> 14 -> 13 -> 29 -> 28 pixels."""

    def __init__(
        self, leaves: int, config: TreeConfig, image_channels: int, image_size: int
    ) -> None:
        _check_grey(config, image_size)
        layers: list[StackedConv | StackedConvTranspose] = [
            StackedConvTranspose(leaves, 128, 128, kernel=5, stride=2, padding=0),
            StackedConv(leaves, 128, 64, kernel=4, padding=1),
            StackedConvTranspose(leaves, 64, 64, kernel=4, stride=2, padding=0),
            StackedConv(leaves, 64, 32, kernel=4, padding=1),
            StackedConvTranspose(leaves, 32, 32, kernel=4, stride=2, padding=0, output_padding=1),
            StackedConv(leaves, 32, image_channels, kernel=4, padding=1, bias=True),
        ]
        super().__init__(leaves, config, (128, 2), layers, [128, 64, 64, 32, 32])


def _chain(config: TreeConfig, *convs: nn.Conv2d) -> nn.Sequential:
    """Each convolution with its norm and activation."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), make_activation(config)]
    return nn.Sequential(*layers)


def _width(config: TreeConfig) -> int:
    """h of the encoder's level."""
    return config.encoder_channels or config.channels


def _check_grey(config: TreeConfig, image_size: int) -> None:
    if image_size != GREY_SIDE or _width(config) % 16:
        raise ConfigError(
            "tree.codec",
            got=f"{config.codec} of width {_width(config)} for images of {image_size} pixels' side",
            expected=f"images of {GREY_SIDE} pixels' side, and a width divisible by 16",
            hint="resize the images, or take a CNN codec, which has any size",
        )
