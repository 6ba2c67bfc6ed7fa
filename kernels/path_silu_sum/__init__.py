"""The sum of silu over the slots of a path; see README.md."""

from .op import path_silu_sum

__all__ = ["path_silu_sum"]
