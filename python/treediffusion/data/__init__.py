"""Images to train on and to evaluate with: data sets known by name, and files of the user's own."""

from __future__ import annotations

from .content import Pixels
from .dataset import (
    ImageSet,
    load,
    load_images,
    load_like,
    load_to_train,
    to_bytes,
    to_float,
)
from .recipe import Recipe
from .recipes import RECIPES

__all__ = [
    "RECIPES",
    "ImageSet",
    "Pixels",
    "Recipe",
    "load",
    "load_images",
    "load_like",
    "load_to_train",
    "to_bytes",
    "to_float",
]
