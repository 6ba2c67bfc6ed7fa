"""The graphs of a bundle in the right order: latents, conditions and evaluations, in float32.

An image draws every number it needs from `noise`, by its name and the purpose. Calls of the back
end have one of the numbers of rows that it names, so a row's result is that of the same row alone.
Nothing is rounded here and nothing validated; `engine` does both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendUnavailableError
from ..noise import Stream, normals, uniform
from ..signals import leaf_slots
from .backends import Backend
from .batches import Names
from .drawing import Drawing, Signals
from .plan import Plan
from .routing import choose, node_probability

CANDIDATES = 32
"""Draws of the latents from which one that reaches a node is chosen."""

Floats = NDArray[np.float32]
Array = NDArray[Any]


class Sampler:
    """The graphs of a bundle, called in the right order.

    Args:
        bundle: what they are.
        backend: what runs them.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend
        self._process = os.getpid()

    def call(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a graph on any number of rows, in calls of the sizes that the back end has.

        Args:
            graph: its role.
            feeds: inputs by name, [rows, ...] each; what the graph does not have is left out.

        Returns:
            Outputs by name, [rows, ...] each.

        Raises:
            BackendUnavailableError: this process was forked off the one that loaded the bundle.
        """
        if os.getpid() != self._process:
            # The threads of a back end do not survive a fork: the call would wait for ever.
            raise BackendUnavailableError(
                "engine", got="a call in a forked process", expected="the process that loaded it",
                hint="load an engine in each process, or start processes with 'spawn'",
            )  # fmt: skip
        feeds = {spec.name: feeds[spec.name] for spec in self.bundle.graphs[graph].inputs}
        total = len(next(iter(feeds.values())))
        parts = []
        for rows, missing in _calls(total, self.backend.sizes):
            cut = {name: value[rows] for name, value in feeds.items()}
            if missing:
                cut = {name: np.pad(value, _below(value, missing)) for name, value in cut.items()}
            parts.append(self.backend.run(graph, cut))
        return {name: np.concatenate([p[name] for p in parts])[:total] for name in parts[0]}

    def latent_noise(self, names: Names, *, draw: int = 0) -> Floats:
        """[B, N, Z, R, R]: the root's from its own stream, the other rows' by their number."""
        shape, nodes = self.bundle.latent_shape, self.bundle.topology.num_nodes
        draws = ((Stream.ROOT, (0,)), (Stream.NODE, range(1, nodes)))
        parts = [
            normals(names.seed, names.index, shape, stream=stream, steps=steps, draw=draw)
            for stream, steps in draws
        ]
        return np.concatenate(parts, axis=1)

    def prior(self, names: Names, *, draw: int = 0) -> tuple[Floats, Floats]:
        """Samples of the tree's prior: z [B, N, Z, R, R], and p_left [B, I] at its routers."""
        found = self.call("path", {"noise": self.latent_noise(names, draw=draw)})
        return found["z"], found["p_left"]

    def prior_through(self, node: str, names: Names) -> tuple[Floats, Floats]:
        """Samples of the prior given that the path passes a node.

        p(z | node) is proportional to p(node | z) p(z). Of `CANDIDATES` samples of p(z), one is
        kept with probability proportional to its p(node | z): latents that would hardly ever reach
        the node are hardly ever kept. Exact as candidates grow in number; good where the node's
        probability is not far below 1 / CANDIDATES.

        Args:
            node: its name.
            names: of the images.

        Returns:
            z [B, N, Z, R, R] and p_left [B, I].
        """
        tree = self.bundle.topology
        drawn = [self.prior(names, draw=k) for k in range(CANDIDATES)]
        reach = np.stack([node_probability(tree, p_left, node) for _, p_left in drawn], axis=1)
        u = uniform(names.seed, names.index, stream=Stream.CHOICE, step=tree.row(node))
        kept = choose(reach, u)
        rows = np.arange(len(kept))
        z, p_left = (np.stack(candidates)[kept, rows] for candidates in zip(*drawn, strict=True))
        return z, p_left

    def posterior(self, images: Floats, names: Names) -> tuple[Floats, Floats]:
        """Samples of the latents of images in 0..1: z [B, N, Z, R, R], and leaf_prob [B, L]."""
        feeds = {"images": images, "noise": self.latent_noise(names)}
        found = self.call("posterior", feeds)
        return found["z"], found["leaf_prob"]

    def signals(self, z: Floats, leaf: NDArray[np.int64], plan: Plan) -> Signals:
        """What the denoiser is told of images in their leaves.

        Args:
            z: [B, N, Z, R, R] samples of all nodes.
            leaf: [B] ids.
            plan: says at which slots paths are cut.
        """
        told = self.bundle.told
        rows, ids = (part[leaf] for part in leaf_slots(self.bundle.topology, told.signal))
        each = np.arange(len(z))
        z_path = z.reshape(*z.shape[:2], -1)[each[:, None], rows]
        conds = []
        for kept in plan.slots:
            nodes = np.where(np.arange(ids.shape[1]) < kept, ids, -1)
            seen = np.where(nodes[:, :, None] < 0, np.float32(0.0), z_path)
            conds.append(self.call("condition", {"z_path": seen, "nodes": nodes})["cond"])
        decoded = None
        if told.reconstruction != "none":
            low, high = self.bundle.pixel_range
            decoded = self.call("decode", {"z": z})["images"][each, leaf]
            decoded = decoded * np.float32(high - low) + np.float32(low)
        return Signals(np.stack(conds), decoded)

    def begin(self, signals: Signals, plan: Plan, names: Names) -> Drawing:
        """Images from noise, with no evaluation made yet."""
        return Drawing(plan, signals, names, self.bundle.image_shape)

    def advance(self, drawings: Sequence[Drawing]) -> None:
        """Moves every drawing on by one evaluation; their rows share calls."""
        asked = [drawing.ask() for drawing in drawings]
        feeds = {name: np.concatenate([rows[name] for rows in asked]) for name in asked[0]}
        # Each row of a call has its own row of the tables: images at different steps, of different
        # solvers, go together.
        calls = _calls(len(feeds["x"]), self.backend.sizes)
        feeds["step"] = np.concatenate([np.arange(rows.stop - rows.start) for rows, _ in calls])
        found = self.call("step", feeds)
        start = 0
        for drawing in drawings:
            rows = slice(start, start + drawing.rows)
            drawing.tell(found["x_next"][rows], found["x0"][rows])
            start = rows.stop

    def finish(self, drawing: Drawing) -> bool:
        """Makes all evaluations on the device at once, where the back end has a loop for them.

        Returns:
            Whether it has.
        """
        loop = getattr(self.backend, "step_loop", lambda: None)()
        return loop is not None and drawing.finish(loop, self.backend.sizes[-1])

    def draw(self, z: Floats, leaf: NDArray[np.int64], plan: Plan, names: Names) -> Floats:
        """[B, C, H, W] images in their leaves, from noise; arguments as of `signals`."""
        drawing = self.begin(self.signals(z, leaf, plan), plan, names)
        while not drawing.done:
            self.advance([drawing])
        return drawing.images


def _calls(total: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """The rows of each call, and how many are missing to a size: the largest that can be filled."""
    start = 0
    while start < total:
        size = max((size for size in sizes if size <= total - start), default=sizes[0])
        stop = min(start + size, total)
        yield slice(start, stop), start + size - stop
        start = stop


def _below(rows: Array, missing: int) -> list[tuple[int, int]]:
    return [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
