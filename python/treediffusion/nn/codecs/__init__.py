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


def make_encoder(config: TreeConfig, image_channels: int, image_size: int) -> nn.Module:
    """The configured encoder.

    Raises:
        ConfigError: it cannot read images of this size.
    """
    kinds = {
        "cnn1": chain.Encoder,
        "cnn2": residual.Encoder,
        "mlp": flat.VectorEncoder,
        "mlp_cnn1": flat.GreyEncoder,
        "mlp_cnn2": residual.FlatEncoder,
        "mlp_omniglot": flat.StrokeEncoder,
    }
    return kinds[config.codec](config, image_channels, image_size)


def make_decoders(
    leaves: int, config: TreeConfig, image_channels: int, image_size: int
) -> nn.Module:
    """The configured decoders of all leaves.

    Raises:
        ConfigError: they cannot make images of this size.
    """
    kinds = {
        "cnn1": chain.LeafDecoders,
        "cnn2": residual.LeafDecoders,
        "mlp": flat.VectorDecoders,
        "mlp_cnn1": flat.GreyDecoders,
        "mlp_cnn2": residual.FlatDecoders,
        "mlp_omniglot": flat.StrokeDecoders,
    }
    return kinds[config.codec](leaves, config, image_channels, image_size)


def latent_size(config: TreeConfig) -> int:
    """R, the side of every latent map."""
    return config.latent_size if config.codec_sizes is None else config.codec_sizes[-1]
