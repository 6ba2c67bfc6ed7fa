"""The engine's verbs, cut in two: what happens before the network's evaluations, and after.

A task holds images on their way (`Drawing`) and knows what becomes of them. `Engine` runs one task
after the other; a scheduler that shares calls between requests makes tasks and advances them
together. Arguments are checked already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..topology import TreeTopology
from .batches import Names
from .drawing import Drawing
from .pixels import to_uint8, to_unit
from .plan import Plan
from .results import Bytes, Floats, Generation, Preview, Sheet
from .routing import leaf_probabilities, route, turn_probabilities
from .sampling import Sampler

Result = TypeVar("Result")
Same = TypeVar("Same")


class Task(Generic[Result]):
    """A batch of a call.

    Args:
        drawing: the images on their way.
        arrange: the network's floats as the bytes of the result, in its shape.
        label: the bytes with all that belongs to them.
    """

    def __init__(
        self,
        drawing: Drawing,
        arrange: Callable[[Floats], Bytes],
        label: Callable[[Bytes], Result],
    ) -> None:
        self.drawing, self._arrange, self._label = drawing, arrange, label

    def preview(self, rows: slice) -> Preview:
        """The newest estimate of the result's images, which lie at `rows` of a call."""
        drawing = self.drawing
        images = self._arrange(drawing.images if drawing.done else drawing.x0)
        return Preview(images, rows, drawing.evaluation, drawing.evaluations)

    def result(self) -> Result:
        """What the call gives for this batch, once the drawing is done."""
        return self._label(self._arrange(self.drawing.images))


class Tasks:
    """Makes tasks.

    Args:
        sampler: of the bundle and its back end.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._tree = sampler.bundle.topology

    def advance(self, tasks: Sequence[Task[Any]]) -> None:
        """Moves every task on by one evaluation of the network; together they share calls."""
        self._sampler.advance([task.drawing for task in tasks])

    def generate(self, names: Names, plan: Plan, *, node: str) -> Task[Generation]:
        """Images of a node."""
        z, p_left = self._prior(names, node)
        leaf = route(self._tree, p_left, seed=names.seed, images=names.index, node=node)
        leaf_prob = leaf_probabilities(self._tree, p_left)
        return self._in_leaves(z, leaf, leaf_prob, plan, names)

    def generate_leaves(self, names: Names, plan: Plan) -> Task[Sheet]:
        """The same latents and noise in every leaf."""
        z, p_left = self._sampler.prior(names)
        return self._in_all_leaves(z, leaf_probabilities(self._tree, p_left), plan, names)

    def reconstruct(
        self, images: Bytes, names: Names, plan: Plan, *, leaf: str
    ) -> Task[Generation]:
        """Images from the latents of given ones, [B, C, H, W] uint8."""
        z, leaf_prob = self._sampler.posterior(to_unit(images), names)
        if leaf == "most_probable":
            chosen = leaf_prob.argmax(axis=1)
        elif leaf == "sampled":
            p_left = turn_probabilities(self._tree, leaf_prob)
            chosen = route(self._tree, p_left, seed=names.seed, images=names.index)
        else:
            chosen = np.full(len(z), self._tree.leaf_names.index(leaf))
        return self._in_leaves(z, chosen, leaf_prob, plan, names)

    def reconstruct_leaves(self, images: Bytes, names: Names, plan: Plan) -> Task[Sheet]:
        """The latents of given images in every leaf."""
        z, leaf_prob = self._sampler.posterior(to_unit(images), names)
        return self._in_all_leaves(z, leaf_prob, plan, names)

    def interpolate(
        self, names: Names, plan: Plan, *, start: str, end: str, frames: int
    ) -> Task[Bytes]:
        """[B, F, C, H, W] bytes: the condition moves in a line from one leaf to another."""
        z, _ = self._sampler.prior(names)
        many = names.repeated(frames)
        first, last = (
            self._sampler.signals(z, np.full(len(z), self._tree.leaf_names.index(leaf)), plan)
            .repeated(frames)
            for leaf in (start, end)
        )  # fmt: skip
        share = np.tile(np.linspace(0.0, 1.0, frames), len(z))
        drawing = self._sampler.begin(first.towards(last, share), plan, many)
        return Task(drawing, self._grid(len(z), frames), _unchanged)

    def _in_leaves(
        self, z: Floats, leaf: NDArray[np.int64], leaf_prob: Floats, plan: Plan, names: Names
    ) -> Task[Generation]:
        drawing = self._sampler.begin(self._sampler.signals(z, leaf, plan), plan, names)
        leaves = self._tree.leaf_names
        return Task(
            drawing,
            self._bytes,
            lambda images: Generation.of(images, leaf, leaf_prob, leaves, names),
        )

    def _in_all_leaves(self, z: Floats, leaf_prob: Floats, plan: Plan, names: Names) -> Task[Sheet]:
        leaves = self._tree.num_leaves
        leaf = np.tile(np.arange(leaves, dtype=np.int64), len(z))
        signals = self._sampler.signals(np.repeat(z, leaves, axis=0), leaf, plan)
        drawing = self._sampler.begin(signals, plan, names.repeated(leaves))
        return Task(drawing, self._grid(len(z), leaves), lambda images: Sheet(images, leaf_prob))

    def _prior(self, names: Names, node: str) -> tuple[Floats, Floats]:
        if node == self._tree.names[TreeTopology.ROOT]:
            return self._sampler.prior(names)
        return self._sampler.prior_through(node, names)

    def _bytes(self, x: Floats) -> Bytes:
        return to_uint8(x, self._sampler.bundle.pixel_range)

    def _grid(self, rows: int, columns: int) -> Callable[[Floats], Bytes]:
        shape = (rows, columns, *self._sampler.bundle.image_shape)
        return lambda x: self._bytes(x).reshape(shape)


def _unchanged(images: Same) -> Same:
    return images
