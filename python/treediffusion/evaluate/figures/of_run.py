"""Every figure that a run's folder allows, drawn into another folder; for the rest, why not.

    history          training.json
    tree             a finished tree and its images; generated ones below it where there is a bundle
    sheet, gallery, samples, reconstructions            a bundle in the run's folder
    classes, clusters                                   labels
    generated-classes                                   quality.json, of `treediffusion evaluate`
    attributes       an .npz with `attributes` [n, A] of 0 and 1 and `attribute_names` [A]
    words            texts as vectors: 20 Newsgroups, or a file with the word of each number

Unlike its neighbours this module and `run_content` know runs, models and data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ...data import to_bytes, to_float
from ...errors import DataError
from ...noise import Stream, normal
from ...optional import require
from ...progress import Progress
from ...train.run import HISTORY
from ...tree_export import cut
from ..clustering import accuracy, ari, leaf_purity, nmi
from ..early import leaf_members
from ..report import class_counts, node_means
from ..statistics import evenly_spaced
from .checks import check_names
from .classes import attribute_frequency, attribute_table, class_table
from .curves import history_chart, metrics_chart
from .gallery import leaf_gallery
from .run_content import LeftOut, RunContent, Wanted
from .saving import save
from .sheets import all_leaf_sheet, reconstruction_sheet, samples_sheet
from .tree import tree_picture
from .words import top_words, word_tree

ROOTS, SAMPLES, REBUILT, UNDER_LEAVES = 4, 60, 10, 4

__all__ = ["FIGURES", "DrawnRun", "Wanted", "draw_run"]


@dataclass
class DrawnRun:
    """What `draw_run` did.

    Attributes:
        files: of each figure, by its name.
        left_out: why, by the name of a figure.
    """

    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def draw_run(wanted: Wanted, out: Path, *, quiet: bool = False) -> DrawnRun:
    """Draws what can be drawn.

    Args:
        wanted: of which run, with what beside it.
        out: the folder for the figures.
        quiet: no progress bar.

    Raises:
        CheckpointError: not a run's folder, or figures that cannot be written.
    """
    drawn = DrawnRun()
    content = RunContent(wanted)
    try:
        with Progress(len(FIGURES), "drawing", quiet=quiet) as progress:
            for name, figure in FIGURES.items():
                try:
                    drawn.files[name] = save(figure(content), out / name)
                except LeftOut as reason:
                    drawn.left_out[name] = str(reason)
                progress.advance(1, name)
    finally:
        content.close()
    return drawn


def _history(run: RunContent) -> Figure:
    path = run.wanted.run / HISTORY
    if not path.is_file():
        raise LeftOut(f"no {HISTORY}, which the end of the training writes")
    record = json.loads(path.read_text("utf-8"))
    title = "How the tree grew" + (" and the denoiser learnt" if record.get("diffusion") else "")
    return history_chart(record["tree"], record.get("diffusion", ()), title=title)


def _tree(run: RunContent) -> Figure:
    pixels, labels = run.pixels, run.data.labels
    try:
        below, what = run.gallery[:, :UNDER_LEAVES], "generated images"
    except LeftOut:
        below, what = leaf_members(run.tree, run.leaf, pixels), "images of each leaf"
    counts = class_counts(run.tree, run.leaf, labels)
    return tree_picture(
        run.tree,
        node_means(run.tree, run.leaf, pixels),
        run.share,
        below,
        counts,
        class_names=None if labels is None else run.class_names(np.unique(labels)),
        title=f"The tree: mean image of each node; below, {what}",
    )


def _sheet(run: RunContent) -> Figure:
    sheet = run.engine.generate_leaves(ROOTS, seed=run.wanted.seed)
    own = run.engine.decode_prior(ROOTS, seed=run.wanted.seed).images
    title = "In each block one root through every leaf, and how probable the leaf was"
    return all_leaf_sheet(sheet.images, sheet.leaf_prob, run.tree, tree_images=own, title=title)


def _gallery(run: RunContent) -> Figure:
    title, counts, names = "Generated images of each leaf", None, None
    try:
        counts = np.array(run.quality["leaves"]["histogram"])
        names = run.class_names(np.array(run.quality["classes"]))
        title += ", and the classes a judge sees in them"
    except LeftOut:
        pass
    return leaf_gallery(
        run.gallery, run.tree, run.engine.node_share, class_counts=counts, class_names=names,
        title=title,
    )  # fmt: skip


def _samples(run: RunContent) -> Figure:
    found = run.engine.generate(SAMPLES, seed=run.wanted.seed)
    title = f"{SAMPLES} images along sampled paths"
    return samples_sheet(found.images, found.leaf, run.tree, title=title)


def _reconstructions(run: RunContent) -> Figure:
    pixels = run.pixels
    few = pixels[evenly_spaced(len(pixels), REBUILT)]
    seed, tree = run.wanted.seed, run.tree
    made = run.engine.reconstruct(few, leaf="most_probable", seed=seed)
    # The numbers that the runtime has for these images, so that both rows have the same latents.
    numbers = range(len(few))
    shape = run.tree_vae.latent_shape
    rows = [normal(seed, numbers, shape, stream=Stream.ROOT, draw=0)]
    for row in range(1, tree.num_nodes):
        rows.append(normal(seed, numbers, shape, stream=Stream.NODE, step=row, draw=0))
    with torch.inference_mode():
        noise = torch.from_numpy(np.stack(rows, axis=1)).float()
        z = run.tree_vae.infer(torch.from_numpy(to_float(few)), noise=noise).nodes.z
        every = run.tree_vae.decode(z).clamp(0, 1).numpy()
    own = to_bytes(every[np.arange(len(few)), made.leaf])
    return reconstruction_sheet(
        few,
        {"TreeVAE": own, "TreeDiffusion": made.images},
        made.leaf,
        made.leaf_prob,
        tree,
        title="Images, and what is made of them in their most probable leaf",
    )


def _classes(run: RunContent) -> Figure:
    names = run.class_names(np.unique(run.labels))
    counts = class_counts(run.tree, run.leaf, run.labels)
    assert counts is not None
    what = "images" if run.has_images else "texts"
    title = f"Classes of {len(run.leaf):,} {what} by leaf"
    return class_table(counts, names, run.tree, what=what, title=title)


def _generated_classes(run: RunContent) -> Figure:
    counts = np.array(run.quality["leaves"]["histogram"])
    names = run.class_names(np.array(run.quality["classes"]))
    title = f"Classes of {counts.sum():,} generated images by leaf, as a classifier sees them"
    return class_table(counts, names, run.tree, title=title)


def _clusters(run: RunContent) -> Figure:
    labels, measures = run.labels, {"ACC": accuracy, "NMI": nmi, "ARI": ari}
    if len(np.unique(labels)) < 2:
        raise LeftOut("all images have one label")
    k, share = np.arange(1, run.tree.num_leaves + 1), run.share
    flat = [cut(run.tree, int(number), share=share)[run.leaf] for number in k]
    scores = {
        name: np.array([measure(labels, found) for found in flat])
        for name, measure in (measures | {"leaf purity": leaf_purity}).items()
    }
    classes = len(np.unique(labels))
    mark = classes if classes <= k[-1] else None
    title = "The tree cut into k clusters"
    return metrics_chart(k, scores, mark=mark, mark_name=f"{classes} classes", title=title)


def _attributes(run: RunContent) -> Figure:
    path = run.wanted.attributes
    if path is None:
        raise LeftOut("no attributes: name an .npz of them with --attributes")
    leaf = run.leaf
    try:
        with np.load(path, allow_pickle=False) as file:
            values, names = file["attributes"], [str(name) for name in file["attribute_names"]]
    except (OSError, ValueError, KeyError) as fault:
        raise DataError(
            str(path), got=" ".join(str(fault).split()),
            expected="an .npz with `attributes` [n, A] and `attribute_names` [A]",
        ) from fault  # fmt: skip
    if len(values) != run.given:
        raise DataError(str(path), got=f"{len(values)} rows", expected=f"{run.given}, one an image")
    values = values[run.rows]
    found = attribute_frequency(leaf, values, leaves=run.tree.num_leaves)
    title = f"How often {len(leaf):,} images have an attribute, by leaf"
    return attribute_table(found, names, run.tree, overall=values.mean(0), title=title)


def _words(run: RunContent) -> Figure:
    if run.has_images:
        raise LeftOut("the run is of images, not of texts")
    words, vectors = run.words, run.data.images.reshape(len(run.data.images), -1)
    # A word of weight 0 in all texts tells nothing of any: the, of, and.
    common = require("sklearn.feature_extraction.text", extra="train").ENGLISH_STOP_WORDS
    kept = np.array([word not in common for word in words])
    check_names("words", words, vectors.shape[1])
    found = top_words(run.tree, vectors * kept, run.leaf, words)
    notes = None
    if run.data.labels is not None:
        names = run.class_names(np.unique(run.data.labels))
        counts = class_counts(run.tree, run.leaf, run.data.labels)
        assert counts is not None
        notes = [names[row.argmax()] if row.sum() else "" for row in counts]
    title = "Words that tell each node from the rest"
    return word_tree(run.tree, found, run.share, leaf_notes=notes, title=title)


FIGURES: dict[str, Callable[[RunContent], Figure]] = {
    "history": _history,
    "tree": _tree,
    "sheet": _sheet,
    "gallery": _gallery,
    "samples": _samples,
    "reconstructions": _reconstructions,
    "classes": _classes,
    "generated-classes": _generated_classes,
    "clusters": _clusters,
    "attributes": _attributes,
    "words": _words,
}
