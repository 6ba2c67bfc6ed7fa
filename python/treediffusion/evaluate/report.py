"""What people look at when a model is finished: four pictures and a page of numbers.

Everything is drawn by the torch-free runtime from the exported bundle, so the pictures show what a
server would send. Labels, where there are any, are only compared with the finished clusters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import ImageSet, to_bytes
from ..files import write_json
from ..progress import Progress
from ..runtime import Engine
from ..topology import TreeTopology
from .clustering import clustering_metrics
from .figures import (
    all_leaf_sheet,
    leaf_gallery,
    left_to_right,
    samples_sheet,
    save,
    tree_picture,
)

SHEET_ROOTS = 8
GALLERY_IMAGES = 12
TREE_IMAGES = 4
SAMPLES = 100
ASSIGNED_PER_DRAWN = 30
"""Images that are assigned in about the time in which one is drawn, for the progress bar."""
CHUNK = 500

UInt8Array = NDArray[np.uint8]


def write_report(
    engine: Engine,
    data: ImageSet,
    out: Path,
    *,
    seed: int = 0,
    extra: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Draws the pictures, measures the clusters, and writes both into a folder.

    Args:
        engine: a model at work.
        data: images to assign to leaves, with labels for the metrics if there are any.
        out: the folder: `tree.png`, `sheet.png`, `gallery.png`, `samples.png`, `metrics.json`.
        seed: of everything generated.
        extra: numbers to add to `metrics.json`.
        quiet: no progress bar.

    Returns:
        What `metrics.json` holds.
    """
    tree, pixels = engine.topology, to_bytes(data.images)
    images = SHEET_ROOTS * tree.num_leaves + GALLERY_IMAGES * tree.num_leaves + SAMPLES
    assigning = len(data.images) / ASSIGNED_PER_DRAWN
    with Progress(images + assigning, "drawing", quiet=quiet) as progress:
        leaf_prob = _assign(engine, pixels, progress)
        sheet = engine.generate_leaves(SHEET_ROOTS, seed=seed)
        progress.advance(SHEET_ROOTS * tree.num_leaves, "every leaf from the same roots")
        gallery = []
        for name in tree.leaf_names:
            gallery.append(engine.generate(GALLERY_IMAGES, node=name, seed=seed).images)
            progress.advance(GALLERY_IMAGES, f"leaf {name}")
        samples = engine.generate(SAMPLES, seed=seed)
        progress.advance(SAMPLES, "samples")
    leaf = leaf_prob.argmax(1)
    share = node_share(tree, leaf)
    leaves = np.stack(gallery)
    pictures = {
        "tree": tree_picture(
            tree,
            node_means(tree, leaf, pixels),
            share,
            leaves[:, :TREE_IMAGES],
            class_counts(tree, leaf, data.labels),
            title="The tree: mean image and share of each node; below, generated images",
        ),
        "sheet": all_leaf_sheet(
            sheet.images, sheet.leaf_prob, tree, title="Each row: one root, through every leaf"
        ),
        "gallery": leaf_gallery(leaves, tree, share, title="Generated images of each leaf"),
        "samples": samples_sheet(
            samples.images, samples.leaf, tree, title=f"{SAMPLES} images along sampled paths"
        ),
    }
    for name, figure in pictures.items():
        save(figure, out / f"{name}.png")
    metrics: dict[str, Any] = {
        "images": len(data.images),
        "leaves": {tree.leaf_names[i]: round(float((leaf == i).mean()), 4)
                   for i in left_to_right(tree)},
    }  # fmt: skip
    if data.labels is not None:
        metrics["clustering"] = clustering_metrics(data.labels, leaf, tree)
    metrics |= extra or {}
    write_json(out / "metrics.json", metrics)
    return metrics


def _assign(engine: Engine, images: UInt8Array, progress: Progress) -> NDArray[np.float32]:
    """[n, L] leaf probabilities."""
    found = []
    for start in range(0, len(images), CHUNK):
        found.append(engine.assign(images[start : start + CHUNK]))
        progress.advance(len(found[-1]) / ASSIGNED_PER_DRAWN, "assigning images to leaves")
    return np.concatenate(found)


def node_share(tree: TreeTopology, leaf: NDArray[np.intp]) -> NDArray[np.float64]:
    """[N] share of the images below each node; leaf: [n] ids."""
    return np.array([np.isin(leaf, tree.leaves_below(name)).mean() for name in tree.names])


def node_means(tree: TreeTopology, leaf: NDArray[np.intp], images: UInt8Array) -> UInt8Array:
    """[N, C, H, W] mean image below each node, black where there is none; images: [n, C, H, W]."""
    means = np.zeros((tree.num_nodes, *images.shape[1:]), np.uint8)
    for row, name in enumerate(tree.names):
        below = np.isin(leaf, tree.leaves_below(name))
        if below.any():
            means[row] = np.floor(images[below].mean(0) + 0.5).astype(np.uint8)
    return means


def class_counts(
    tree: TreeTopology, leaf: NDArray[np.intp], labels: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """[L, K] images of each class in each leaf, None without labels."""
    if labels is None:
        return None
    classes, index = np.unique(labels, return_inverse=True)
    counts = np.zeros((tree.num_leaves, len(classes)), np.int64)
    np.add.at(counts, (leaf, index), 1)
    return counts
