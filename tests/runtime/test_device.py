"""The device layer against a driver that records its calls and does them in host memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import fake_cuda
from support.fake_cuda import CUresult, FakeCuda
from support.fake_pycuda import with_pycuda
from treediffusion.errors import BackendUnavailableError, ConfigError, DependencyError
from treediffusion.runtime.device import open_device
from treediffusion.runtime.device.advance import ENTRY, POINTERS, ptx
from treediffusion.runtime.device.bindings import BindingsDevice
from treediffusion.runtime.device.protocol import Device


def bindings() -> tuple[BindingsDevice, FakeCuda]:
    fake = FakeCuda()
    return BindingsDevice(driver=fake), fake


def test_a_device_says_what_it_is() -> None:
    device, _ = bindings()
    assert (device.name, device.capability, device.stream) == ("NVIDIA Abacus", (9, 0), 77)


def test_work_happens_in_the_context_and_in_the_stream() -> None:
    device, fake = bindings()
    with device.current():
        host = device.pinned((2, 3), np.float32)
        assert not host.any()
        host[...] = np.arange(6).reshape(2, 3)
        first, second = device.allocate(host.nbytes), device.allocate(host.nbytes)
        device.upload(first, host)
        device.copy(second, first)
        device.clear(first)
        back = device.pinned((2, 3), np.float32)
        device.download(back, second)
        assert not back.any(), "nothing happens before one waits"
        device.wait()
        assert np.array_equal(back, host)
        device.download(back, first)
        device.wait()
        assert not back.any()
    assert fake.contexts == []
    device.close()
    device.close()
    assert fake.names().count("cuDevicePrimaryCtxRelease") == 1
    assert not fake.memory


def test_part_of_a_buffer_is_written_and_never_more() -> None:
    device, _ = bindings()
    with device.current():
        buffer, host = device.allocate(8), device.pinned((4,), np.float32)
        device.upload(buffer, host[:2])
        with pytest.raises(AssertionError, match="16 bytes for a buffer of 8"):
            device.upload(buffer, host)


def test_an_array_without_elements() -> None:
    device, _ = bindings()
    with device.current():
        assert device.pinned((3, 0), np.float32).shape == (3, 0)
        assert device.allocate(0).nbytes == 0


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("cuMemAlloc", lambda device: device.allocate(8)),
        ("cuStreamSynchronize", lambda device: device.wait()),
        ("cuModuleLoadData", lambda device: device.load(ptx(), ENTRY)),
        ("cuStreamBeginCapture", lambda device: device.capture(lambda: None)),
    ],
)
def test_what_the_driver_refuses_is_named(name: str, call: Callable[[Device], object]) -> None:
    device, fake = bindings()
    fake.fails[name] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with (
        device.current(),
        pytest.raises(BackendUnavailableError, match=rf"{name}.*OUT_OF_MEMORY \(2\)"),
    ):
        call(device)


def test_a_graph_holds_the_work_and_does_none() -> None:
    device, fake = bindings()
    with device.current():
        ones, buffer = device.pinned((2,), np.float32), device.allocate(8)
        ones[...] = 1
        graph = device.capture(lambda: device.upload(buffer, ones))
        back = device.pinned((2,), np.float32)
        device.clear(buffer)
        device.download(back, buffer)
        device.wait()
        assert not back.any()
        device.replay(graph)
        device.download(back, buffer)
        device.wait()
        assert back.all()
    modes = [arguments[1] for name, arguments in fake.calls if name == "cuStreamBeginCapture"]
    assert modes == [FakeCuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL]


def test_a_fault_while_recording_ends_the_recording() -> None:
    device, fake = bindings()

    def broken() -> None:
        raise ValueError("ours")

    with device.current(), pytest.raises(ValueError, match="ours"):
        device.capture(broken)
    assert fake.names()[-2] == "cuStreamEndCapture"
    with device.current():
        device.capture(lambda: None)


def test_calls_are_those_of_the_real_bindings() -> None:
    """Every function that is used exists there, and takes as many arguments as it is given."""
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    device, fake = bindings()
    with device.current():
        host, buffer = device.pinned((1,), np.uint64), device.allocate(8)
        device.upload(buffer, host)
        device.download(host, buffer)
        device.copy(buffer, buffer)
        device.clear(buffer)
        kernel = device.load(ptx(), ENTRY)
        arguments = [*(np.uint64(0) for _ in POINTERS), np.uint32(0)]
        device.replay(
            device.capture(lambda: device.launch(kernel, blocks=0, threads=1, arguments=arguments))
        )
    device.close()
    assert set(fake.names()) == {name[1:] for name in vars(FakeCuda) if name.startswith("_cu")}
    for name, given in fake.calls:
        text = getattr(real, name).__doc__.partition("\n")[0]
        inside = text.partition("(")[2].rpartition(")")[0]
        assert len(given) == len([part for part in inside.split(",") if part]), text
    for kind in ("CUdevice_attribute", "CUstream_flags", "CUstreamCaptureMode"):
        for attribute, value in vars(getattr(FakeCuda, kind)).items():
            assert int(getattr(getattr(real, kind), attribute)) == value


STUBBED = """
import numpy as np
from treediffusion.errors import BackendUnavailableError
from treediffusion.runtime.device import open_device
from treediffusion.runtime.device.graph_handles import GraphHandles
device = open_device()
print(device.name, device.capability, device.stream)
with device.current():
    host, back = device.pinned((3, 4), np.float32), device.pinned((3, 4), np.float32)
    host[...] = 7
    one, two = device.allocate(48), device.allocate(48)
    device.upload(one, host)
    device.copy(two, one)
    device.clear(one)
    device.download(back, two)
    device.wait()
    print(int(back.sum()))
    kernel = device.load(b"text", "entry")
    arguments = [*(np.uint64(100 + i) for i in range(9)), np.uint32(77)]
    device.replay(device.capture(
        lambda: device.launch(kernel, blocks=2, threads=512, arguments=arguments)))
    try:
        device.allocate(2**31)
    except BackendUnavailableError as refusal:
        print(refusal)
device.close()
handles = GraphHandles()
handles.free(handles.capture(0x77, lambda: None))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stub is for Linux")
def test_the_real_bindings_take_what_they_are_given(tmp_path: Path) -> None:
    """cuda-bindings itself, and ctypes, with a library under it that writes down what arrives."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = Path(fake_cuda.__file__).with_name("stub_cuda.c")
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    folders = [str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}
    ended = subprocess.run(
        [sys.executable, "-c", STUBBED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "Stub (9, 0) 119",
        "84",
        "cuMemAlloc: got CUDA_ERROR_OUT_OF_MEMORY (2), expected CUDA_SUCCESS",
    ]
    assert ended.stderr.splitlines() == [
        *("init 0", "stream 1", "pinned 48 0", "pinned 48 0"),
        *("up 48 0x77", "copy 48 0x77", "set 0 48 0x77", "down 48 0x77", "wait 0x77"),
        *("module 4", "function entry of 0x55", "begin 0x77 1"),
        *("launch 0x66 2 1 1 512 1 1 0 0x77 (nil)", "arguments 100 108 77"),
        *("end 0x77", "instantiate 0x88 0", "drop 0x88", "replay 0x99 0x77"),
        *("wait 0x77", "free 0x99", "unload 0x55", "destroy 0x77", "release 0"),
        *("begin 0x77 1", "end 0x77", "instantiate 0x88 0", "drop 0x88", "free 0x99"),
    ]


def test_no_driver_and_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver(FakeCuda):
        def _cuInit(self, flags: int) -> None:
            raise RuntimeError("libcuda is nowhere")

    with pytest.raises(BackendUnavailableError, match=r"libcuda is nowhere.*install the driver"):
        BindingsDevice(driver=NoDriver())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[tensorrt\]"):
        open_device()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[pycuda\]"):
        open_device("pycuda")
    with pytest.raises(ConfigError, match="bindings, pycuda"):
        open_device("abacus")


def test_pycuda_lives_in_its_hosts_context() -> None:
    _, driver, _ = with_pycuda(current=True)
    assert driver.log == ["init"]
    assert len(driver.cuda.contexts) == 1
    _, driver, _ = with_pycuda()
    assert driver.log == ["init", "primary"]
    assert driver.cuda.contexts == []


def test_errors_of_pycuda_become_ours() -> None:
    device, _, _ = with_pycuda()
    with pytest.raises(BackendUnavailableError, match="out of memory"), device.current():
        device.allocate(2**41)


def test_errors_of_the_drivers_graphs_are_named() -> None:
    device, driver, _ = with_pycuda()
    driver.cuda.fails["cuGraphLaunch"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with device.current():
        graph = device.capture(lambda: None)
        with pytest.raises(BackendUnavailableError, match=r"cuGraphLaunch.*700"):
            device.replay(graph)


def test_the_driver_of_this_machine_answers() -> None:
    """Where there is none, with our error; where there is one, with a device."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    try:
        device = open_device()
    except BackendUnavailableError as refusal:
        assert re.search("driver|CUDA_ERROR", str(refusal))  # noqa: PT017
    else:
        device.close()
