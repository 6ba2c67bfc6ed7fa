"""An early look at a tree while it grows: one picture, and its clusters compared with labels.

Real images stand for the leaves, so nothing has to be generated. Labels, where there are any, are
compared with the clusters and go nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..data import ImageSet
from ..errors import DataError
from ..files import write_json
from ..topology import TreeTopology
from ..train.tree_state import PhaseEnd
from .clustering import clustering_metrics
from .figures import save, tree_picture
from .report import class_counts, node_means, node_share

LEAF_IMAGES = 4


def early_report(out: Path) -> Callable[[ImageSet, PhaseEnd], None]:
    """What to pass to training as `look`; it writes `preview.png` and `metrics.json` into a folder.

    The picture is left out for what is not grey or coloured images of bytes, the metrics for what
    has no labels.
    """

    def look(data: ImageSet, end: PhaseEnd) -> None:
        tree, leaf, labels, images = end.topology, end.leaf, data.labels, data.images
        if _is_bytes(images) and images.shape[1] in (1, 3):
            figure = tree_picture(
                tree,
                node_means(tree, leaf, images),
                node_share(tree, leaf),
                leaf_members(tree, leaf, images),
                class_counts(tree, leaf, labels),
                title=f"After {end.phase}: mean image of each node; below, images of each leaf",
            )
            save(figure, out / "preview.png")
        # Labels without two images of one class are nothing to compare with.
        with contextlib.suppress(DataError):
            if labels is not None:
                found = clustering_metrics(labels, leaf, tree)
                write_json(out / "metrics.json", {"images": len(leaf), "clustering": found})

    return look


def leaf_members(
    tree: TreeTopology, leaf: NDArray[np.int64], images: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """[L, k, C, H, W] the first images of each leaf, black where there are none left."""
    found = np.zeros((tree.num_leaves, LEAF_IMAGES, *images.shape[1:]), np.uint8)
    for row in range(tree.num_leaves):
        few = images[np.flatnonzero(leaf == row)[:LEAF_IMAGES]]
        found[row, : len(few)] = few
    return found


def _is_bytes(images: NDArray[Any]) -> TypeGuard[NDArray[np.uint8]]:
    return images.dtype == np.uint8
