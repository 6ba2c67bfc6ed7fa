"""The scores of a cell, by kind of table.

    clusters     dendrogram and leaf purity of the larger tree, accuracy, NMI, ARI of k clusters
    likelihood   ELBO and its error, the published estimate, the importance-weighted one
    images       distance of generated and reconstructed images to the test part
    entropy      of the classes in a leaf's generated images, mean over leaves

A score that a method does not have is absent: a flat clustering has no dendrogram purity, and
nothing is reconstructed without a tree. All are in natural units: shares, nats, distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..baselines.methods import Found, Hierarchy, Name
from ..data import to_bytes
from ..errors import DataError
from ..nn.tree_vae import TreeVAE
from ..train.images import TrainingImages
from ..train.measure import leaf_prob, mean_elbo
from .classifier import Classifier
from .clustering import accuracy, ari, dendrogram_purity, leaf_purity, nmi
from .leaf_quality import leaf_quality
from .likelihood import log_likelihood, published_log_likelihood
from .reproduce_draw import draw_by_denoiser, draw_by_tree
from .reproduce_fid import distances
from .reproduce_models import Bench, Models
from .reproduce_tables import Scores

BASELINES: tuple[str, ...] = get_args(Name)

Row = dict[str, float]


def score(models: Models, method: str, scores: Scores) -> Row:
    """A cell's scores.

    Raises:
        OutOfTime: the progress ended the call; the same call continues.
        DataError: images without labels where labels are compared.
    """
    return _KINDS[scores](models, method)


def _clusters(models: Models, method: str) -> Row:
    labels = _labels(models.bench)
    found = models.baseline(cast("Name", method)) if method in BASELINES else _tree(models)
    row: Row = {}
    if found.hierarchy is not None:
        leaf, topology = found.hierarchy
        row["dendrogram_purity"] = dendrogram_purity(labels, leaf, topology)
        row["leaf_purity"] = leaf_purity(labels, leaf)
    assert found.flat is not None
    flat = found.flat
    row |= {"acc": accuracy(labels, flat), "nmi": nmi(labels, flat), "ari": ari(labels, flat)}
    return row | (_elbo(models, found.tree) if found.tree is not None else {})


def _tree(models: Models) -> Found:
    """As published, a tree for each number of leaves; both from one seed."""
    bench = models.bench
    images = bench.placed(bench.judged)
    small = models.tree(bench.k)
    large = small if bench.leaves == bench.k else models.tree(bench.leaves)
    flat, leaf = (leaf_prob(tree, images).argmax(1).cpu().numpy() for tree in (small, large))
    return Found(flat, Hierarchy(leaf, large.topology), small)


def _likelihood(models: Models, method: str) -> Row:
    bench = models.bench
    if method in BASELINES:
        tree = models.baseline(cast("Name", method)).tree
        assert tree is not None
    else:
        tree = models.tree(bench.k)
    images = bench.tensor(bench.judged)
    row = _elbo(models, tree)
    estimates: dict[str, Callable[..., torch.Tensor]] = {
        "published_log_likelihood": published_log_likelihood, "log_likelihood": log_likelihood
    }  # fmt: skip
    for name, estimate in estimates.items():
        numbers = torch.Generator().manual_seed(models.seed)
        found = estimate(tree, images, samples=bench.samples, generator=numbers)
        row[name] = float(found.mean())
        bench.progress.advance(0, f"{method}, {name}")
    return row


def _elbo(models: Models, tree: TreeVAE) -> Row:
    """Of the judged images; -ELBO = reconstruction + KL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(models.seed)
        terms = mean_elbo(tree, models.bench.placed(models.bench.judged))
    kl = terms["kl_root"] + terms["kl_nodes"] + terms["kl_decisions"]
    return {"elbo": terms["elbo"], "reconstruction": terms["reconstruction"], "kl": kl}


def _images(models: Models, method: str) -> Row:
    bench, seed = models.bench, models.seed
    real = bench.tensor(bench.judged)
    count = min(bench.images, len(real))
    if method == "treevae":
        tree = models.tree(bench.k)
        made = draw_by_tree(tree, bench.images, seed=seed)
        again = draw_by_tree(tree, count, seed=seed, images=real)
        return _agreement(bench, tree) | distances(models, generated=made, reconstructed=again)
    if method == "ddim":
        found = models.baseline("ddim")
        assert found.tree is not None
        assert found.denoiser is not None
        tree, denoiser, config = found.tree, found.denoiser, bench.config
        diffusion = config.diffusion.model_copy(update={"signal": "none", "reconstruction": "none"})
        made, _ = draw_by_denoiser(
            tree, denoiser.eval(), diffusion, config.sampling, bench.images, seed=seed,
            progress=bench.progress,
        )  # fmt: skip
        return distances(models, generated=made)
    tree = models.tree(bench.k)
    denoiser, config = models.denoiser(tree, method)
    common: dict[str, Any] = {"seed": seed, "progress": bench.progress}
    parts = (tree, denoiser, config.diffusion, config.sampling)
    made, _ = draw_by_denoiser(*parts, bench.images, **common)
    again, _ = draw_by_denoiser(*parts, count, images=real, **common)
    return _agreement(bench, tree) | distances(models, generated=made, reconstructed=again)


def _entropy(models: Models, method: str) -> Row:
    bench = models.bench
    judge = _judge(models)
    tree = models.tree(bench.k)
    denoiser, config = models.denoiser(tree, method)
    made, leaf = draw_by_denoiser(
        tree, denoiser, config.diffusion, config.sampling, bench.images, seed=models.seed,
        progress=bench.progress,
    )  # fmt: skip
    found = judge.judge(made)
    again = leaf_prob(tree, TrainingImages(made, bench.device)).argmax(1).cpu().numpy()
    real = to_bytes(bench.judged.images)
    quality = leaf_quality(
        leaf, found.probabilities, found.features, assigned=again,
        real_leaf=leaf_prob(tree, bench.placed(bench.judged)).argmax(1).cpu().numpy(),
        real_features=judge.features(real), leaves=tree.topology.num_leaves,
    )  # fmt: skip
    row = {"mean_entropy": quality.mean_entropy, "pooled_entropy": quality.pooled_entropy}
    _, numbers = np.unique(_labels(bench), return_inverse=True)
    return row | {
        "mean_agreement": quality.mean_agreement,
        "classifier_accuracy": judge.accuracy(real, numbers.astype(np.int64)),
    }


def _agreement(bench: Bench, tree: TreeVAE) -> Row:
    """Accuracy and NMI of the tree that images come from; nothing without labels."""
    if bench.judged.labels is None:
        return {}
    leaf = leaf_prob(tree, bench.placed(bench.judged)).argmax(1).cpu().numpy()
    return {"acc": accuracy(bench.judged.labels, leaf), "nmi": nmi(bench.judged.labels, leaf)}


def _judge(models: Models) -> Classifier:
    judge = models.judge()
    if judge is None:
        raise DataError(
            "--dataset",
            got="images without labels, or of less than 8 pixels",
            expected="labelled images, which the classifier that judges drawn ones learns from",
        )
    return judge


def _labels(bench: Bench) -> NDArray[np.int64]:
    if bench.judged.labels is None:
        raise DataError(
            "--dataset",
            got=f"{bench.dataset} without labels",
            expected="labels of the test part, which clusters are compared with",
            hint="sort the images into a folder for each class, or give an .npz with labels",
        )
    return bench.judged.labels


_KINDS: dict[str, Callable[[Models, str], Row]] = {
    "clusters": _clusters,
    "likelihood": _likelihood,
    "images": _images,
    "entropy": _entropy,
}
