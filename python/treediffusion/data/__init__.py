"""Images to train on and to evaluate with, from disk or bundled."""

from __future__ import annotations

from .dataset import ImageSet, load_images, to_float

__all__ = ["ImageSet", "load_images", "to_float"]
