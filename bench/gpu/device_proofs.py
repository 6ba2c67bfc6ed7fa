"""Proofs of the runtime's device layer on a GPU: copies, its kernel, graphs, the sampling loop.

Called by `engines.py`. They need the driver, PyTorch, and the package that is proved; no TensorRT.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from treediffusion.bundle import CLIP_RANGE
from treediffusion.noise import Stream, normal
from treediffusion.runtime.device import StepLoop, open_device
from treediffusion.runtime.device.advance import ENTRY, POINTERS, THREADS, ptx, table_rows
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SolverTable, follow, table_along

SHAPE = (3, 32, 32)


def device_works(kind: str) -> dict[str, Any]:
    """Copies, the kernel and a graph, bit for bit."""
    device = open_device(kind)
    table, pixels, images = some_table("unipc"), 3072, 5
    generator = np.random.default_rng(0)
    with device.current():
        shapes = dict.fromkeys(POINTERS[:7], (images, pixels))
        host = {name: device.pinned(shape, np.float32) for name, shape in shapes.items()}
        host["step"] = device.pinned((images,), np.int64)
        host["rows"] = device.pinned(table_rows(table).shape, np.float32)
        for name in shapes:
            host[name][...] = generator.standard_normal((images, pixels), np.float32)
        host["rows"][...] = table_rows(table)
        before = {name: array.copy() for name, array in host.items()}
        buffers = {name: device.allocate(array.nbytes) for name, array in host.items()}
        kernel = device.load(ptx(), ENTRY)
        arguments = [*(np.uint64(buffers[name].address) for name in POINTERS), np.uint32(pixels)]

        def work() -> None:
            device.launch(kernel, blocks=images, threads=THREADS, arguments=arguments)

        for name, array in host.items():
            device.upload(buffers[name], array)
        graph = device.capture(work)
        device.replay(graph)
        for name, array in host.items():
            device.download(array, buffers[name])
        device.wait()
        replays = 1000
        started = time.perf_counter()
        for _ in range(replays):
            device.clear(buffers["step"])
            device.replay(graph)
        device.wait()
        each = (time.perf_counter() - started) / replays
    expected = np.zeros_like(before["x"]) - 0.0
    terms = [before[name] for name in POINTERS[:6]]
    for weight, term in zip(table_rows(table)[0, :6], terms, strict=True):
        expected = expected + weight * term if weight else expected
    equal = {
        "x": bool(np.array_equal(host["x"], expected)),
        "h1": bool(np.array_equal(host["h1"], before["y"])),
        "step": host["step"].tolist() == [1] * images,
    }
    assert all(equal.values()), equal
    found = {"device": device.name, "capability": device.capability, "replay_us": 1e6 * each}
    device.close()
    return found


def loop_works(kind: str) -> dict[str, Any]:
    """The sampling loop around a step in PyTorch, against the same step driven from the host."""
    device = open_device(kind)
    engine = TorchStep(device, rows=4, capacity=64)
    loop = StepLoop(engine, guard=threading.RLock())
    found = {}
    for solver in ("ddim", "ddpm", "heun", "dpmpp_2m", "unipc"):
        table = some_table(solver)
        x = normal(1, range(4), SHAPE, stream=Stream.START)

        def drawn(k: int) -> np.ndarray:
            return normal(1, range(4), SHAPE, stream=Stream.STEP, step=k)

        def evaluate(x: np.ndarray, k: int, noise: Any, table: SolverTable = table) -> np.ndarray:
            return engine.alone(table, k, x, noise)

        found[solver] = bool(
            np.array_equal(
                loop.run(table, {"x": x}, noise=drawn), follow(table, x, evaluate, drawn)
            )
        )
    assert all(found.values()), found
    device.close()
    return found


class TorchStep:
    """A step graph of a few PyTorch operations in the device's stream and memory."""

    def __init__(self, device: Any, *, rows: int, capacity: int) -> None:
        self.device = device
        image = (rows, *SHAPE)
        shapes: Mapping[str, Any] = {
            "x": (image, np.float32), "noise": (image, np.float32),
            "timesteps": ((capacity,), np.int64), "coef": ((capacity, 5), np.float32),
            "step": ((rows,), np.int64), "x_next": (image, np.float32),
        }  # fmt: skip
        with device.current():
            self.staging = {name: device.pinned(*shape) for name, shape in shapes.items()}
            self.buffers = {name: device.allocate(a.nbytes) for name, a in self.staging.items()}
            self._tensors = {name: torch.as_tensor(Exposed(self.buffers[name].address, a))
                             for name, a in self.staging.items()}  # fmt: skip
        self._stream = torch.cuda.ExternalStream(device.stream)

    def enqueue(self) -> None:
        with torch.cuda.stream(self._stream):
            t = self._tensors
            row = t["coef"][t["step"]][:, :, None, None, None]
            t["x_next"].copy_(self._next(t["x"], row, t["noise"]))

    def alone(
        self, table: SolverTable, k: int, x: np.ndarray, noise: np.ndarray | None
    ) -> np.ndarray:
        row = torch.tensor(table.network[k], dtype=torch.float32, device="cuda")
        row = row.repeat(len(x), 1)[:, :, None, None, None]
        added = np.zeros_like(x) if noise is None else noise
        return self._next(torch.tensor(x).cuda(), row, torch.tensor(added).cuda()).cpu().numpy()

    @staticmethod
    def _next(x: torch.Tensor, row: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        a, b, c, e, tau = row.unbind(dim=1)
        found = torch.tanh(x)
        x0 = (a * x - b * found).clamp(*CLIP_RANGE)
        return c * x0 + e * found + tau * noise


class Exposed:
    """Device memory as an array, to whoever asks for that."""

    def __init__(self, address: int, like: np.ndarray) -> None:
        self.__cuda_array_interface__ = {
            "shape": like.shape, "typestr": like.dtype.str, "data": (address, False), "version": 3,
        }  # fmt: skip


def some_table(solver: str, steps: int = 8) -> SolverTable:
    """A sampler's table."""
    schedule = DiffusionSchedule(timesteps=1000, beta_start=1e-4, beta_end=0.02)
    return table_along(
        schedule,
        solver,
        num_inference_steps=steps,
        spacing="uniform",
        eta=0.0,
        prediction="eps",
        clip_range=CLIP_RANGE,
    )
