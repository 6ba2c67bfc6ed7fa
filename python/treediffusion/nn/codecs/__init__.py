"""Encoders and leaf decoders: the part of a TreeVAE that knows what an image is.

An encoder maps images to the first bottom-up map, [B, C, H, W] -> [B, C_e, R, R]; the decoders of
all leaves, stacked, map latents to images, [B, L, Z, R, R] -> [B, L, C, H, W] before any sigmoid.

    chain       cnn1           chains of convolutions (grey images)
    residual    cnn2, mlp_cnn2 residual blocks (colour images)
    flat        mlp, mlp_cnn1, mlp_omniglot    TreeVAE's own, whose latents are vectors: R = 1
"""

from __future__ import annotations

from torch import nn

from ...config import TreeConfig
from . import chain, flat, residual

KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "cnn1": (chain.Encoder, chain.LeafDecoders),
    "cnn2": (residual.Encoder, residual.LeafDecoders),
    "mlp": (flat.VectorEncoder, flat.VectorDecoders),
    "mlp_cnn1": (flat.GreyEncoder, flat.GreyDecoders),
    "mlp_cnn2": (residual.FlatEncoder, residual.FlatDecoders),
    "mlp_omniglot": (flat.StrokeEncoder, flat.StrokeDecoders),
}
"""The encoder and the stacked decoders of each `TreeConfig.codec`."""


def make_encoder(config: TreeConfig, image_channels: int, image_size: int) -> nn.Module:
    """The configured encoder.

    Raises:
        ConfigError: it cannot read images of this size.
    """
    encoder, _ = KINDS[config.codec]
    return encoder(config, image_channels, image_size)


def make_decoders(
    leaves: int, config: TreeConfig, image_channels: int, image_size: int
) -> nn.Module:
    """The configured decoders of all leaves.

    Raises:
        ConfigError: they cannot make images of this size.
    """
    _, decoders = KINDS[config.codec]
    return decoders(leaves, config, image_channels, image_size)


def latent_size(config: TreeConfig) -> int:
    """R, the side of every latent map."""
    return config.latent_size if config.codec_sizes is None else config.codec_sizes[-1]
