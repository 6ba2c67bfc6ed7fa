"""The noise standard on a device; see README.md."""

from .op import normal_of, philox_normal, philox_state

__all__ = ["normal_of", "philox_normal", "philox_state"]
