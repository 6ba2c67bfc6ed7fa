"""Every baseline by name, behind one call: train on some images, cluster others.

    name         trained                       clusters
    ward         -                             Ward on pixels
    k_means      -                             k-means on pixels; no hierarchy
    vae          VAE                           - (likelihood alone)
    ladder_vae   LadderVAE                     - (likelihood alone)
    vae_ward     VAE                           Ward on the latents
    ladder_ward  LadderVAE                     Ward on the deepest latents
    deepect      autoencoder and tree          the tree's leaves; its cut at k
    l2h          VAE                           Gaussian mixture on the latents, merged by L2H
    ddim         denoiser without a condition  -

Ward, and k-means as published papers use it, cluster the very images they are judged on. The others
learn from the training images, and the judged ones are new to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..data import Pixels
from ..diffusion.denoiser import Denoiser
from ..errors import ConfigError
from ..nn.tree_vae import TreeVAE
from ..optional import require
from ..progress import Progress
from ..topology import TreeTopology
from ..train.images import TrainingImages
from ..train.plan import diffusion_cost
from ..tree_export import cut
from .blank import train_unconditional
from .chain import Kind, chain_cost, embed, train_chain
from .deepect_stage import assign, train_deepect
from .flat import as_vectors, k_means, ward_merges
from .logits import merge_logits

Name = Literal[
    "ward", "k_means", "vae", "ladder_vae", "vae_ward", "ladder_ward", "deepect", "l2h", "ddim"
]
FLOOR = -700.0
"""Logarithm of the smallest responsibility that is told apart from none."""

IntArray = NDArray[np.int64]


class Hierarchy(NamedTuple):
    """A tree over images.

    Attributes:
        leaf: [n] int64, positions in `topology.leaves`.
        topology: the tree.
    """

    leaf: IntArray
    topology: TreeTopology


@dataclass(frozen=True)
class Found:
    """What a method made of n judged images; None for what it does not make.

    Attributes:
        flat: [n] int64, k clusters.
        hierarchy: the images under a tree, with more leaves as a rule.
        tree: a model with a likelihood, in eval mode; a blank one beside a denoiser.
        denoiser: a model that draws images.
    """

    flat: IntArray | None = None
    hierarchy: Hierarchy | None = None
    tree: TreeVAE | None = None
    denoiser: Denoiser | None = None


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes:
        train: [n, C, H, W] images to learn from.
        judged: [m, C, H, W] images to cluster.
        config: settings of the model it is compared with; its seed is this task's.
        k: clusters.
        leaves: of the hierarchy, k or more.
        models: folder of checkpoints, a file for each model.
        progress: told about every step.
        device: where to train.
    """

    train: Pixels
    judged: Pixels
    config: Config
    k: int
    leaves: int
    models: Path
    progress: Progress
    device: str = "cpu"

    def placed(self, images: Pixels) -> TrainingImages:
        """Images whose batches go to the device."""
        return TrainingImages(images, self.device)

    def check(self) -> None:
        """Makes sure that the numbers of clusters fit the images.

        Raises:
            ConfigError: they do not.
        """
        if not 1 <= self.k <= len(self.judged):
            raise ConfigError("k", got=self.k, expected=f"1 to {len(self.judged)}, the images")
        if not max(2, self.k) <= self.leaves <= len(self.judged):
            raise ConfigError(
                "leaves",
                got=self.leaves,
                expected=f"{max(2, self.k)} to {len(self.judged)}: the clusters, to the images",
            )


def run_method(name: Name, task: Task) -> Found:
    """What a baseline makes of a task; what it trained before is read from the folder.

    Raises:
        ConfigError: no such baseline, or numbers of clusters that do not fit.
        OutOfTime: the progress ended the call; the same call continues.
        DataError: images that cannot be trained on.
        CheckpointError: a checkpoint that cannot be read or written.
    """
    if name not in METHODS:
        raise ConfigError("baseline", got=repr(name), expected=f"one of {', '.join(METHODS)}")
    task.check()
    return METHODS[name](task)


def training_cost(name: Name, task: Task) -> float:
    """What a method's training costs, in the unit of `train.plan`."""
    if name in ("ward", "k_means"):
        return 0.0
    if name == "ddim":
        return diffusion_cost(task.config.diffusion, task.train.shape[-1])
    return chain_cost(task.config.tree, len(task.train))


def _ward(task: Task) -> Found:
    return _ward_on(as_vectors(task.judged), task)


def _k_means(task: Task) -> Found:
    return Found(flat=k_means(task.judged, task.k, task.config.seed % 2**32))


def _chain(kind: Kind) -> Callable[[Task], Found]:
    return lambda task: Found(tree=_trained(kind, task))


def _chain_ward(kind: Kind) -> Callable[[Task], Found]:
    def run(task: Task) -> Found:
        chain = _trained(kind, task)
        return _ward_on(embed(chain, task.placed(task.judged)), task, tree=chain)

    return run


def _l2h(task: Task) -> Found:
    """The mixture has a Gaussian for each leaf: L2H's tree is over a flat model's clusters."""
    chain = _trained("vae", task)
    learnt, judged = (embed(chain, task.placed(images)) for images in (task.train, task.judged))
    mixture = require("sklearn.mixture", extra="train")
    found = {}
    for count in {task.k, task.leaves}:
        model = mixture.GaussianMixture(
            count, covariance_type="diag", n_init=3, reg_covar=1e-4,
            random_state=task.config.seed % 2**32,
        ).fit(learnt.astype(np.float64))  # fmt: skip
        with np.errstate(divide="ignore"):
            logits = np.log(model.predict_proba(judged.astype(np.float64)))
        found[count] = np.maximum(logits, FLOOR)
    logits = found[task.leaves]
    leaf, topology = merge_logits(logits).tree(task.leaves)
    hierarchy = Hierarchy(leaf[logits.argmax(1)], topology)
    return Found(flat=found[task.k].argmax(1), hierarchy=hierarchy, tree=chain)


def _deepect(task: Task) -> Found:
    """Flat clusters are the tree's cut at k, or its leaves where it kept fewer."""
    model = train_deepect(
        task.placed(task.train), task.config.tree, task.leaves, task.models / "deepect.safetensors",
        seed=task.config.seed, progress=task.progress,
    )  # fmt: skip
    leaf = assign(model, task.placed(task.judged)).numpy()
    tree = model.topology
    share = np.array([np.isin(leaf, tree.leaves_below(name)).mean() for name in tree.names])
    flat = cut(tree, min(task.k, tree.num_leaves), share=share)[leaf]
    return Found(flat=flat, hierarchy=Hierarchy(leaf, tree))


def _ddim(task: Task) -> Found:
    tree, denoiser = train_unconditional(
        task.placed(task.train), task.config, task.models / "ddim.safetensors",
        seed=task.config.seed, progress=task.progress,
    )  # fmt: skip
    return Found(tree=tree, denoiser=denoiser)


def _trained(kind: Kind, task: Task) -> TreeVAE:
    return train_chain(
        task.placed(task.train), task.config.tree, task.models / f"{kind}.safetensors",
        kind=kind, seed=task.config.seed, progress=task.progress,
    )  # fmt: skip


def _ward_on(vectors: NDArray[np.float32], task: Task, *, tree: TreeVAE | None = None) -> Found:
    merges = ward_merges(vectors)
    return Found(merges.cut(task.k), Hierarchy(*merges.tree(task.leaves)), tree)


METHODS: dict[str, Callable[[Task], Found]] = {
    "ward": _ward,
    "k_means": _k_means,
    "vae": _chain("vae"),
    "ladder_vae": _chain("ladder_vae"),
    "vae_ward": _chain_ward("vae"),
    "ladder_ward": _chain_ward("ladder_vae"),
    "deepect": _deepect,
    "l2h": _l2h,
    "ddim": _ddim,
}
"""The baselines by name."""
