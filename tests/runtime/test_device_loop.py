"""The sampling loop on a simulated device, bit for bit the host's, and its kernel's text."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCuda
from support.fake_pycuda import with_pycuda
from support.tables import table_of
from treediffusion.bundle import CLIP_RANGE
from treediffusion.errors import ConfigError
from treediffusion.runtime.device import Device, StepLoop
from treediffusion.runtime.device.advance import ENTRY, POINTERS, ptx, table_rows
from treediffusion.runtime.device.bindings import BindingsDevice
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SOLVERS, SolverTable, follow, table_along

SCHEDULE = DiffusionSchedule(timesteps=200, beta_start=1e-4, beta_end=0.04)


class NumpyEngine:
    """A step graph in NumPy that only touches the device's memory."""

    def __init__(self, device: Device, fake: FakeCuda, *, rows: int, capacity: int) -> None:
        self.device, self._fake = device, fake
        image = (rows, 1, 2, 3)
        shapes = {
            "x": (image, np.float32), "cond": ((rows, 4), np.float32),
            "timesteps": ((capacity,), np.int64), "coef": ((capacity, 5), np.float32),
            "step": ((rows,), np.int64), "noise": (image, np.float32),
            "x_next": (image, np.float32), "x0": (image, np.float32),
        }  # fmt: skip
        with device.current():
            self.staging = {name: device.pinned(*shape) for name, shape in shapes.items()}
            self.buffers = {name: device.allocate(a.nbytes) for name, a in self.staging.items()}

    def enqueue(self) -> None:
        self._fake.put(self.device.stream, self._evaluate)

    def _evaluate(self) -> None:
        view = {
            name: np.frombuffer(
                (ctypes.c_char * buffer.nbytes).from_address(buffer.address),
                self.staging[name].dtype,
            ).reshape(self.staging[name].shape)
            for name, buffer in self.buffers.items()
        }
        k = view["step"]
        assert (k < len(view["timesteps"])).all(), "a row of the table that there is not"
        found = network(view["x"], view["timesteps"][k], view["cond"])
        a, b, c, e, tau = view["coef"][k].T[:, :, None, None, None]
        view["x0"][...] = np.clip(a * view["x"] - b * found, *CLIP_RANGE)
        view["x_next"][...] = c * view["x0"] + e * found + tau * view["noise"]


def network(x: np.ndarray, timestep: np.ndarray, cond: np.ndarray) -> np.ndarray:
    pull = timestep.astype(np.float32)[:, None, None, None] / np.float32(200)
    return np.tanh(x + cond.mean(axis=1, dtype=np.float32)[:, None, None, None]) * pull


def on_host(table: SolverTable, x: np.ndarray, cond: np.ndarray, noise: Any) -> np.ndarray:
    """The same by `follow`, with the step graph's own arithmetic for y."""
    rows = table.network.astype(np.float32)

    def evaluate(x: np.ndarray, k: int, drawn: np.ndarray | None) -> np.ndarray:
        found = network(x, np.full(len(x), table.timestep[k]), cond)
        a, b, c, e, tau = rows[k]
        x0 = np.clip(a * x - b * found, *CLIP_RANGE)
        added = np.zeros_like(x) if drawn is None else drawn
        return c * x0 + e * found + tau * added

    return follow(table, x, evaluate, noise)


def table(solver: str, steps: int = 5, *, eta: float = 0.0) -> SolverTable:
    return table_along(
        SCHEDULE, solver, num_inference_steps=steps, spacing="uniform", eta=eta,
        prediction="eps", clip_range=CLIP_RANGE,
    )  # fmt: skip


def drawn(k: int) -> np.ndarray:
    return np.random.default_rng(k).standard_normal((2, 1, 2, 3), np.float32)


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    return {
        "x": generator.standard_normal((rows, 1, 2, 3), np.float32),
        "cond": generator.standard_normal((rows, 4), np.float32),
    }


def make_loop(*, rows: int = 2, capacity: int = 12) -> tuple[StepLoop, FakeCuda]:
    fake = FakeCuda()
    device = BindingsDevice(driver=fake)
    engine = NumpyEngine(device, fake, rows=rows, capacity=capacity)
    return StepLoop(engine, guard=threading.RLock()), fake


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "ipndm"])
def test_the_loop_on_a_device_is_the_hosts_bit_for_bit(solver: str) -> None:
    loop, _ = make_loop()
    rows, given = table(solver), feeds()
    assert loop.takes(rows, (1.0,))
    found = loop.run(rows, given, noise=drawn)
    expected = on_host(rows, given["x"], given["cond"], drawn)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_noise_of_every_step_reaches_it() -> None:
    loop, _ = make_loop()
    rows, given = table("ddim", eta=1.0), feeds()
    assert np.array_equal(
        loop.run(rows, given, noise=drawn), on_host(rows, given["x"], given["cond"], drawn)
    )


def test_noise_through_few_slots_waits_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two of five draws, a slot is filled again only after it was read."""
    monkeypatch.setattr("treediffusion.runtime.device.step_loop.STAGED", 2 * 2 * 6 * 4)
    loop, _ = make_loop()
    rows, given = table("ddpm"), feeds()
    assert np.array_equal(
        loop.run(rows, given, noise=drawn), on_host(rows, given["x"], given["cond"], drawn)
    )


def test_one_graph_serves_all_tables_and_the_loop_neither_waits_nor_allocates() -> None:
    loop, fake = make_loop()
    loop.run(table("ddim", 3), feeds())
    fake.calls.clear()
    loop.run(table("dpmpp_2m", 10), feeds())
    names = fake.names()
    assert names.count("cuGraphLaunch") == 10
    first = names.index("cuGraphLaunch")
    assert set(names[first : first + 10]) == {"cuGraphLaunch"}
    assert names.count("cuStreamSynchronize") == 1
    made = {"cuMemAlloc", "cuMemHostAlloc", "cuStreamBeginCapture", "cuModuleLoadData"}
    assert not made & set(names)


def test_fewer_images_than_rows_and_no_trace_of_earlier_calls() -> None:
    loop, _ = make_loop(rows=4)
    rows, alone = table("unipc"), feeds(1)
    first = loop.run(rows, alone)
    loop.run(rows, {name: np.full_like(v, np.nan) for name, v in feeds(4).items()})
    assert first.shape == (1, 1, 2, 3)
    assert np.array_equal(loop.run(rows, alone), first)


def test_an_error_in_the_noise_leaves_the_loop_usable() -> None:
    loop, _ = make_loop()

    def broken(k: int) -> np.ndarray:
        if k == 2:
            raise KeyError("enough")
        return drawn(k)

    rows, given = table("ddpm"), feeds()
    with pytest.raises(KeyError, match="enough"):
        loop.run(rows, given, noise=broken)
    assert np.array_equal(
        loop.run(rows, given, noise=drawn), on_host(rows, given["x"], given["cond"], drawn)
    )


def test_what_a_loop_does_not_take() -> None:
    loop, _ = make_loop(capacity=4)
    assert not StepLoop.takes(table("ipndm"), (1.0,))
    assert not StepLoop.takes(table("ddim"), (-1.0, 2.0))
    assert not StepLoop.takes(table_of(SCHEDULE, [90, 10], clip=False), (1.0,))
    with pytest.raises(ConfigError, match="at most 4"):
        loop.run(table("ddim", 5), feeds())
    with pytest.raises(ConfigError, match="noise"):
        loop.run(table("ddpm", 2), feeds())


def test_each_image_has_a_counter_of_its_own() -> None:
    """Two blocks at different rows of the table: each mixes by its own, and moves on by one."""
    device = BindingsDevice(driver=FakeCuda())
    rows, pixels = table("unipc"), 5
    generator = np.random.default_rng(0)
    with device.current():
        host = {name: device.pinned((2, pixels), np.float32) for name in POINTERS[:7]}
        host["step"] = device.pinned((2,), np.int64)
        host["rows"] = device.pinned(table_rows(rows).shape, np.float32)
        for name in POINTERS[:7]:
            host[name][...] = generator.standard_normal((2, pixels), np.float32)
        host["step"][...] = (3, 1)
        host["rows"][...] = table_rows(rows)
        buffers = {name: device.allocate(array.nbytes) for name, array in host.items()}
        before = {name: array.copy() for name, array in host.items()}
        for name, array in host.items():
            device.upload(buffers[name], array)
        addresses = [np.uint64(buffers[name].address) for name in POINTERS]
        kernel = device.load(ptx(), ENTRY)
        device.launch(kernel, blocks=2, threads=2, arguments=[*addresses, np.uint32(pixels)])
        for name, array in host.items():
            device.download(array, buffers[name])
        device.wait()
    assert host["step"].tolist() == [4, 2]
    assert np.array_equal(host["h1"], before["y"])
    assert np.array_equal(host["h2"], before["h1"])
    assert np.array_equal(host["h3"], before["h2"])
    for image, k in enumerate((3, 1)):
        terms = np.stack([before[name][image] for name in POINTERS[:6]]).astype(np.float64)
        for name, column in (("x", 0), ("s", 1)):
            expected = rows.mix[k, column] @ terms
            np.testing.assert_allclose(host[name][image], expected, rtol=1e-5, atol=1e-6)


def test_the_loop_through_pycuda_is_the_same() -> None:
    device, driver, library = with_pycuda()
    engine = NumpyEngine(device, driver.cuda, rows=2, capacity=12)
    loop, rows, given = StepLoop(engine, guard=threading.RLock()), table("unipc"), feeds()
    assert np.array_equal(loop.run(rows, given), on_host(rows, given["x"], given["cond"], drawn))
    assert library.types == {
        "cuStreamBeginCapture_v2": ["c_void_p", "c_int"],
        "cuStreamEndCapture": ["c_void_p", "CArgObject"],
        "cuGraphInstantiateWithFlags": ["CArgObject", "c_void_p", ctypes.c_ulonglong.__name__],
        "cuGraphDestroy": ["c_void_p"],
        "cuGraphLaunch": ["c_void_p", "c_void_p"],
    }
    device.close()
    assert not driver.cuda.memory


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_kernel_assembles(arch: str, tmp_path: Path) -> None:
    """By NVIDIA's assembler, without spills."""
    assembler = _assembler()
    (tmp_path / "k.ptx").write_bytes(ptx())
    command = [assembler, f"-arch={arch}", "-v", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "k")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in ended.stderr


def _assembler() -> str:
    triton = pytest.importorskip("triton", reason="triton, whose assembler this takes, is absent")
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    path = str(found) if found.is_file() else shutil.which("ptxas")
    if path is None:
        pytest.skip("no ptxas")
    return path
