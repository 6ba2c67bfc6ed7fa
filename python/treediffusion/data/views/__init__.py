"""Random views of images: what may change about an image without changing what it shows."""

from __future__ import annotations

from .pipelines import random_view

__all__ = ["random_view"]
