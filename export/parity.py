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

from ..bundle import PIXEL_RANGES, Bundle
from ..diffusion.model import TreeDiffusion
from ..diffusion.sampler import sample
from ..errors import ParityError
from ..noise import Stream, normal
from ..optional import require
from ..runtime.backends import OnnxRuntimeBackend
from ..runtime.batches import Names
from ..runtime.pixels import to_uint8
from ..runtime.plan import Plan, make_plan
from ..runtime.sampling import Sampler
from ..signals import leaf_slots
from ..solvers import SolverTable
from .graphs import Graph

SEED = 2024
BATCHES = (1, 5)
IMAGES = 4
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
        plan = _plan(bundle)
        report = {
            role: _graph(role, graph, backend, _feeds(graph, bundle, plan.table))
            for role, graph in graphs.items()
        }
        generation = _generation(model, Sampler(bundle, backend), plan)
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


def _plan(bundle: Bundle) -> Plan:
    """The bundle's own solver and steps, without guidance, which asks for nothing else."""
    return make_plan(bundle, replace(bundle.sampling, guidance_scale=1.0))


def _feeds(graph: Graph, bundle: Bundle, table: SolverTable) -> list[dict[str, NDArray[Any]]]:
    """Inputs of both batches, like those of use: images in 0..1, real paths, rows of a sampler."""
    generator = np.random.Generator(np.random.Philox(SEED))
    paths = leaf_slots(bundle.topology, bundle.told.signal).ids
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
                feed[spec.name] = table.network.astype(np.float32)
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


def _generation(model: TreeDiffusion, sampler: Sampler, plan: Plan) -> dict[str, Any]:
    """Images of several leaves, from noise to pixels."""
    bundle = sampler.bundle
    images = list(range(IMAGES))
    leaf = np.arange(IMAGES, dtype=np.int64) % bundle.topology.num_leaves
    names = Names([SEED] * len(images), images)
    noise = sampler.latent_noise(names)
    z = sampler.call("path", {"noise": noise})["z"]
    found = sampler.draw(z, leaf, plan, names)
    expected = _reference(model, noise, leaf, images, plan.table, np.float32)
    error, _ = _difference(found, expected)
    limit = GENERATION_LIMIT
    if error > limit:
        # A network that is hardly trained magnifies rounding in every step: 1e-7 in PyTorch, too.
        exact = _reference(_double(model), noise, leaf, images, plan.table, np.float64)
        limit = max(limit, ROUNDING_FACTOR * _difference(expected, exact)[0])
    _limit("generation", error, limit)
    ours, theirs = (
        to_uint8(values, bundle.pixel_range).astype(np.int16) for values in (found, expected)
    )
    apart = np.abs(ours - theirs)
    return {
        "solver": bundle.sampling.solver,
        "evaluations": len(plan.table.timestep),
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
    leaf: NDArray[np.int64],
    images: list[int],
    table: SolverTable,
    dtype: type[np.floating[Any]],
) -> NDArray[Any]:
    """The same by PyTorch's own sampler, which embeds timesteps and updates by itself.

    Args:
        model: on the CPU.
        noise: [B, N, Z, R, R] of the latents.
        leaf: [B] ids.
        images: [B] numbers that the other noise belongs to.
        table: the solver's.
        dtype: the model's precision.

    Returns:
        [B, C, H, W] in it.
    """
    config = model.config.diffusion
    low, high = PIXEL_RANGES[config.pixel_range]
    shape = model.tree.image_shape

    def drawn(stream: Stream, step: int = 0) -> torch.Tensor:
        return torch.from_numpy(normal(SEED, images, shape, stream=stream, step=step).astype(dtype))

    z = model.tree.generate(torch.from_numpy(noise.astype(dtype))).z
    each = torch.arange(len(z))
    rows, ids = (
        torch.from_numpy(part[leaf]) for part in leaf_slots(model.tree.topology, config.signal)
    )
    seen = None
    if config.reconstruction != "none":
        seen = model.tree.decode(z)[each, torch.from_numpy(leaf)].clamp(0.0, 1.0)
        seen = seen * (high - low) + low
    y = model.denoiser.condition(z.flatten(2)[each[:, None], rows], ids)
    found: NDArray[Any] = sample(
        model.denoiser,
        y,
        drawn(Stream.START),
        table,
        reconstruction=seen,
        noise=lambda step: drawn(Stream.STEP, step),
    ).numpy()
    return found


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
