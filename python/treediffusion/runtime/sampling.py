"""A batch of images from noise to pixels, in float32: latents, conditions and the denoising loop.

Image i of seed s draws every number it needs from `noise`, by purpose. Calls of the back end have
one fixed number of rows, so a row's result is that of the same row alone. Nothing is rounded here
and nothing validated; `engine` does both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..noise import Stream, normal, uniform
from ..signals import leaf_slots
from ..solvers import apply_row, follow
from .backends import Backend
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

    def call(self, graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a graph on any number of images, a bucket at a time.

        Args:
            graph: its role.
            feeds: inputs by name.

        Returns:
            Outputs by name.
        """
        specs = self.bundle.graphs[graph].inputs
        whole = {s.name: feeds[s.name] for s in specs if s.shape[0] != "B"}
        by_row = {s.name: feeds[s.name] for s in specs if s.shape[0] == "B"}
        total, bucket = len(next(iter(by_row.values()))), self.backend.bucket
        parts = []
        for start in range(0, total, bucket):
            cut = {name: rows[start : start + bucket] for name, rows in by_row.items()}
            missing = bucket - min(bucket, total - start)
            if missing:
                cut = {name: np.pad(rows, _below(rows, missing)) for name, rows in cut.items()}
            parts.append(self.backend.run(graph, whole | cut))
        return {name: np.concatenate([p[name] for p in parts])[:total] for name in parts[0]}

    def latent_noise(self, seed: int, images: Sequence[int], *, draw: int = 0) -> Floats:
        """[B, N, Z, R, R]: the root's from its own stream, the other rows' by their number."""
        shape, nodes = self.bundle.latent_shape, self.bundle.topology.num_nodes
        rows = [normal(seed, images, shape, stream=Stream.ROOT, draw=draw)]
        for row in range(1, nodes):
            rows.append(normal(seed, images, shape, stream=Stream.NODE, step=row, draw=draw))
        return np.stack(rows, axis=1)

    def prior(self, seed: int, images: Sequence[int], *, draw: int = 0) -> tuple[Floats, Floats]:
        """Samples of the tree's prior: z [B, N, Z, R, R], and p_left [B, I] at its routers."""
        found = self.call("path", {"noise": self.latent_noise(seed, images, draw=draw)})
        return found["z"], found["p_left"]

    def prior_through(self, node: str, seed: int, images: Sequence[int]) -> tuple[Floats, Floats]:
        """Samples of the prior given that the path passes a node.

        p(z | node) is proportional to p(node | z) p(z). Of `CANDIDATES` samples of p(z), one is
        kept with probability proportional to its p(node | z): latents that would hardly ever reach
        the node are hardly ever kept. Exact as candidates grow in number; good where the node's
        probability is not far below 1 / CANDIDATES.

        Args:
            node: its name.
            seed: of the candidates and of the choice.
            images: [B] each image's own index.

        Returns:
            z [B, N, Z, R, R] and p_left [B, I].
        """
        tree = self.bundle.topology
        drawn = [self.prior(seed, images, draw=k) for k in range(CANDIDATES)]
        reach = np.stack([node_probability(tree, p_left, node) for _, p_left in drawn], axis=1)
        u = uniform(seed, images, stream=Stream.CHOICE, step=tree.row(node))
        kept = choose(reach, u)
        rows = np.arange(len(kept))
        z, p_left = (np.stack(candidates)[kept, rows] for candidates in zip(*drawn, strict=True))
        return z, p_left

    def draw(
        self,
        z: Floats,
        leaf: NDArray[np.int64],
        plan: Plan,
        *,
        seed: int,
        images: Sequence[int],
    ) -> Floats:
        """Images in their leaves, from noise; arguments as of `signals` and `denoise`."""
        return self.denoise(self.signals(z, leaf, plan), plan, seed=seed, images=images)

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

    def denoise(self, signals: Signals, plan: Plan, *, seed: int, images: Sequence[int]) -> Floats:
        """The whole loop.

        Args:
            signals: of every image.
            plan: the steps.
            seed: of the start and of the noise of each step.
            images: [B] each image's own index; equal ones get equal noise.

        Returns:
            [B, C, H, W] float32, in the network's pixel range, which it may exceed a little.
        """
        shape, table = self.bundle.image_shape, plan.table
        silence = np.zeros((len(images), *shape), np.float32)

        coef = table.network.astype(np.float32)
        # Rows that give the network's own output; the row's arithmetic is then outside the graph.
        bare = np.zeros_like(coef)
        bare[:, 3] = 1.0

        def answer(x: Floats, cond: Floats, step: int, rows: Floats, added: Floats) -> Floats:
            """The step graph: the network, and a row of coefficients."""
            feeds: dict[str, Array] = {
                "x": x,
                "cond": cond,
                "timesteps": table.timestep,
                "coef": rows,
                "step": np.full(len(x), step, np.int64),
                "noise": added,
            }
            if signals.reconstruction is not None:
                feeds["reconstruction"] = signals.reconstruction
            return self.call("step", feeds)["x_next"]

        def evaluate(x: Floats, step: int, drawn: Floats | None) -> Floats:
            if plan.weights == (1.0,) and table.clip:
                added = silence if drawn is None else drawn
                return answer(x, signals.conds[0], step, coef, added)
            found = np.zeros_like(x)
            for weight, cond in zip(plan.weights, signals.conds, strict=True):
                found += np.float32(weight) * answer(x, cond, step, bare, silence)
            return apply_row(table, step, x, found, drawn)

        def noise(step: int) -> Floats:
            return normal(seed, images, shape, stream=Stream.STEP, step=step)

        start = normal(seed, images, shape, stream=Stream.START)
        return follow(table, start, evaluate, noise)


@dataclass(frozen=True, eq=False)
class Signals:
    """What the denoiser is told of a batch.

    Attributes:
        conds: [G, B, E] float32, a condition for each of the network's answers.
        reconstruction: [B, C, H, W] float32, TreeVAE's images in the network's pixel range; None
            where they are not seen.
    """

    conds: Floats
    reconstruction: Floats | None

    def towards(self, other: Signals, share: float) -> Signals:
        """The point that is `share` of the way to another."""
        mine, theirs = np.float32(1.0 - share), np.float32(share)
        between = None
        if self.reconstruction is not None and other.reconstruction is not None:
            between = mine * self.reconstruction + theirs * other.reconstruction
        return Signals(mine * self.conds + theirs * other.conds, between)


def _below(rows: Array, missing: int) -> list[tuple[int, int]]:
    return [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
