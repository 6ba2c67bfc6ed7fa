"""Proof that a bundle computes what the model computes.

Every graph on seeded inputs, one image and five, and whole generations: the same noise through
PyTorch's sampler and through the runtime. A graph may be off by 1e-4 and a generation by 1e-3,
times the largest value where that exceeds 1. What differs is rounding; its size is recorded.

A graph in half precision is proved twice: with its numbers widened to float32 it must compute what
PyTorch computes with the same rounded weights, to 1e-4 again; and the output of its network may
differ from float32's by the share of it that `ROUNDING_LIMITS` allows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle import PIXEL_RANGES, Bundle
from ..diffusion.model import TreeDiffusion
from ..diffusion.sampler import sample
from ..errors import ConfigError, ParityError
from ..noise import Stream, normal
from ..optional import require
from ..runtime.backends import OnnxRuntimeBackend
from ..runtime.batches import Names
from ..runtime.pixels import to_uint8
from ..runtime.plan import Plan, make_plan
from ..runtime.sampling import Sampler
from ..signals import leaf_slots
from ..solvers import SolverTable
from .graphs import Assign, Decode, Graph, Posterior
from .graphs import Path as OfPath
from .half import at_precision, rounded
from .sets import PlannedFile
from .widen import widen

SEED = 2024
BATCHES = (1, 5)
IMAGES, STEPS = 3, 3
"""Of the generation; more steps of the same graphs would prove no more."""
GRAPH_LIMIT, GENERATION_LIMIT = 1e-4, 1e-3
ROUNDING_FACTOR = 4.0
"""Times PyTorch's own rounding that a generation may be off, where that is more than the limit."""
ROUNDING_LIMITS = {"fp16": 0.01, "bf16": 0.1}
"""Root mean square that a network's output may be off by, as a share of its own."""
NO_BFLOAT16 = "bfloat16 itself: ONNX Runtime has no such convolution on a CPU"

Feed = Mapping[str, NDArray[Any]]


def check(
    folder: Path, model: TreeDiffusion, graphs: Mapping[str, Graph], files: Sequence[PlannedFile]
) -> dict[str, Any]:
    """Compares a written bundle with its model.

    Args:
        folder: the bundle, complete but for parity.json's content.
        model: what it was exported from, on the CPU.
        graphs: what its graphs were made of, in float32.
        files: its ONNX files.

    Returns:
        What parity.json holds.

    Raises:
        ParityError: a difference beyond the limit.
        DependencyError: ONNX Runtime is not installed.
    """
    require("onnxruntime", extra="cpu")
    bundle = Bundle.open(folder, verify=False)
    plan = _plan(bundle)
    # The tree itself and not its folded copy, so that the folding is proved, too.
    kinds = {"assign": Assign, "path": OfPath, "posterior": Posterior, "decode": Decode}
    graphs = {
        role: replace(graph, module=kinds[role](model.tree)) if role in kinds else graph
        for role, graph in graphs.items()
    }
    feeds = {role: _feeds(graph, bundle, plan.table) for role, graph in graphs.items()}
    with _one_thread():
        return {
            "format": 2,
            "reference": f"torch {torch.__version__.partition('+')[0]}, float32, CPU",
            "seed": SEED,
            "batches": list(BATCHES),
            "graphs": {
                file.name: _file(folder, file, graphs[file.role], feeds[file.role])
                for file in files
            },
            "generation": _generate(model, bundle, plan),
        }


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch rounds by how many threads it has, which the bytes of a bundle must not tell."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plan(bundle: Bundle) -> Plan:
    """The bundle's own solver in few steps, without guidance, which asks for nothing else."""
    own = replace(bundle.sampling, guidance_scale=1.0)
    for steps in range(min(own.num_inference_steps, STEPS), 0, -1):
        try:
            return make_plan(bundle, replace(own, num_inference_steps=steps))
        except ConfigError:  # some spacings have not every number of steps
            continue
    return make_plan(bundle, own)


def _feeds(graph: Graph, bundle: Bundle, table: SolverTable) -> list[Feed]:
    """Inputs of both batches, like those of use: images in 0..1, real paths, rows of a sampler."""
    generator = np.random.Generator(np.random.Philox(SEED))
    paths = leaf_slots(bundle.topology, bundle.told.signal).ids
    feeds: list[Feed] = []
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


def _file(folder: Path, file: PlannedFile, graph: Graph, feeds: Sequence[Feed]) -> dict[str, Any]:
    """What is recorded of one file."""
    content = (folder / file.name).read_bytes()
    facts = {"role": file.role, "precision": file.precision, "opset": file.opset}
    if file.precision == "fp32":
        session = _Session(content)
        facts["backend"] = session.name
        return facts | {"outputs": _outputs(file.name, graph, session, feeds)}
    # First what float32 would have been: where half precision overflows, that is the message.
    feed = {**feeds[-1], "coef": _bare(feeds[-1]["coef"])}
    if file.precision == "fp16":
        session = _Session(content)
        found, name = session.run(feed)["x_next"], session.name
    else:
        facts["not_run"] = NO_BFLOAT16
        found = _results(at_precision(graph, file.precision), feed)["x_next"]
        name = f"torch, {file.precision}, CPU"
    rounding = _rounding(file, found, _results(graph, feed)["x_next"])
    session = _Session(widen(content))
    facts["backend"] = f"{session.name}, widened to float32 as PyTorch's weights"
    outputs = _outputs(file.name, rounded(graph, file.precision), session, feeds)
    return facts | {"outputs": outputs, "rounding": {"backend": name, **rounding}}


def _outputs(
    name: str, graph: Graph, session: _Session, feeds: Sequence[Feed]
) -> dict[str, dict[str, float]]:
    """The largest difference of each output over all batches."""
    report: dict[str, dict[str, float]] = {}
    for feed in feeds:
        found = session.run(feed)
        for output, values in _results(graph, feed).items():
            error, scale = _difference(found[output], values)
            # A tree with one leaf has no routers, and an output without elements.
            largest = float(np.abs(values).max(initial=0.0))
            _limit(f"{name}: {output}", error, GRAPH_LIMIT * scale)
            worst = report.setdefault(output, {"max_abs_error": 0.0, "max_abs_value": 0.0})
            worst["max_abs_error"] = max(error, worst["max_abs_error"])
            worst["max_abs_value"] = max(largest, worst["max_abs_value"])
    return report


def _rounding(file: PlannedFile, found: NDArray[Any], exact: NDArray[Any]) -> dict[str, float]:
    """How far half precision takes the network's output from float32's."""
    error, size = _rms(found.astype(np.float64) - exact), _rms(exact)
    allowed = ROUNDING_LIMITS[file.precision] * size
    if not error <= allowed:
        raise ParityError(
            f"{file.name}: network",
            got=f"a difference of {error:.2e} from float32",
            expected=f"at most {allowed:.1e}, {ROUNDING_LIMITS[file.precision]} of its size",
            hint="this network's numbers are beyond such a type: export bf16 or fp32 instead",
        )
    return {"rms_error": error, "rms_value": size, "rms_error_allowed": allowed}


def _rms(values: NDArray[Any]) -> float:
    root = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    return root if np.isfinite(root) else float("inf")


def _bare(coef: NDArray[Any]) -> NDArray[Any]:
    """[S, 5] rows whose result is the network's output itself."""
    bare = np.zeros_like(coef)
    bare[:, 3] = 1.0
    return bare


def _results(graph: Graph, feed: Feed) -> dict[str, NDArray[Any]]:
    found = graph.run({name: torch.from_numpy(value) for name, value in feed.items()})
    return {name: values.numpy() for name, values in found.items()}


class _Session:
    """ONNX Runtime on the CPU with one graph.

    Attributes:
        name: of what runs.
    """

    def __init__(self, content: bytes) -> None:
        runtime = require("onnxruntime", extra="cpu")
        provider = "CPUExecutionProvider"
        self.name = f"onnxruntime {runtime.__version__}, {provider}"
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(content, options, providers=[provider])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        results = self._session.run(self._outputs, dict(feed))
        return dict(zip(self._outputs, results, strict=True))


def _generate(model: TreeDiffusion, bundle: Bundle, plan: Plan) -> dict[str, Any]:
    """The generation by the first set in float32."""
    name = next((name for name, each in bundle.sets.items() if each.precision == "fp32"), None)
    if name is None:
        return {"not_run": "no set is float32, and rounding would be all that is seen"}
    bundle = bundle.only(name)
    backend = OnnxRuntimeBackend(bundle)
    try:
        return {"set": name, **_generation(model, Sampler(bundle, backend), plan)}
    finally:
        backend.close()


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
