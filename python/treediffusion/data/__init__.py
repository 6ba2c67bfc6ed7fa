"""Images to train on and to evaluate with, from disk or bundled."""

from __future__ import annotations

from .content import Pixels
from .dataset import ImageSet, load_images, to_bytes, to_float

__all__ = ["ImageSet", "Pixels", "load_images", "to_bytes", "to_float"]
