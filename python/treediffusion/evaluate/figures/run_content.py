"""What a run's folder holds, read when a figure first asks for it; what it does not hold says why.

At most 10,000 images, evenly spaced, stand for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...config import Config, parse_config
from ...data import ImageSet, load_images, to_bytes
from ...data.sources import find_terms
from ...errors import CheckpointError, DataError, TreeDiffusionError
from ...nn.tree_vae import TreeVAE
from ...runtime import Engine
from ...topology import TreeTopology
from ...train import checkpoint
from ...train.images import TrainingImages
from ...train.measure import leaf_prob
from ...train.run import CONFIG, TREE, check_tree
from ..report import node_share
from ..statistics import evenly_spaced

MOST_IMAGES = 10_000
GALLERY = 12
BUNDLE, QUALITY = "bundle", "quality.json"
VECTORS = "the run is of vectors, not of images"

Split = Literal["train", "test"]


class LeftOut(Exception):
    """A figure's reason for not being drawn."""


@dataclass
class Wanted:
    """What to draw, and what a run's folder does not hold.

    Attributes:
        run: the folder.
        data: images to assign; those it was trained on if None.
        split: which part of them.
        attributes: the file of attributes, if any.
        words: the file of words, if any.
        seed: of everything generated.
    """

    run: Path
    data: str | None = None
    split: Split = "train"
    attributes: Path | None = None
    words: Path | None = None
    seed: int = 0


class RunContent:
    """A run's parts, each read when it is first asked for; a part that is not there says why."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self._open = wanted, list[Engine]()
        path = wanted.run / CONFIG
        try:
            claim = json.loads(path.read_text("utf-8"))
            self.image_shape = tuple(int(side) for side in claim["image_shape"])
            settings = claim["config"]
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise CheckpointError(
                str(path),
                got="no such file" if isinstance(fault, FileNotFoundError) else str(fault),
                expected="the settings of a run",
                hint="name a folder that `treediffusion train` wrote",
            ) from fault
        self.config: Config = parse_config(settings, source=str(path))

    def close(self) -> None:
        """Gives the engine's memory back."""
        for engine in self._open:
            engine.close()

    @cached_property
    def tree_vae(self) -> TreeVAE:
        """The finished tree, on the CPU."""
        path = self.wanted.run / TREE
        try:
            check_tree(self.wanted.run)
        except CheckpointError as fault:
            raise LeftOut(f"the tree is not finished: {fault.got}") from fault
        tensors, state = checkpoint.load(path)
        channels, size, _ = self.image_shape
        tree = TreeVAE(
            self.config.tree,
            TreeTopology(tuple(state["topology"])),
            image_channels=channels,
            image_size=size,
        )
        own = {k.removeprefix("model.tree."): v for k, v in tensors.items() if "model.tree." in k}
        tree.load_state_dict(own)
        return tree.eval()

    @property
    def tree(self) -> TreeTopology:
        """Its shape."""
        return self.tree_vae.topology

    @cached_property
    def data(self) -> ImageSet:
        """At most so many of the images, evenly spaced."""
        source = self.wanted.data or self.config.data
        try:
            found = load_images(
                source,
                split=self.wanted.split,
                size=self.config.image_size,
                skip_corrupt=self.config.skip_corrupt,
            )
        except TreeDiffusionError as fault:
            raise LeftOut(f"no images: {fault}; name them with --data") from fault
        if tuple(found.images.shape[1:]) != self.image_shape:
            shape, own = list(found.images.shape[1:]), list(self.image_shape)
            raise LeftOut(f"images of the shape {shape}, where the run has {own}")
        self.rows = evenly_spaced(len(found.images), MOST_IMAGES)
        self.given = len(found.images)
        labels = None if found.labels is None else found.labels[self.rows]
        return ImageSet(
            np.ascontiguousarray(found.images[self.rows]), labels, found.name, found.class_names,
            found.fingerprint,
        )  # fmt: skip

    @property
    def has_images(self) -> bool:
        """Whether there is something to look at."""
        return self.image_shape[0] in (1, 3) and self.image_shape[1] > 1

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """[n, C, H, W], of images that can be looked at."""
        if not self.has_images:
            raise LeftOut(VECTORS)
        return to_bytes(self.data.images)

    @cached_property
    def leaf(self) -> NDArray[np.int64]:
        """[n] id of each image's leaf."""
        images = TrainingImages(self.data.images)
        found: NDArray[np.int64] = leaf_prob(self.tree_vae, images).argmax(1).numpy()
        return found

    @property
    def share(self) -> NDArray[np.float64]:
        """[N] share of the images that reach each node."""
        return node_share(self.tree, self.leaf)

    @property
    def labels(self) -> NDArray[np.int64]:
        """[n] class of each image."""
        if self.data.labels is None:
            raise LeftOut("the images have no labels")
        return self.data.labels

    def class_names(self, classes: NDArray[Any]) -> list[str]:
        """Names of some classes; their numbers where there are no names."""
        known = self.data.class_names
        return [known[k] if known is not None else str(k) for k in classes.tolist()]

    @property
    def words(self) -> list[str]:
        """What each number of a vector weighs: of the file that was named, or of the data set."""
        path = self.wanted.words
        if path is None:
            try:
                known = find_terms(self.wanted.data or self.config.data)
            except TreeDiffusionError as fault:
                raise LeftOut(f"no words: {fault}") from fault
            if not known:
                raise LeftOut("no words: name a file with one a line, of each number, with --words")
            return list(known)
        try:
            return path.read_text("utf-8").splitlines()
        except (OSError, ValueError) as fault:
            raise DataError(
                str(path), got=str(fault), expected="text with a word a line"
            ) from fault

    @cached_property
    def engine(self) -> Engine:
        """The run's bundle, at work."""
        bundle = self.wanted.run / BUNDLE
        if not self.has_images:
            raise LeftOut(VECTORS)
        if not bundle.is_dir():
            run = self.wanted.run
            raise LeftOut(f"no bundle: treediffusion-export --checkpoint {run} --out {bundle}")
        try:
            engine = Engine.load(bundle)
        except (TreeDiffusionError, OSError) as fault:
            raise LeftOut(f"the bundle cannot be used: {fault}") from fault
        if engine.topology != self.tree:
            engine.close()
            raise LeftOut("the bundle is of another tree: export it again")
        self._open.append(engine)
        return engine

    @cached_property
    def gallery(self) -> NDArray[np.uint8]:
        """[L, k, C, H, W] generated images."""
        engine, seed = self.engine, self.wanted.seed
        return np.stack(
            [engine.generate(GALLERY, node=name, seed=seed).images for name in self.tree.leaf_names]
        )

    @cached_property
    def quality(self) -> dict[str, Any]:
        """What a judge said of generated images."""
        if not self.has_images:
            raise LeftOut(VECTORS)
        for path in (self.wanted.run / QUALITY, self.wanted.run / "quality" / QUALITY):
            if path.is_file():
                found = json.loads(path.read_text("utf-8"))
                if tuple(found["leaf_names"]) != self.tree.leaf_names:
                    raise LeftOut(f"{path} is of another tree")
                return dict(found)
        run, data = self.wanted.run, self.wanted.data or self.config.data
        command = f"treediffusion evaluate --bundle {run / BUNDLE} --data {data} --out {run}"
        raise LeftOut(f"no {QUALITY}: {command}")
