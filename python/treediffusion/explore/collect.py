"""From an engine to an atlas: draw images, decode, assign, and sort it all by node.

Shares and routers are those of the real images where there are any, else the training's shares and
the routers over draws of the prior. Every number comes from `seed`, so that the same bundle and
images give the same page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..runtime import Engine, Generation
from ..runtime.plan import SamplingOptions
from ..runtime.routing import turn_probabilities
from ..topology import TreeTopology
from .atlas import Amounts, Atlas, Node, RealImages, Router, Sample, Tiles, shown_rows
from .finder import Finder, make_finder, spaced

if TYPE_CHECKING:
    from ..progress import Progress

PRIOR_DRAWS = 64
BINS = 10
CHUNK = 500

UInt8Array = NDArray[np.uint8]
Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def images_to_draw(tree: TreeTopology, amounts: Amounts) -> int:
    """How many images `collect` draws, for a progress bar."""
    inner = len(shown_rows(tree)) - tree.num_leaves
    return (amounts.leaf + amounts.roots) * tree.num_leaves + amounts.inner * inner


def collect(
    engine: Engine,
    real: RealImages | None = None,
    *,
    title: str = "",
    seed: int = 0,
    amounts: Amounts | None = None,
    progress: Progress | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Atlas:
    """What a page shows of a model.

    Args:
        engine: the model at work.
        real: images it was trained on, or others of their kind; without them there are no members,
            no nearest neighbours and no classes.
        title: what the images are.
        seed: of everything generated.
        amounts: how many of each kind.
        progress: advanced by 1 per image drawn.
        **sampling: see `SamplingOptions`.

    Raises:
        ShapeError: real images of another size.
        ConfigError: a sampling option out of its range.
    """
    amounts = amounts or Amounts()
    tree = engine.topology
    drawn = _Drawn(engine, seed, amounts, progress, sampling)
    prior = engine.decode_prior(max(PRIOR_DRAWS, amounts.roots), seed=seed)
    if real is not None:
        real = real.spaced(amounts.assigned)
        leaf_prob = _assign(engine, real.images)
        book = _Book(tree, real, leaf_prob.argmax(axis=1).astype(np.int64))
        share = book.share
    else:
        leaf_prob, book, share = prior.leaf_prob, None, engine.node_share
    reach = np.stack([leaf_prob[:, tree.leaves_below(n)].sum(axis=1) for n in tree.names], axis=1)
    vae = _expected(prior.images, prior.leaf_prob, tree)
    tiles = Tiles()
    members = {} if book is None else _members(book, leaf_prob, amounts.members, tiles)
    nodes = []
    for row in shown_rows(tree):
        made = drawn.of_node(row)
        nodes.append(
            Node(
                name=tree.names[row],
                share=float(share[row]),
                count=None if book is None else book.count(row),
                mean=tiles.add(vae[row] if book is None else book.mean(row)),
                vae=tiles.add(vae[row]),
                samples=[] if made is None else _samples(made, book, tiles),
                members=members.get(row, []),
                classes=None if book is None else book.classes(row),
                router=_router(tree, row, leaf_prob, reach),
                pairs=drawn.pairs(row, tiles),
                roots=drawn.roots(row, prior.images, tiles),
            )
        )
    return Atlas(
        title=title,
        nodes=nodes,
        leaves=tree.leaf_names,
        classes=None if book is None else book.class_names,
        tiles=tiles.stacked(),
        seed=int(seed),
        steps=int(drawn.steps),
        total=None if real is None else len(real.images),
        finder=_finder(tree, book, drawn),
    )


def clusters_atlas(
    tree: TreeTopology,
    leaf: Ints,
    real: RealImages,
    *,
    title: str = "",
    amounts: Amounts | None = None,
) -> Atlas:
    """What a page shows of clusters alone, while there is no model to draw with.

    Args:
        tree: the tree.
        leaf: [n] id of each image's leaf.
        real: the images.
        title: what they are.
        amounts: how many members to show.

    Raises:
        ShapeError: another number of leaves than of images.
    """
    if leaf.shape != (len(real.images),):
        expected = f"[{len(real.images)}], one for each image"
        raise ShapeError("leaf", got=list(leaf.shape), expected=expected)
    amounts = amounts or Amounts()
    book = _Book(tree, real, leaf.astype(np.int64))
    certain = np.eye(tree.num_leaves)[book.leaf]
    tiles = Tiles()
    members = _members(book, certain, amounts.members, tiles)
    nodes = [
        Node(
            name=tree.names[row],
            share=float(book.share[row]),
            count=book.count(row),
            mean=tiles.add(book.mean(row)),
            members=members[row],
            classes=book.classes(row),
        )
        for row in shown_rows(tree)
    ]
    return Atlas(
        title=title,
        nodes=nodes,
        leaves=tree.leaf_names,
        classes=book.class_names,
        tiles=tiles.stacked(),
        seed=0,
        steps=None,
        total=len(real.images),
        finder=make_finder(real.images, book.leaf, tree.num_leaves, generated=False),
    )


class _Book:
    """Real images by node."""

    def __init__(self, tree: TreeTopology, real: RealImages, leaf: Ints) -> None:
        self.tree, self.images, self.leaf = tree, real.images, leaf
        known = real.classes()
        self.class_names = None if known is None else known[0]
        self._class = None if known is None else known[1]
        self._below = [np.isin(leaf, tree.leaves_below(name)) for name in tree.names]
        self.share = np.array([below.mean() for below in self._below])

    def count(self, row: int) -> int:
        return int(self._below[row].sum())

    def mean(self, row: int) -> UInt8Array:
        """[C, H, W]; black where there are none."""
        below = self._below[row]
        if not below.any():
            return np.zeros(self.images.shape[1:], np.uint8)
        return _bytes(self.images[below].mean(axis=0))

    def classes(self, row: int) -> list[int] | None:
        """[K] images of each class."""
        if self._class is None or self.class_names is None:
            return None
        inside = self._class[self._below[row]]
        counts: list[int] = np.bincount(inside, minlength=len(self.class_names)).tolist()
        return counts

    def nearest(self, images: UInt8Array) -> UInt8Array:
        """[n, C, H, W] the image with the smallest squared distance to each."""
        asked = images.reshape(len(images), -1).astype(np.float32)
        least, found = np.full(len(asked), np.inf), np.zeros(len(asked), np.int64)
        for start in range(0, len(self.images), CHUNK):  # as floats, all of them are gigabytes
            known = self.images[start : start + CHUNK]
            known = known.reshape(len(known), -1).astype(np.float32)
            distance = np.square(known).sum(axis=1) - 2.0 * asked @ known.T
            best = distance.argmin(axis=1)
            nearer = distance[np.arange(len(asked)), best] < least
            found[nearer] = start + best[nearer]
            least[nearer] = distance[nearer, best[nearer]]
        nearest: UInt8Array = self.images[found]
        return nearest


class _Drawn:
    """Everything generated, each kind of it once."""

    def __init__(
        self,
        engine: Engine,
        seed: int,
        amounts: Amounts,
        progress: Progress | None,
        sampling: SamplingOptions,
    ) -> None:
        self._tree, self._amounts = engine.topology, amounts
        leaves = set(self._tree.leaves.tolist())
        self._made: dict[int, Generation] = {}
        for row in shown_rows(self._tree):
            number, name = amounts.leaf if row in leaves else amounts.inner, self._tree.names[row]
            if number:
                self._made[row] = engine.generate(number, node=name, seed=seed, **sampling)
            if progress is not None:
                progress.advance(number, f"node {name}")
        self._sheet = (
            engine.generate_leaves(amounts.roots, seed=seed, **sampling) if amounts.roots else None
        )
        if progress is not None:
            progress.advance(amounts.roots * len(leaves), "every leaf from the same roots")
        told = sampling.get("num_inference_steps")
        self.steps = told or engine.manifest["sampling"]["num_inference_steps"]

    def of_node(self, row: int) -> Generation | None:
        return self._made.get(row)

    def of_leaves(self) -> tuple[UInt8Array, Ints] | None:
        """Images of all leaves, and their ids."""
        made = [self._made[row] for row in self._tree.leaves.tolist() if row in self._made]
        if not made:
            return None
        return np.concatenate([m.images for m in made]), np.concatenate([m.leaf for m in made])

    def pairs(self, row: int, tiles: Tiles) -> list[tuple[int, int]]:
        """The roots that reach a node most probably first, in its likeliest leaf on each side."""
        if self._sheet is None or row not in self._tree.routers:
            return []
        prob = self._sheet.leaf_prob
        sides = [
            self._tree.leaves_below(self._tree.names[child[row]])
            for child in (self._tree.left, self._tree.right)
        ]
        reach = prob[:, np.concatenate(sides)].sum(axis=1)
        found = []
        for root in np.argsort(-reach, kind="stable"):
            ends = [side[prob[root, side].argmax()] for side in sides]
            left, right = (tiles.add(self._sheet.images[root, leaf]) for leaf in ends)
            found.append((left, right))
        return found

    def roots(self, row: int, decoded: UInt8Array, tiles: Tiles) -> list[tuple[int, int]]:
        """Of a leaf, TreeVAE's image and the denoiser's; the likeliest roots first."""
        if self._sheet is None or row not in self._tree.leaves:
            return []
        leaf = int(np.searchsorted(self._tree.leaves, row))
        order = np.argsort(-self._sheet.leaf_prob[:, leaf], kind="stable")
        return [
            (tiles.add(decoded[root, leaf]), tiles.add(self._sheet.images[root, leaf]))
            for root in order
        ]


def _assign(engine: Engine, images: UInt8Array) -> Floats:
    """[n, L] leaf probabilities."""
    parts = [engine.assign(images[k : k + CHUNK]) for k in range(0, len(images), CHUNK)]
    return np.concatenate(parts)


def _expected(decoded: UInt8Array, leaf_prob: Floats, tree: TreeTopology) -> UInt8Array:
    """[N, C, H, W] TreeVAE's mean image below each node, each draw counted as far as it goes there.

    Args:
        decoded: [n, L, C, H, W].
        leaf_prob: [n, L].
        tree: the tree.
    """
    found = []
    for name in tree.names:
        below = tree.leaves_below(name)
        # A leaf that no draw reaches still has an image: that of all draws alike.
        weight = leaf_prob[:, below].astype(np.float64) + 1e-9
        found.append(np.einsum("nl,nlchw->chw", weight / weight.sum(), decoded[:, below]))
    return _bytes(np.stack(found))


def _members(book: _Book, leaf_prob: Floats, most: int, tiles: Tiles) -> dict[int, list[int]]:
    """Tiles of real images by row: of a leaf, spaced from its surest to its least sure one.

    A node above shows some of its leaves', as many of each as it has images there.
    """
    tree, found = book.tree, {}
    for number, row in enumerate(tree.leaves.tolist()):
        here = np.flatnonzero(book.leaf == number)
        by_surety = here[np.argsort(-leaf_prob[here, number], kind="stable")]
        found[row] = [tiles.add(book.images[k]) for k in spaced(by_surety, most)]
    for row in set(shown_rows(tree)) - set(found):
        queue = [
            ((rank + 0.5) / max(book.share[leaf], 1e-9), tile)
            for leaf in tree.leaves[tree.leaves_below(tree.names[row])].tolist()
            for rank, tile in enumerate(found[leaf])
        ]
        found[row] = [tile for _, tile in sorted(queue)[:most]]
    return found


def _samples(made: Generation, book: _Book | None, tiles: Tiles) -> list[Sample]:
    near = None if book is None else book.nearest(made.images)
    return [
        Sample(
            tile=tiles.add(image),
            leaf=int(made.leaf[k]),
            prob=[round(float(p), 3) for p in made.leaf_prob[k]],
            nearest=None if near is None else tiles.add(near[k]),
        )
        for k, image in enumerate(made.images)
    ]


def _router(tree: TreeTopology, row: int, leaf_prob: Floats, reach: Floats) -> Router | None:
    """A node's decisions; reach: [n, N] probability of each node."""
    if row not in tree.routers:
        return None
    column = int(np.searchsorted(tree.routers, row))
    left = turn_probabilities(tree, leaf_prob.astype(np.float32))[:, column].astype(np.float64)
    weight = reach[:, row] / max(float(reach[:, row].sum()), 1e-12)
    bins = np.minimum((left * BINS).astype(np.int64), BINS - 1)
    histogram = np.bincount(bins, weights=weight, minlength=BINS)
    return Router(
        left=round(float(weight @ left), 4),
        confidence=round(float(weight @ np.maximum(left, 1.0 - left)), 4),
        histogram=[round(float(part), 4) for part in histogram],
    )


def _finder(tree: TreeTopology, book: _Book | None, drawn: _Drawn) -> Finder | None:
    if book is not None:
        return make_finder(book.images, book.leaf, tree.num_leaves, generated=False)
    made = drawn.of_leaves()
    if made is None:
        return None
    return make_finder(made[0], made[1].astype(np.int64), tree.num_leaves, generated=True)


def _bytes(means: Floats) -> UInt8Array:
    rounded: UInt8Array = np.floor(means + 0.5).astype(np.uint8)
    return rounded
