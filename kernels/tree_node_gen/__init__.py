"""The generative step of many nodes, from parents' samples to their own; see README.md."""

from .op import tree_node_gen
from .pack import NodeWeights, pack_nodes

__all__ = ["NodeWeights", "pack_nodes", "tree_node_gen"]
