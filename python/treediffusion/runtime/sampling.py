"""A batch of images from noise to pixels, in float32: latents, conditions and the denoising loop.

Image i of seed s draws every number it needs from `noise`, by purpose. Calls of the back end have
one fixed number of rows, so a row's result is that of the same row alone. Nothing is rounded here
and nothing validated; `engine` does both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..noise import Stream, normal, uniform
from ..schedule import DDIMTable
from .backends import Backend
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

    def condition(self, z: Floats, leaf: NDArray[np.int64]) -> Floats:
        """The denoiser's condition of images in their leaves.

        Args:
            z: [B, N, Z, R, R] samples of all nodes.
            leaf: [B] ids.

        Returns:
            [B, E] float32.
        """
        nodes = self.bundle.topology.paths[leaf].astype(np.int64)
        z_path = z.reshape(*z.shape[:2], -1)[np.arange(len(z))[:, None], nodes]
        z_path[nodes < 0] = 0.0
        cond: Floats = self.call("condition", {"z_path": z_path, "nodes": nodes})["cond"]
        return cond

    def denoise(
        self, cond: Floats, table: DDIMTable, *, seed: int, images: Sequence[int]
    ) -> Floats:
        """The whole loop.

        Args:
            cond: [B, E] float32.
            table: the steps.
            seed: of the start and of the noise of each step.
            images: [B] each image's own index; equal ones get equal noise.

        Returns:
            [B, C, H, W] float32, in the network's pixel range, which it may exceed a little.
        """
        shape = self.bundle.image_shape
        coef = table.coef.astype(np.float32)
        x = normal(seed, images, shape, stream=Stream.START)
        silence = np.zeros_like(x)
        for step, sigma in enumerate(coef[:, 4]):
            noise = silence
            if sigma > 0.0:
                noise = normal(seed, images, shape, stream=Stream.STEP, step=step)
            feeds: dict[str, Array] = {
                "x": x,
                "cond": cond,
                "timesteps": table.timestep,
                "coef": coef,
                "step": np.full(len(x), step, np.int64),
                "noise": noise,
            }
            x = self.call("step", feeds)["x_next"]
        return x


def _below(rows: Array, missing: int) -> list[tuple[int, int]]:
    return [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
