"""The sampling loop on a device: one graph, replayed once for each evaluation.

The graph holds the step engine and the kernel of `advance`, which turns its y into the next x and
moves the row's number on. Whatever the loop needs was allocated before it, for the engine's number
of rows, and nothing in it waits for the device: K replays are queued, then the images are fetched.
Only a table that adds noise, more of it than `STAGED` bytes, waits now and then for its uploads.

    loop.takes(plan.table, plan.weights)    whether this loop can do it, else the host's can
    loop.run(table, {"x": noise, "cond": cond}, noise=...)

Not here: guidance, whose answers are weighed, and tables that do not clip; those are the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle import CLIP_RANGE
from ...errors import ConfigError
from ...solvers import SolverTable
from .advance import ENTRY, POINTERS, THREADS, WEIGHTS, ptx, table_rows
from .protocol import Array, Buffer, Device

Floats = NDArray[np.float32]
STAGED = 64 * 2**20


class StepEngine(Protocol):
    """What the loop needs of a loaded step graph.

    Attributes:
        device: where it is.
        buffers: of inputs and outputs, by name.
        staging: pinned arrays of the inputs, by name, of the whole shape.
    """

    device: Device
    buffers: Mapping[str, Buffer]
    staging: Mapping[str, Array]

    def enqueue(self) -> None:
        """Starts one evaluation from what the buffers hold."""
        ...


class StepLoop:
    """Runs whole tables.

    Args:
        engine: the step graph.
        guard: entered around a run, against other threads.
    """

    def __init__(self, engine: StepEngine, *, guard: AbstractContextManager[Any]) -> None:
        self._engine, self._device, self._guard = engine, engine.device, guard
        self._x = engine.staging["x"]
        self._capacity = len(engine.staging["timesteps"])
        with guard, self._device.current():
            self._rows = self._device.pinned((self._capacity, WEIGHTS), np.float32)
            theirs = {"x": "x", "y": "x_next", "drawn": "noise", "step": "step"}
            self._buffers = {ours: engine.buffers[name] for ours, name in theirs.items()}
            for name in ("s", "h1", "h2", "h3"):
                self._buffers[name] = self._device.allocate(self._x.nbytes)
            self._buffers["rows"] = self._device.allocate(self._rows.nbytes)
            self._kernel = self._device.load(ptx(), ENTRY)
        self._graph: Any = None
        self._slots: list[Floats] = []

    @staticmethod
    def takes(table: SolverTable, weights: Sequence[float]) -> bool:
        """Whether the step graph's answer is y: one condition, and estimates that are clipped."""
        return tuple(weights) == (1.0,) and table.clip and table.clip_range == CLIP_RANGE

    def run(
        self,
        table: SolverTable,
        feeds: Mapping[str, Array],
        *,
        noise: Callable[[int], Floats] | None = None,
    ) -> Floats:
        """Images from noise.

        Args:
            table: the evaluations; one that it `takes`.
            feeds: "x", "cond" and what else the step graph sees of an image, [B, ...] float32;
                at most as many rows as the engine has.
            noise: number of the evaluation to [B, C, H, W] standard normal, asked where the table
                adds noise.

        Returns:
            [B, C, H, W] float32, the last x.

        Raises:
            ConfigError: more evaluations than the engine's tables hold, or no noise for a table
                that adds some.
            BackendUnavailableError: the device refused.
        """
        evaluations, rows = len(table.timestep), len(feeds["x"])
        assert rows <= len(self._x), f"{rows} images for an engine of {len(self._x)}"
        assert self.takes(table, (1.0,)), "a table whose y is not the graph's"
        if evaluations > self._capacity:
            expected = f"at most {self._capacity}"
            raise ConfigError("evaluations", got=evaluations, expected=expected)
        if noise is None and table.draws.any():
            raise ConfigError("noise", got=None, expected="a function of the evaluation's number")
        device = self._device
        with self._guard, device.current():
            try:
                self._stage(table, feeds)
                self._prepare(uploads=int(table.draws.sum()))
                uploads = 0
                for k, draws in enumerate(table.draws.tolist()):
                    if draws and noise is not None:
                        self._upload(noise(k), uploads)
                        uploads += 1
                    device.replay(self._graph)
                device.download(self._x, self._buffers["x"])
            finally:
                device.wait()  # nothing may still read what the next call will overwrite
            return self._x[:rows].copy()

    def _stage(self, table: SolverTable, feeds: Mapping[str, Array]) -> None:
        """Uploads everything that lasts the loop."""
        staging, device = self._engine.staging, self._device
        evaluations = len(table.timestep)
        whole = {"timesteps": table.timestep, "coef": table.network}
        for name, values in (whole | dict(feeds)).items():
            array = staging[name]
            array[: len(values)] = values
            if name not in whole:
                array[len(values) :] = 0  # no row of an earlier call, whatever it was
            device.upload(self._engine.buffers[name], array)
        self._rows[:evaluations] = table_rows(table)
        device.upload(self._buffers["rows"], self._rows)
        device.copy(self._buffers["s"], self._buffers["x"])
        device.clear(self._buffers["step"])
        device.clear(self._buffers["drawn"])  # times 0 where nothing is drawn, so it must be finite

    def _prepare(self, *, uploads: int) -> None:
        """Records the graph, and makes room for noise, the first time that they are needed."""
        wanted = min(uploads, max(1, STAGED // self._x.nbytes))
        while len(self._slots) < wanted:
            self._slots.append(self._device.pinned(self._x.shape, np.float32))
        if self._graph is None:
            self._engine.enqueue()  # once outside, as a library may prepare itself when first run
            self._device.wait()
            self._graph = self._device.capture(self._evaluation)

    def _evaluation(self) -> None:
        self._engine.enqueue()
        addresses = [np.uint64(self._buffers[name].address) for name in POINTERS]
        images, pixels = len(self._x), self._x[0].size
        self._device.launch(
            self._kernel,
            blocks=images,
            threads=THREADS,
            arguments=[*addresses, np.uint32(pixels)],
        )

    def _upload(self, drawn: Floats, count: int) -> None:
        """The noise of an evaluation, through a slot that no copy reads any more."""
        slot = count % len(self._slots)
        if count and slot == 0:
            self._device.wait()
        self._slots[slot][: len(drawn)] = drawn
        self._device.upload(self._buffers["drawn"], self._slots[slot])
