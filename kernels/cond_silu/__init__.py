"""silu(time + cond), what the U-Net projects; see README.md."""

from .op import cond_silu

__all__ = ["cond_silu"]
