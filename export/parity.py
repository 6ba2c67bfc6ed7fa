"""Proof that a bundle computes what the model computes.

Every graph on seeded inputs, one image and five, and whole generations: the same noise through
PyTorch's sampler and through the runtime. A graph may be off by 1e-4 and a generation by 1e-3,
times the largest value where that exceeds 1. What differs is rounding; its size is recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle import Bundle
from ..diffusion.model import TreeDiffusion
from ..diffusion.sampler import sample
from ..errors import ParityError
from ..noise import Stream, normal
from ..optional import require
from ..runtime.backends import OnnxRuntimeBackend
from ..runtime.pixels import to_uint8
from ..runtime.sampling import Sampler
from ..schedule import DDIMTable
from .graphs import Graph

SEED = 2024
BATCHES = (1, 5)
STEPS, IMAGES = 50, 4
GRAPH_LIMIT, GENERATION_LIMIT = 1e-4, 1e-3
ROUNDING_FACTOR = 4.0
"""Times PyTorch's own rounding that a generation may be off, where that is more than the limit."""


def check(folder: Path, model: TreeDiffusion, graphs: Mapping[str, Graph]) -> dict[str, Any]:
    """Compares a written bundle with its model.

    Args:
        folder: the bundle, complete but for parity.json's content.
        model: what it was exported from, on the CPU.
        graphs: the modules of its graphs.

    Returns:
        What parity.json holds.

    Raises:
        ParityError: a difference beyond the limit.
        DependencyError: ONNX Runtime is not installed.
    """
    version = require("onnxruntime", extra="cpu").__version__
    bundle = Bundle.open(folder, verify=False)
    backend = OnnxRuntimeBackend(bundle)
    try:
        table = _table(bundle)
        report = {
            role: _graph(role, graph, backend, _feeds(graph, bundle, table))
            for role, graph in graphs.items()
        }
        generation = _generation(model, Sampler(bundle, backend), table)
    finally:
        backend.close()
    return {
        "format": 1,
        "reference": f"torch {torch.__version__.partition('+')[0]}, float32, CPU",
        "backend": f"onnxruntime {version}, CPUExecutionProvider",
        "seed": SEED,
        "batches": list(BATCHES),
        "graphs": report,
        "generation": generation,
    }


def _table(bundle: Bundle) -> DDIMTable:
    steps = bundle.schedule.inference_steps(STEPS, spacing="quadratic")
    return bundle.schedule.ddim_table(steps)


def _feeds(graph: Graph, bundle: Bundle, table: DDIMTable) -> list[dict[str, NDArray[Any]]]:
    """Inputs of both batches, like those of use: images in 0..1, real paths, rows of a sampler."""
    generator = np.random.Generator(np.random.Philox(SEED))
    paths = bundle.topology.paths.astype(np.int64)
    feeds = []
    for batch in BATCHES:
        feed: dict[str, NDArray[Any]] = {}
        for spec in graph.inputs:
            shape = [batch if side == "B" else int(side) for side in spec.shape if side != "S"]
            if spec.name == "nodes":
                feed[spec.name] = paths[np.arange(batch) % len(paths)]
            elif spec.name == "timesteps":
                feed[spec.name] = table.timestep
            elif spec.name == "coef":
                feed[spec.name] = table.coef.astype(np.float32)
            elif spec.name == "step":
                rows = np.linspace(0, len(table.timestep) - 1, batch)
                feed[spec.name] = rows.astype(np.int64)
            elif spec.name == "images":
                pixels = generator.random(shape, np.float32)
                # Black and white, too: images that decide a router as firmly as any can.
                feed[spec.name] = pixels.round() if batch == max(BATCHES) else pixels
            else:
                feed[spec.name] = generator.standard_normal(shape, np.float32)
        feeds.append(feed)
    return feeds


def _graph(
    role: str, graph: Graph, backend: OnnxRuntimeBackend, feeds: list[dict[str, NDArray[Any]]]
) -> dict[str, Any]:
    """The largest difference of each output over both batches."""
    report: dict[str, Any] = {}
    for feed in feeds:
        expected = graph.run({name: torch.from_numpy(value) for name, value in feed.items()})
        found = backend.run(role, feed)
        for name, values in expected.items():
            error, scale = _difference(found[name], values.numpy())
            # A tree with one leaf has no routers, and an output without elements.
            largest = float(np.abs(values.numpy()).max(initial=0.0))
            _limit(f"{role}: {name}", error, GRAPH_LIMIT * scale)
            worst = report.setdefault(name, {"max_abs_error": 0.0, "max_abs_value": 0.0})
            worst["max_abs_error"] = max(error, worst["max_abs_error"])
            worst["max_abs_value"] = max(largest, worst["max_abs_value"])
    return report


def _generation(model: TreeDiffusion, sampler: Sampler, table: DDIMTable) -> dict[str, Any]:
    """Images of several leaves, from noise to pixels."""
    bundle = sampler.bundle
    images = list(range(IMAGES))
    leaf = np.arange(IMAGES, dtype=np.int64) % bundle.topology.num_leaves
    noise = sampler.latent_noise(SEED, images)
    start = normal(SEED, images, bundle.image_shape, stream=Stream.START)
    nodes = bundle.topology.paths[leaf].astype(np.int64)
    expected = _reference(model, noise, nodes, start, table)
    z = sampler.call("path", {"noise": noise})["z"]
    found = sampler.denoise(sampler.condition(z, leaf), table, seed=SEED, images=images)
    error, _ = _difference(found, expected)
    limit = GENERATION_LIMIT
    if error > limit:
        # A network that is hardly trained magnifies rounding in every step: 1e-7 in PyTorch, too.
        exact = _reference(_double(model), noise.astype(float), nodes, start.astype(float), table)
        limit = max(limit, ROUNDING_FACTOR * _difference(expected, exact)[0])
    _limit("generation", error, limit)
    ours, theirs = (
        to_uint8(values, bundle.pixel_range).astype(np.int16) for values in (found, expected)
    )
    apart = np.abs(ours - theirs)
    return {
        "steps": len(table.timestep),
        "leaves": [bundle.topology.leaf_names[i] for i in leaf],
        "max_abs_error": error,
        "max_abs_error_allowed": limit,
        "uint8_max_difference": int(apart.max()),
        "uint8_different": int(np.count_nonzero(apart)),
        "uint8_total": int(apart.size),
    }


def _double(model: TreeDiffusion) -> TreeDiffusion:
    """A copy in float64."""
    tree, denoiser = copy.deepcopy(model.tree), copy.deepcopy(model.denoiser)
    return replace(model, tree=tree.double(), denoiser=denoiser.double())


@torch.no_grad()
def _reference(
    model: TreeDiffusion,
    noise: NDArray[Any],
    nodes: NDArray[np.int64],
    start: NDArray[Any],
    table: DDIMTable,
) -> NDArray[Any]:
    """The same by PyTorch's own sampler, which embeds timesteps and updates by itself.

    Args:
        model: on the CPU.
        noise: [B, N, Z, R, R] of the latents.
        nodes: [B, P] rows of each image's path, -1 where absent.
        start: [B, C, H, W] where denoising starts.
        table: the steps.

    Returns:
        [B, C, H, W], in the model's precision.
    """
    z = model.tree.generate(torch.from_numpy(noise)).z.flatten(2)
    rows = torch.from_numpy(nodes)
    z_path = z[torch.arange(len(z))[:, None], rows]
    y = model.denoiser.condition(z_path, rows)
    images: NDArray[Any] = sample(model.denoiser, y, torch.from_numpy(start), table).numpy()
    return images


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """The largest difference, infinite if anything is not a number, and 1 or the largest value."""
    error = float(np.abs(found - expected).max(initial=0.0))
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return (error if np.isfinite(error) else float("inf")), scale


def _limit(name: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise ParityError(
            name,
            got=f"a difference of {error:.2e} from PyTorch",
            expected=f"at most {limit:.1e}",
            hint="no bundle was written; try another version of onnxruntime or torch",
        )
