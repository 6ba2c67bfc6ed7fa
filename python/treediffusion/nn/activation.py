"""The configured nonlinearity."""

from __future__ import annotations

from torch import nn

from ..config import TreeConfig

LEAK = 0.3
"""Slope of the leaky ReLU below zero, as published."""


def make_activation(config: TreeConfig) -> nn.Module:
    """The module that `config.activation` names."""
    if config.activation == "leaky_relu":
        return nn.LeakyReLU(LEAK)
    return nn.SiLU() if config.activation == "silu" else nn.ReLU()
