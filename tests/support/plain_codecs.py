"""Encoders and decoders of one leaf, of the framework's layers, as the published tables list them.

The truth for `treediffusion.nn.codecs`. Parts are declared in the same order as there, so that the
tensors of both can be matched one after another.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor, nn
from treediffusion.config import TreeConfig


def activation(config: TreeConfig) -> nn.Module:
    return {"silu": nn.SiLU(), "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.3)}[
        config.activation
    ]


def plain_encoder(config: TreeConfig, channels: int, size: int) -> nn.Module:
    """[B, C, H, W] -> [B, C_e, R, R]."""
    h, act = config.encoder_channels or config.channels, activation(config)
    if config.codec == "cnn1":
        sizes = sides(config, size)
        return _down_chain(_widths(config, channels, config.channels, len(sizes)), sizes, act)
    if config.codec == "cnn2":
        steps = int(np.log2(size // config.latent_size))
        widths = [int(w) for w in np.linspace(8, config.channels, steps + 1)]
        return Trunk(config, channels, widths, learned=config.resize == "learned")
    if config.codec == "mlp_cnn2":
        widths = [32, 64, 128, 256, 256][: int(np.log2(size // 4)) + 1]
        trunk = Trunk(config, channels, widths, learned=False)
        return nn.Sequential(trunk, nn.Flatten(), nn.Unflatten(1, (h, 1, 1)))
    if config.codec == "mlp":
        widths = [channels, 4 * h, 4 * h, 2 * h, h]
        dense: list[nn.Module] = []
        for a, b in pairwise(widths):
            dense += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), act]
        return nn.Sequential(nn.Flatten(), *dense, nn.Unflatten(1, (h, 1, 1)))
    if config.codec == "mlp_cnn1":
        table = [
            (channels, h // 16, 3, 2, 0),
            (h // 16, h // 8, 3, 2, 0),
            (h // 8, h // 4, 3, 2, 0),
        ]
    else:
        table = [
            (channels, 32, 4, 1, 1),
            (32, 32, 4, 2, 1),
            (32, 64, 4, 1, 1),
            (64, 64, 4, 2, 1),
            (64, 128, 4, 1, 1),
            (128, 128, 5, 1, 0),
        ]
    layers: list[nn.Module] = []
    for a, b, kernel, stride, padding in table:
        layers += [nn.Conv2d(a, b, kernel, stride, padding, bias=False), nn.BatchNorm2d(b), act]
    return nn.Sequential(*layers, nn.Flatten(), nn.Unflatten(1, (h, 1, 1)))


def plain_decoder(config: TreeConfig, channels: int, size: int) -> nn.Module:
    """[B, Z, R, R] -> [B, C, H, W]."""
    h, z, act = (
        config.encoder_channels or config.channels,
        config.latent_channels,
        activation(config),
    )
    if config.codec == "cnn1":
        sizes = sides(config, size)[::-1]
        widths = _widths(config, z, channels, len(sizes), mirrored=True)
        return _up_chain(widths, sizes, act)
    if config.codec == "cnn2":
        steps = int(np.log2(size // config.latent_size))
        widths = [int(w) for w in np.linspace(z, 8, steps + 1)]
        return Crown(config, channels, widths, learned=config.resize == "learned")
    if config.codec == "mlp_cnn2":
        widths = [32, 64, 128, 256, 256][: int(np.log2(size // 4)) + 1][::-1]
        spread = nn.Sequential(nn.Flatten(), nn.Linear(z, 4096), nn.Unflatten(1, (256, 4, 4)))
        return nn.Sequential(spread, Crown(config, channels, widths, learned=False))
    if config.codec == "mlp":
        widths = [z, h, 2 * h, 4 * h, 4 * h]
        linears = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        return Chain([*linears, nn.Linear(4 * h, channels)], widths[1:], act, None)
    if config.codec == "mlp_cnn1":
        layers: list[nn.Module] = [
            nn.Linear(z, h // 4 * 9, bias=False),
            nn.ConvTranspose2d(h // 4, h // 8, 3, 2, bias=False),
            nn.ConvTranspose2d(h // 8, h // 16, 3, 2, padding=1, output_padding=1, bias=False),
            nn.ConvTranspose2d(h // 16, channels, 3, 2, padding=1, output_padding=1),
        ]
        return Chain(layers, [h // 4 * 9, h // 8, h // 16], act, (h // 4, 3, 3))
    layers = [
        nn.Linear(z, 512, bias=False),
        nn.ConvTranspose2d(128, 128, 5, 2, bias=False),
        nn.Conv2d(128, 64, 4, padding=1, bias=False),
        nn.ConvTranspose2d(64, 64, 4, 2, bias=False),
        nn.Conv2d(64, 32, 4, padding=1, bias=False),
        nn.ConvTranspose2d(32, 32, 4, 2, output_padding=1, bias=False),
        nn.Conv2d(32, channels, 4, padding=1),
    ]
    return Chain(layers, [512, 128, 64, 64, 32, 32], act, (128, 2, 2))


class Chain(nn.Module):
    """A dense layer, then others; all but the last normalised and activated."""

    def __init__(
        self,
        layers: list[nn.Module],
        widths: list[int],
        act: nn.Module,
        maps: tuple[int, int, int] | None,
    ) -> None:
        super().__init__()
        self.first, self.first_norm = layers[0], nn.BatchNorm1d(widths[0])
        self.layers = nn.ModuleList(layers[1:])
        norm = nn.BatchNorm1d if maps is None else nn.BatchNorm2d
        self.norms = nn.ModuleList(norm(width) for width in widths[1:])
        self.act, self.maps = act, maps

    def forward(self, z: Tensor) -> Tensor:
        y = self.act(self.first_norm(self.first(z.flatten(1))))
        if self.maps is not None:
            y = y.unflatten(1, self.maps)
        for layer, norm in zip(self.layers, self.norms, strict=False):
            y = self.act(norm(layer(y)))
        y = self.layers[-1](y)
        return y if y.dim() == 4 else y[:, :, None, None]


class Block(nn.Module):
    """Pre-activated convolutions: three in the CNN form, two in the MLP form."""

    def __init__(self, config: TreeConfig, fin: int, fout: int) -> None:
        super().__init__()
        widths = [fin, *([] if config.is_mlp else [fin]), min(fin, fout), fout]
        self.act = activation(config)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.shortcut = nn.Conv2d(fin, fout, 1, bias=False) if fin != fout else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(self.act(norm(y)))
        return (x if self.shortcut is None else self.shortcut(x)) + 0.1 * y


class Trunk(nn.Module):
    """The residual encoder."""

    def __init__(
        self, config: TreeConfig, channels: int, widths: list[int], *, learned: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 3, padding=1),
            Block(config, widths[0], widths[0]),
        ]
        for a, b in pairwise(widths):
            down = (
                nn.Conv2d(a, a, 3, stride=2, padding=1)
                if learned
                else nn.AvgPool2d(3, stride=2, padding=1)
            )
            layers += [down, Block(config, a, b)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), activation(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Crown(nn.Module):
    """The residual decoder."""

    def __init__(
        self, config: TreeConfig, channels: int, widths: list[int], *, learned: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            up = (
                nn.ConvTranspose2d(b, b, 4, stride=2, padding=1, bias=False)
                if learned
                else nn.Upsample(scale_factor=2, mode="bilinear")
            )
            layers += [Block(config, a, b), up]
        last, out = widths[-1], nn.ConvTranspose2d if config.is_mlp else nn.Conv2d
        layers += [Block(config, last, last), nn.BatchNorm2d(last), activation(config)]
        self.layers = nn.Sequential(*layers, out(last, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and statistics in the order of their declaration."""
    return [
        tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith("num_batches_tracked")
    ]


def sides(config: TreeConfig, size: int) -> list[int]:
    """Sides of cnn1's maps, image first."""
    if config.codec_sizes is not None:
        return list(config.codec_sizes)
    return [int(side) for side in np.linspace(size, config.latent_size, 4)]


def _widths(
    config: TreeConfig, first: int, last: int, points: int, *, mirrored: bool = False
) -> list[int]:
    """Channels along a chain: the configured inner ones, or a line rounded down."""
    inner = list(config.codec_channels or ())
    if inner:
        return [first, *(inner[::-1] if mirrored else inner), last]
    return [int(width) for width in np.linspace(first, last, points)]


def _down_chain(widths: list[int], sizes: list[int], act: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for (a, b), (s, t) in zip(pairwise(widths), pairwise(sizes), strict=True):
        stride = max(s // t, 1)
        kernel = s - stride * (t - 1) + 2
        conv = nn.Conv2d(a, b, kernel, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(b), act]
    return nn.Sequential(*layers)


class _UpChain(nn.Module):
    def __init__(self, convs: list[nn.Module], norms: list[nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.convs, self.norms, self.act = nn.ModuleList(convs), nn.ModuleList(norms), act

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = self.act(norm(conv(x)))
        return self.convs[-1](x)


def _up_chain(widths: list[int], sizes: list[int], act: nn.Module) -> nn.Module:
    convs: list[nn.Module] = []
    for (a, b), (s, t) in zip(pairwise(widths), pairwise(sizes), strict=True):
        stride = max(t // s, 1)
        kernel = t - stride * (s - 1) + 2
        convs.append(nn.ConvTranspose2d(a, b, kernel, stride, padding=1, bias=False))
    return _UpChain(convs, [nn.BatchNorm2d(width) for width in widths[1:-1]], act)
