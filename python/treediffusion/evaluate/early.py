"""An early look at a tree while it grows: a picture, a page, and its clusters beside the labels.

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
from ..explore import RealImages, clusters_atlas, write_page
from ..files import write_json
from ..topology import TreeTopology
from ..train.tree_state import PhaseEnd
from .clustering import clustering_metrics
from .figures import save, tree_picture
from .report import class_counts, node_means, node_share

LEAF_IMAGES = 4


def early_report(out: Path) -> Callable[[ImageSet, PhaseEnd], None]:
    """What to pass to training as `look`; it writes a picture, a page and metrics into a folder.

    They are preview.png, explorer.html and metrics.json. Picture and page are left out for what is
    not grey or coloured images of bytes, the metrics for what
    has no labels. Of several trees the kept one is shown, with the mean and the deviation of what
    all of them reached.
    """
    several: list[dict[str, float]] = []

    def look(data: ImageSet, end: PhaseEnd) -> None:
        tree, leaf, labels, images = end.topology, end.leaf, data.labels, data.images
        if end.number is not None:
            with contextlib.suppress(DataError):
                if labels is not None:
                    several.append(clustering_metrics(labels, leaf, tree))
            return
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
            real = RealImages(images, labels, data.class_names)
            write_page(clusters_atlas(tree, leaf, real, title=data.name), out / "explorer.html")
        # Labels without two images of one class are nothing to compare with.
        with contextlib.suppress(DataError):
            if labels is not None:
                found: dict[str, Any] = {"clustering": clustering_metrics(labels, leaf, tree)}
                if len(several) > 1:
                    found["trees"] = spread(several)
                write_json(out / "metrics.json", {"images": len(leaf)} | found)

    return look


def spread(rows: list[dict[str, float]]) -> dict[str, Any]:
    """How many rows, and the mean and deviation (of the sample) of each of their numbers."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        "count": len(rows),
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "deviation": {name: float(column.std(ddof=1)) for name, column in columns.items()},
    }


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
