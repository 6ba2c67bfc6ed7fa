"""What the page shows, as plain values: an `Atlas` of `Node`s, whose images are numbers of tiles.

A node with a single child is left out: it looks like its child. Only the root always stays. The
children of a node are the nearest nodes below it that are shown, so for every node with children

    share[node] = sum of share[child] over its children

Nothing is computed here but that view.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError
from ..topology import TreeTopology
from .finder import Finder

UInt8Array = NDArray[np.uint8]
FORMAT = 1


@dataclass(frozen=True)
class Amounts:
    """How many images a page has; at the defaults, ten leaves of 32x32 colours stay below 3 MB.

    Attributes:
        leaf: generated images of each leaf.
        inner: generated images of each node above.
        roots: latents that are drawn through every leaf.
        members: real images of each leaf.
        assigned: real images that are looked at, evenly spaced among those given.
    """

    leaf: int = 12
    inner: int = 12
    roots: int = 6
    members: int = 12
    assigned: int = 10_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(name, got=repr(value), expected="a whole number, 0 or more")
        if not self.assigned:
            raise ConfigError("assigned", got=0, expected="at least 1")


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images to show beside the generated ones.

    Attributes:
        images: [n, C, H, W] uint8.
        labels: [n] class of each, from 0 to K - 1; None where unknown.
        class_names: [K] their names; the numbers themselves if None.
    """

    images: UInt8Array
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            got = f"{images.dtype} {list(images.shape)}"
            raise ShapeError("images", got=got, expected="uint8 [n, C, H, W], n at least 1")
        if labels is not None and labels.shape != (len(images),):
            expected = f"[{len(images)}], one for each image"
            raise ShapeError("labels", got=list(labels.shape), expected=expected)

    def classes(self) -> tuple[tuple[str, ...], NDArray[np.int64]] | None:
        """Names of the classes that occur, and each image's number among them; None if unknown."""
        if self.labels is None:
            return None
        found, index = np.unique(self.labels, return_inverse=True)
        known = dict(enumerate(self.class_names or ()))
        return tuple(known.get(int(k), str(k)) for k in found), index.astype(np.int64)

    def spaced(self, most: int) -> RealImages:
        """At most so many, evenly spaced."""
        if len(self.images) <= most:
            return self
        kept = np.linspace(0, len(self.images) - 1, most).astype(np.int64)
        labels = None if self.labels is None else self.labels[kept]
        return RealImages(self.images[kept], labels, self.class_names)


@dataclass(frozen=True)
class Sample:
    """A generated image.

    Attributes:
        tile: its picture.
        leaf: id of its leaf.
        prob: [L] probability of each leaf given its latents, to three decimals.
        nearest: tile of the nearest real image, pixel by pixel; None where there are none.
    """

    tile: int
    leaf: int
    prob: list[float]
    nearest: int | None


@dataclass(frozen=True)
class Router:
    """How a node decides, over all images that reach it, each counted as far as it does.

    Attributes:
        left: mean probability of the left child.
        confidence: mean probability of the more probable child; 1/2 is a guess, 1 a certainty.
        histogram: [10] share of the images by their probability of the left child.
    """

    left: float
    confidence: float
    histogram: list[float]


@dataclass(frozen=True)
class Node:
    """A card of the page.

    Attributes:
        name: of the node.
        share: of all images.
        count: real images here; None where none were given.
        mean: tile of their mean, of what stands for them where there are none.
        vae: tile of TreeVAE's mean image; None without a model.
        samples: generated images.
        members: tiles of real images.
        classes: [K] real images of each class here; None where classes are unknown.
        router: None for a leaf.
        pairs: tiles of the same latents and noise through the left and through the right child.
        roots: of a leaf, tiles of TreeVAE's and the denoiser's image of the same latents.
    """

    name: str
    share: float
    count: int | None
    mean: int
    vae: int | None = None
    samples: list[Sample] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    classes: list[int] | None = None
    router: Router | None = None
    pairs: list[tuple[int, int]] = field(default_factory=list)
    roots: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Everything a page shows.

    Attributes:
        title: what the images are.
        nodes: in row order, without those that have a single child.
        leaves: [L] names by leaf id.
        classes: [K] names; None where unknown.
        tiles: [M, C, H, W] uint8, every picture once.
        seed: of everything generated.
        steps: of the sampler; None without a model.
        total: real images given; None without any.
        finder: for "where does this image go"; None without images.
    """

    title: str
    nodes: list[Node]
    leaves: tuple[str, ...]
    classes: tuple[str, ...] | None
    tiles: UInt8Array
    seed: int
    steps: int | None
    total: int | None
    finder: Finder | None

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON, all but the pictures."""
        _, channels, height, width = self.tiles.shape
        return {
            "format": FORMAT,
            "title": self.title,
            "image": {"channels": channels, "height": height, "width": width},
            "nodes": [asdict(node) for node in self.nodes],
            "leaves": list(self.leaves),
            "classes": None if self.classes is None else list(self.classes),
            "seed": self.seed,
            "steps": self.steps,
            "total": self.total,
            "finder": None if self.finder is None else self.finder.to_dict(),
        }


class Tiles:
    """Collects pictures; equal ones become one tile."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._images: list[UInt8Array] = []

    def add(self, image: UInt8Array) -> int:
        """The tile of an image [C, H, W]."""
        key = image.tobytes()
        if key not in self._number:
            self._number[key] = len(self._images)
            self._images.append(np.ascontiguousarray(image))
        return self._number[key]

    def stacked(self) -> UInt8Array:
        """[M, C, H, W]."""
        return np.stack(self._images)


def shown_rows(tree: TreeTopology) -> list[int]:
    """Rows of the nodes that have a card: the root, the routers and the leaves."""
    return sorted({TreeTopology.ROOT, *tree.routers.tolist(), *tree.leaves.tolist()})
