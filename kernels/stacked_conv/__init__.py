"""Convolutions of many nodes at once; see README.md."""

from .op import stacked_conv, stacked_conv_transpose

__all__ = ["stacked_conv", "stacked_conv_transpose"]
