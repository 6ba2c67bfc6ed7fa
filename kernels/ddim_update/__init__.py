"""A solver's y from the network's output; see README.md."""

from .op import ddim_update

__all__ = ["ddim_update"]
