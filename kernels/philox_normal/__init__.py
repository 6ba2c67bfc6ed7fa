"""The noise standard on a device; see README.md."""

from .op import STEP, STREAM, normal_of, philox_normal, philox_state

__all__ = ["STEP", "STREAM", "normal_of", "philox_normal", "philox_state"]
