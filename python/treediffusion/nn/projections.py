"""Embeddings of the bottom-up maps, on which two views of an image must agree (TreeVAE 2.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import TreeConfig
from .activation import make_activation
from .codecs import latent_size
from .stacked import StackedConv, StackedLinear, StackedNorm

HIDDEN, SIZE = 128, 10
"""Widths in the CNN form. In the MLP form the hidden width is a level's, and the embedding has as
many numbers as a latent."""


class Projections(nn.Module):
    """A small network per level, the levels stacked.

    The encoder's own level has a first layer of its own where its output is wider.
    """

    def __init__(self, config: TreeConfig) -> None:
        super().__init__()
        levels, pixels = config.levels, latent_size(config) ** 2
        hidden, size = (
            (config.channels, config.latent_channels) if config.is_mlp else (HIDDEN, SIZE)
        )
        inputs = config.channels if config.is_mlp else pixels
        wide = config.encoder_channels
        self.channels = config.channels
        self.activation = make_activation(config)
        self.conv = None if config.is_mlp else StackedConv(levels, config.channels, 1)
        self.hidden = StackedLinear(levels - 1 if wide else levels, inputs, hidden, bias=False)
        self.wide = StackedLinear(1, wide, hidden, bias=False) if wide else None
        self.norm = StackedNorm(levels, hidden)
        self.out = StackedLinear(levels, hidden, size, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, levels, C, R, R], the root's first -> [B, levels, 10]."""
        if self.wide is None:
            y = self.hidden(self._flat(features))
        else:
            rest = self.hidden(self._flat(features[:, :-1, : self.channels]))
            y = torch.cat([rest, self.wide(features[:, -1:].flatten(2))], dim=1)
        embedding: Tensor = self.out(self.activation(self.norm(y)))
        return embedding

    def _flat(self, features: Tensor) -> Tensor:
        """[B, n, C, R, R] -> [B, n, inputs]."""
        return (features if self.conv is None else self.conv(features)).flatten(2)
