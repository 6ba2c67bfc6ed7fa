"""Proves the GPU back ends of the runtime on a GPU, then measures them.

    python bench/gpu/engines.py --json OUT.json [--only NAME ...] [--minutes 8]

What is wrong matters more than what is slow, so the order is: the device layer with its kernel and
graphs, by each package; the sampling loop; every graph of every back end against ONNX Runtime on
the CPU; whole generations of the same seeds; rows in other places and other company; and only then
times. A section that cannot run says why and the others go on; the JSON is written after each.
Weights are random, in the published sizes. Not run yet: no figure of it is anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # machine

import numpy as np
import torch
from device_proofs import device_works, loop_works
from machine import describe
from treediffusion.bundle import CLIP_RANGE, ROLES, Bundle, GraphSpec
from treediffusion.config import load_preset
from treediffusion.diffusion.model import TreeDiffusion, make_denoiser
from treediffusion.diffusion.sampler import sample
from treediffusion.export import export_bundle
from treediffusion.files import write_json
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.noise import Stream, normal
from treediffusion.runtime.backends import EngineCache, OnnxRuntimeBackend, open_backend
from treediffusion.runtime.device import DEVICES
from treediffusion.solvers import SolverTable, follow, table_along
from treediffusion.topology import TreeTopology

PRESETS = {"mnist": ("modern-mnist", 1, 28), "cifar10": ("modern-cifar10", 3, 32)}
TARGETS = ("onnx-cpu", "onnx-gpu", "tensorrt", "tensorrt-rtx")
BATCHES = (1, 16, 512)
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


class Run(NamedTuple):
    """What is timed."""

    images: int
    solver: tuple[str, int]
    repeats: int

    def __str__(self) -> str:
        name, steps = self.solver
        return f"{self.images} images, {steps} steps of {name}"


RUNS = (Run(1, ("ddim", 100), 9), Run(1, ("dpmpp_2m", 10), 15), Run(512, ("ddim", 100), 3))


def main() -> int:
    """Runs every section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="sections whose names begin so")
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: nothing to prove here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = Report(given.json, given.only, time.monotonic() + 60 * given.minutes)
    with tempfile.TemporaryDirectory() as folder:
        for kind in DEVICES:
            report.section(f"device {kind}", lambda kind=kind: device_works(kind))
            report.section(f"loop {kind}", lambda kind=kind: loop_works(kind))
        for name in PRESETS:
            case = Case(name, Path(folder))
            report.section(f"export {name}", case.export)
            for backend in GPU_BACKENDS:
                for precision in ("fp32", "fp16"):
                    label = f"{name} {backend} {precision}"
                    wish = {"name": backend, "precision": precision}
                    report.section(f"parity {label}", lambda c=case, w=wish: c.parity(**w))
                    report.section(f"seeds {label}", lambda c=case, w=wish: c.seeds(**w))
        for name in PRESETS:
            case = Case(name, Path(folder))
            report.section(f"times {name} eager", case.eager)
            for backend in GPU_BACKENDS:
                report.section(f"times {name} {backend}", lambda c=case, b=backend: c.times(b))
    return report.failures


class Report:
    """Results by section, on disk after each."""

    def __init__(self, path: Path, only: list[str], deadline: float) -> None:
        self._path, self._only, self._deadline = path, only, deadline
        self.failures = 0
        self.found: dict[str, Any] = describe(threads=torch.get_num_threads())
        self.found["gpu"] = torch.cuda.get_device_name()

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Does it, or notes why it could not be done."""
        if self._only and not name.startswith(("export", *self._only)):
            return
        started = time.monotonic()
        if started > self._deadline:
            result: Any = {"skipped": "no time left"}
        else:
            try:
                result = work()
            except Exception as fault:  # whatever it is, the next section may still work
                self.failures += 1
                result = {"failed": f"{type(fault).__name__}: {fault}"[:600]}
                traceback.print_exc()
        took = round(time.monotonic() - started, 2)
        self.found[name] = {"result": result, "seconds": took}
        print(f"{name}: {result} ({took} s)", flush=True)
        write_json(self._path, self.found)


class Case:
    """A model, its bundle and the back ends on it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.preset, self.channels, self.size = PRESETS[name]
        self.path, self.engines = folder / name, EngineCache(folder / "engines")
        self._model: TreeDiffusion | None = None

    @property
    def model(self) -> TreeDiffusion:
        """Random weights, the same every time."""
        if self._model is None:
            config = load_preset(self.preset)
            topology = TreeTopology.of(["r", "r0", "r1", "r00", "r01"])
            torch.manual_seed(0)
            tree = TreeVAE(
                config.tree, topology, image_channels=self.channels, image_size=self.size
            )
            denoiser = make_denoiser(tree, config.diffusion)
            with torch.no_grad():
                for parameter in denoiser.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
            self._model = TreeDiffusion(
                config=config, tree=tree.eval(), denoiser=denoiser.eval(),
                node_share=np.ones(topology.num_nodes), data_fingerprint="0" * 64,
            )  # fmt: skip
        return self._model

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.path, verify=False)

    def export(self) -> str:
        """Graphs for every back end."""
        export_bundle(
            self.model, self.path, targets=TARGETS, precisions=("fp32", "fp16"), batches=BATCHES
        )
        return (
            f"{sum(f.stat().st_size for f in self.path.rglob('*') if f.is_file()) / 2**20:.0f} MB"
        )

    def open(self, name: str, precision: str, bucket: int) -> Any:
        wish: dict[str, Any] = {"precision": precision, "bucket": bucket}
        if name.startswith("tensorrt"):
            wish["engines"] = self.engines
        return open_backend(name, self.bundle, **wish)

    def parity(self, name: str, precision: str) -> dict[str, Any]:
        """Largest difference of each graph's outputs from ONNX Runtime's on the CPU, float32."""
        backend, bucket = self.open(name, precision, 16), 16
        reference = OnnxRuntimeBackend(self.bundle)
        found: dict[str, Any] = {"runs": backend.describe()}
        for role in ROLES:
            started = time.perf_counter()
            backend.load([role])
            ready = time.perf_counter() - started
            given = self.feeds(self.bundle.graphs[role], bucket)
            ours, theirs = backend.run(role, given), reference.run(role, given)
            again = backend.run(role, given)
            found[role] = {
                "ready_s": round(ready, 2),
                "same_twice": all(np.array_equal(ours[k], again[k]) for k in ours),
                "difference": {k: float(np.abs(ours[k] - theirs[k]).max(initial=0)) for k in ours},
                "largest": {k: float(np.abs(theirs[k]).max(initial=0)) for k in theirs},
            }
        backend.close()
        return found

    def seeds(self, name: str, precision: str) -> dict[str, Any]:
        """Images of the same seeds, and whether an image depends on its place and company."""
        table, bucket = self.table("ddim", 20), 16
        backend, reference = self.open(name, precision, bucket), OnnxRuntimeBackend(self.bundle)
        x, cond = self.start(bucket)
        ours = host_loop(backend, table, x, cond)
        theirs = np.concatenate([host_loop(reference, table, x[i : i + 1], cond[i : i + 1])
                                 for i in range(2)])  # fmt: skip
        order = np.random.default_rng(0).permutation(bucket)
        moved = host_loop(backend, table, x[order], cond[order])
        company = x.copy()
        company[1:] = x[0]
        beside = host_loop(backend, table, company, cond)
        found = {
            "difference_from_cpu": float(np.abs(ours[:2] - theirs).max()),
            "same_in_other_company": bool(np.array_equal(beside[0], ours[0])),
            "same_in_another_place": bool(np.array_equal(moved, ours[order])),
        }
        if hasattr(backend, "step_loop"):
            looped = backend.step_loop().run(table, {"x": x, "cond": cond})
            found["loop_equals_calls"] = bool(np.array_equal(looped, ours))
        backend.close()
        return found

    def times(self, name: str) -> dict[str, Any]:
        """Milliseconds from host to host, float16."""
        found: dict[str, Any] = {}
        for runs in RUNS:
            backend, table = self.open(name, "fp16", runs.images), self.table(*runs.solver)
            x, cond = self.start(runs.images)
            if hasattr(backend, "step_loop"):
                loop = partial(backend.step_loop().run, table, {"x": x, "cond": cond})
                found[str(runs)] = median_ms(loop, runs.repeats)
            if runs.images == 1 or not hasattr(backend, "step_loop"):
                calls = partial(host_loop, backend, table, x, cond)
                found[f"{runs}, a call each"] = median_ms(calls, runs.repeats)
            backend.close()
        return found

    def eager(self) -> dict[str, Any]:
        """The same in PyTorch, one operation after the other."""
        found: dict[str, Any] = {}
        denoiser = self.model.denoiser.cuda().to(memory_format=torch.channels_last)
        for dtype in (torch.float32, torch.bfloat16):
            for runs in RUNS:
                table, (x, cond) = self.table(*runs.solver), self.start(runs.images)
                work = partial(eager, denoiser, torch.tensor(cond).cuda(), torch.tensor(x).cuda())
                label = f"{runs}, {str(dtype).partition('.')[2]}"
                found[label] = median_ms(partial(work, table, dtype), runs.repeats)
        self.model.denoiser.cpu()
        return found

    def table(self, solver: str, steps: int) -> SolverTable:
        bundle = self.bundle
        return table_along(
            bundle.schedule, solver, num_inference_steps=steps, spacing="uniform", eta=0.0,
            prediction=bundle.told.prediction, clip_range=CLIP_RANGE,
        )  # fmt: skip

    def start(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise of images and random conditions."""
        shape = self.bundle.image_shape
        width = self.model.denoiser.unet.embed_dim
        cond = np.random.default_rng(1).standard_normal((rows, width), np.float32)
        return normal(7, range(rows), shape, stream=Stream.START), cond

    def feeds(self, spec: GraphSpec, rows: int) -> dict[str, np.ndarray]:
        """Inputs of a graph, every row at a step of its own."""
        generator, table = np.random.default_rng(2), self.table("ddim", rows)
        given: dict[str, np.ndarray] = {
            "timesteps": table.timestep, "coef": table.network.astype(np.float32),
            "step": np.arange(rows),
        }  # fmt: skip
        for tensor in spec.inputs:
            shape = [rows if isinstance(side, str) else side for side in tensor.shape]
            if tensor.name == "nodes":
                given[tensor.name] = np.zeros(shape, np.int64)
            elif tensor.name == "images":
                given[tensor.name] = generator.random(shape, np.float32)
            elif tensor.name not in given:
                given[tensor.name] = generator.standard_normal(shape, np.float32)
        return {tensor.name: given[tensor.name] for tensor in spec.inputs}


def eager(
    denoiser: torch.nn.Module,
    cond: torch.Tensor,
    x: torch.Tensor,
    table: SolverTable,
    dtype: torch.dtype,
) -> None:
    """Images by PyTorch, waited for."""
    half = dtype is not torch.float32
    with torch.inference_mode(), torch.autocast("cuda", dtype if half else None, enabled=half):
        sample(denoiser, cond, x, table)
    torch.cuda.synchronize()


def host_loop(backend: Any, table: SolverTable, x: np.ndarray, cond: np.ndarray) -> np.ndarray:
    """A call for each evaluation."""
    rows, coef = len(x), table.network.astype(np.float32)
    silence = np.zeros_like(x)

    def evaluate(x: np.ndarray, k: int, drawn: Any) -> np.ndarray:
        feeds = {
            "x": x, "cond": cond, "timesteps": np.full(rows, table.timestep[k]),
            "coef": np.repeat(coef[k : k + 1], rows, axis=0), "step": np.arange(rows),
            "noise": silence,
        }  # fmt: skip
        found: np.ndarray = backend.run("step", feeds)["x_next"]
        return found

    return follow(table, x, evaluate, None)


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """After two calls that warm up."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


if __name__ == "__main__":
    sys.exit(main())
