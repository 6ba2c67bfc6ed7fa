"""TreeVAE as a scikit-learn clusterer.

    labels = TreeVAEClusterer(n_clusters=10, random_state=0).fit_predict(images)

The training is `train.TreeStage`, whole; this module reads images, keeps scikit-learn's promises
and answers for further images. There is no second stage here: nothing is drawn. Clusters are leaf
ids of `topology_`; `tree_export` has their tree in other programs' forms.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.utils.data import Dataset

from .config import Config, load_preset, merge_settings, parse_config
from .data import Pixels, load_images, to_float
from .data.content import LAYOUTS, as_images
from .errors import BackendUnavailableError, CheckpointError, ConfigError, DataError
from .files import write_json
from .nn.tree_vae import TreeVAE
from .topology import TreeTopology
from .train.budget import TrainingProgress
from .train.grower import Grower
from .train.images import TrainingImages
from .train.measure import CHUNK, leaf_prob, mean_elbo
from .train.plan import tree_cost
from .train.restarts import SEED_STRIDE
from .train.selection import choose_tree
from .train.tree_stage import TreeStage
from .tree_export import cut

CLAIM, TREE = "clusterer.json", "clusterer-{}.safetensors"
SECTIONS = ("tree", "threads")
"""What `config` may hold: the settings that matter here and are no parameter of their own."""
SCORE_SEED = 0
FORMS = f"images {LAYOUTS}; a torch Dataset of images, or a path"


class TreeVAEClusterer(ClusterMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Hierarchical clustering of images: grows a tree of clusters without labels.

    Images are uint8, or float in 0..1: square, [n, H, W] or [n, C, H, W] with C = 1 or 3. Vectors
    [n, D] are images of D channels and one pixel. Also a `torch.utils.data.Dataset` of images or
    of (image, label) pairs, whose labels are not used, and any source of `load_images`.

    Args:
        n_clusters: leaves to grow. Pruning, or too few images, may leave fewer.
        preset: the settings to begin with.
        config: settings on top, as in a file for `treediffusion train --config`; its sections
            `tree` and `threads`.
        random_state: an int, for the same clusters each time; a RandomState or None as everywhere
            in scikit-learn.
        device: such as "cpu" or "cuda:0"; if None, a GPU where there is one.
        verbose: shows a progress bar.
        checkpoint: a folder from which a stopped `fit` continues; one for each fit.

    Attributes:
        tree_: the trained `TreeVAE`, in eval mode.
        topology_: its `TreeTopology` of N nodes and L leaves.
        labels_: [n] int64, the leaf of each training image.
        node_share_: [N] float64, share of the training images that reach each node.
        elbo_: mean ELBO of the training images in nats, as `score` has it.
        image_shape_: (C, H, W).
        n_features_in_: C * H * W.
    """

    def __init__(
        self,
        *,
        n_clusters: int = 10,
        preset: str = "tiny",
        config: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str | None = None,
        verbose: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.checkpoint = checkpoint

    def fit(self, X: Any, y: object = None) -> Self:
        """Grows the tree.

        Args:
            X: two or more images; the class says in which forms.
            y: not used.

        Raises:
            ConfigError: a parameter or setting that cannot be used, or the checkpoint of another
                fit.
            DataError: X holds no images, or some of an unusable shape, type or range, or one only.
            BackendUnavailableError: a device that this machine has not.
            CheckpointError: a checkpoint that cannot be read or written.
        """
        images = _images(X)
        if len(images) < 2:
            raise DataError("X", got="n_samples = 1", expected="two or more images to cluster")
        config, device = self._settings(), _device(self.device)
        with _folder(self.checkpoint) as folder, _own_state(device, config.threads):
            _claim(folder, config, images)
            grown = _train(TrainingImages(images, device), config, folder, self.verbose)
        self._threads = config.threads
        self.tree_: TreeVAE = grown.tree
        self.topology_: TreeTopology = grown.tree.topology
        self.node_share_ = np.array(grown.state.node_share)
        self.image_shape_ = images.shape[1:]
        self.n_features_in_ = images[0].size
        self.labels_: NDArray[np.int64] = self._leaf_prob(images).argmax(1)
        self.elbo_ = self._elbo(images)
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """[n] int64, the most probable leaf of each image."""
        leaf: NDArray[np.int64] = self.predict_proba(X).argmax(1)
        return leaf

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """[n, L] float64, the probability of each leaf, by the inference routers."""
        return self._leaf_prob(self._checked(X))

    def transform(self, X: Any) -> NDArray[np.float32]:
        """[n, Z * R * R] float32, the posterior mean of the root's latent.

        The root is the one node that every image passes, so only there do all images have
        coordinates in one space; leaves have a space each.
        """
        images = self._checked(X)
        shape = (self.topology_.num_nodes, *self.tree_.latent_shape)
        means = []
        with self._running() as device:
            for x in TrainingImages(images, device).chunks(CHUNK):
                # Without noise a sample is its mean.
                found = self.tree_.infer(x, noise=torch.zeros(len(x), *shape, device=device))
                means.append(found.nodes.z[:, TreeTopology.ROOT].flatten(1).cpu())
        return torch.cat(means).numpy()

    def score(self, X: Any, y: object = None) -> float:
        """Mean ELBO of images in nats, higher is better; one sample of each latent, from a seed.

        Args:
            X: images.
            y: not used.
        """
        return self._elbo(self._checked(X))

    def cut(self, k: int) -> NDArray[np.int64]:
        """[n] int64, clusters 0 to k - 1 of the training images, when the tree has k subtrees.

        For further images: `tree_export.cut(topology_, k, share=node_share_)[predict(X)]`.

        Args:
            k: 1 to L.

        Raises:
            ConfigError: the tree has no such cut.
        """
        check_is_fitted(self)
        return cut(self.topology_, k, share=self.node_share_)[self.labels_]

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools may feed in."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = True
        return tags

    def _settings(self) -> Config:
        """The preset, `config` on top of it, and the parameters on top of both.

        Raises:
            ConfigError: not of the schema, or a setting that a parameter decides.
        """
        given = {} if self.config is None else self.config
        if not isinstance(given, dict) or set(given) - set(SECTIONS):
            got = sorted(map(str, given)) if isinstance(given, dict) else type(given).__name__
            raise ConfigError("config", got=got, expected=f"a dict of {' and '.join(SECTIONS)}")
        tree = given.get("tree", {})
        if not isinstance(tree, dict) or "max_leaves" in tree:
            raise ConfigError(
                "config['tree']",
                got="max_leaves" if isinstance(tree, dict) else repr(tree),
                expected="a dict of other settings of the tree",
                hint="its leaves are n_clusters",
            )
        mine = {"tree": {"max_leaves": self.n_clusters}, "seed": self._seed()}
        settings = merge_settings(
            merge_settings(load_preset(self.preset).model_dump(), given), mine
        )
        return parse_config(settings, source="n_clusters, random_state or config")

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        if self.checkpoint is not None:
            raise ConfigError(
                "random_state",
                got=repr(self.random_state),
                expected="an int, since a fit that continues must begin with the same seed",
            )
        try:
            return int(check_random_state(self.random_state).randint(2**31 - 1))
        except ValueError as fault:
            raise ConfigError(
                "random_state", got=repr(self.random_state), expected="an int, RandomState or None"
            ) from fault

    def _checked(self, X: Any) -> Pixels:
        """[n, C, H, W] images like those of `fit`."""
        check_is_fitted(self)
        images = _images(X)
        if images.shape[1:] != self.image_shape_:
            got, expected = (
                "x".join(map(str, shape)) for shape in (images.shape[1:], self.image_shape_)
            )
            raise DataError("X", got=f"images of {got}", expected=f"{expected}, as in fit")
        return images

    def _leaf_prob(self, images: Pixels) -> NDArray[np.float64]:
        with self._running() as device:
            return leaf_prob(self.tree_, TrainingImages(images, device)).double().cpu().numpy()

    def _elbo(self, images: Pixels) -> float:
        with self._running() as device:
            torch.manual_seed(SCORE_SEED)
            return mean_elbo(self.tree_, TrainingImages(images, device))["elbo"]

    @contextmanager
    def _running(self) -> Iterator[torch.device]:
        """The tree's device, with the threads of the fit: equal results need equal numbers."""
        self.tree_.eval()
        device = next(self.tree_.parameters()).device
        with _own_state(device, self._threads), torch.no_grad():
            yield device


def _train(images: TrainingImages, config: Config, folder: Path, verbose: bool) -> Grower:
    """The restart to keep, of all of them one after another.

    Not side by side as in `train.restarts`: its processes read images from a named source, and need
    a main module that can be imported, which a notebook has not.
    """
    total = config.tree.restarts * tree_cost(config.tree, len(images))
    trees = []
    with TrainingProgress(total, quiet=not verbose) as progress:
        for number in range(config.tree.restarts):
            torch.manual_seed(config.seed + number * SEED_STRIDE)
            trees += TreeStage(images, config.tree, folder / TREE.format(number), progress).run()
        progress.extend(progress.done)
    return choose_tree(trees, config.tree)


def _claim(folder: Path, config: Config, images: Pixels) -> None:
    """Writes what the fit depends on, or checks that it is what the folder's fit began with."""
    path = folder / CLAIM
    digest = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), CHUNK):
        # Of floats: the same images are the same fit, whether as bytes or as floats.
        digest.update(np.ascontiguousarray(to_float(images[start : start + CHUNK])).data)
    mine = {
        "tree": json.loads(config.tree.model_dump_json()),
        "threads": config.threads,
        "seed": config.seed,
        "images": digest.hexdigest()[:16],
    }
    if not path.exists():
        write_json(path, mine)
        return
    try:
        theirs = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as fault:
        raise CheckpointError(
            str(path), got=str(fault), expected="what a fit wrote", hint="choose another folder"
        ) from fault
    other = [key for key, value in mine.items() if theirs.get(key) != value]
    if other:
        raise ConfigError(
            "checkpoint",
            got=f"{str(folder)!r}, a fit with other {', '.join(other)}",
            expected="a folder of this fit, or an empty one",
        )


@contextmanager
def _folder(checkpoint: str | os.PathLike[str] | None) -> Iterator[Path]:
    if checkpoint is not None:
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="treediffusion-") as folder:
        yield Path(folder)


@contextmanager
def _own_state(device: torch.device, threads: int) -> Iterator[None]:
    """Random numbers and threads of our own; the caller's are as before afterwards."""
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices):
        try:
            torch.set_num_threads(threads or before)
            yield
        finally:
            torch.set_num_threads(before)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    # AssertionError: how a PyTorch that was built without CUDA says so.
    except (RuntimeError, AssertionError, TypeError) as fault:
        raise BackendUnavailableError(
            "device", got=repr(name), expected="None, 'cpu' or a device of this machine"
        ) from fault
    return device


def _images(X: Any) -> Pixels:
    """[n, C, H, W] uint8, or float32 in 0..1, from any form that the class names.

    Raises:
        DataError: not images, or of a shape, type or range that cannot be used.
    """
    if isinstance(X, (str, os.PathLike)):
        pixels = load_images(os.fspath(X)).images
    else:
        pixels = as_images(_array(X), name="X")
    height, width = pixels.shape[2:]
    if height != width:
        raise DataError(
            "X",
            got=f"images of {height}x{width} pixels",
            expected="square images",
            hint="crop or resize them first",
        )
    return pixels


def _array(X: Any) -> NDArray[Any]:
    try:
        if isinstance(X, Dataset):
            items = [X[number] for number in range(len(X))]  # type: ignore[arg-type]
            pictures = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
            return np.stack([np.asarray(picture) for picture in pictures])
        array = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    except (TypeError, ValueError) as fault:
        raise DataError("X", got=f"{type(X).__name__} ({fault})", expected=FORMS) from fault
    if array.dtype == object:
        hint = "a sparse matrix needs toarray()"
        raise DataError("X", got=f"{type(X).__name__} of objects", expected=FORMS, hint=hint)
    return array
