"""A bundle in use, without torch: NumPy arrays in and out."""

from .backends import BACKENDS, Backend
from .engine import Engine
from .results import Generation, Preview, Sheet

__all__ = ["BACKENDS", "Backend", "Engine", "Generation", "Preview", "Sheet"]
