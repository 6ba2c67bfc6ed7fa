"""The posterior of nodes, a sample of it and its divergence from the prior; see README.md."""

from .op import node_posterior

__all__ = ["node_posterior"]
