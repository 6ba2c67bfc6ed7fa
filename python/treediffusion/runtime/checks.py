"""What a call is given, before anything is made of it."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError, ShapeError, TopologyError
from ..topology import TreeTopology

LEAF_CHOICES = ("sampled", "most_probable")


def check_node(tree: TreeTopology, node: object) -> None:
    """A node of the tree, by name.

    Raises:
        TopologyError: it is none.
    """
    if not isinstance(node, str):
        raise TopologyError("node", got=repr(node), expected="a name, such as 'r' or 'r01'")
    tree.row(node)


def check_leaf(tree: TreeTopology, leaf: object) -> None:
    """A leaf of the tree, by name.

    Raises:
        TopologyError: it is none.
    """
    if leaf not in tree.leaf_names:
        names = ", ".join(tree.leaf_names)
        raise TopologyError("leaf", got=repr(leaf), expected=f"one of {names}")


def check_choice(tree: TreeTopology, leaf: object) -> None:
    """A way to choose a leaf, or one by name.

    Raises:
        ConfigError: it is neither.
    """
    if leaf not in (*LEAF_CHOICES, *tree.leaf_names):
        known = f"'sampled', 'most_probable' or one of {', '.join(tree.leaf_names)}"
        raise ConfigError("leaf", got=repr(leaf), expected=known)


def check_images(images: object, shape: tuple[int, int, int]) -> None:
    """Images of a model's size, as bytes.

    Raises:
        ShapeError: something else, or none at all.
    """
    expected = f"uint8 [n, {', '.join(map(str, shape))}], n at least 1"
    if not isinstance(images, np.ndarray):
        raise ShapeError("images", got=type(images).__name__, expected=expected)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise ShapeError("images", got=f"{images.dtype} {list(images.shape)}", expected=expected)
