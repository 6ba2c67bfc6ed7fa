"""Group norm, conditioned, with SiLU, in one pass; see README.md."""

from .op import gn_silu
from .reference import Mode

__all__ = ["Mode", "gn_silu"]
