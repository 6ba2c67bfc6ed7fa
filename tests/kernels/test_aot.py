"""Kernels ahead of time: built where no GPU is, recorded, checked, and packed for a launch.

Triton interprets kernels in this process, so that all compiling is in processes of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from treediffusion.errors import (
    BackendUnavailableError,
    BundleFormatError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
    ShapeError,
)
from treediffusion.kernels.aot import driver as driver_module
from treediffusion.kernels.aot.driver import Driver
from treediffusion.kernels.aot.loader import BuiltKernels, LoadedKernel, choose_file, pack
from treediffusion.kernels.aot.manifest import Argument, BuiltFile, BuiltKernel, write_manifest

ROOT = Path(__file__).parents[2]
LIGHT = ("__init__", "errors", "files", "optional")
# That of the environment, whose scripts need not be on the path, or the system's.
CMAKE = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def checkout(folder: Path) -> Path:
    """A checkout with one small kernel, whose package must not be loaded."""
    (folder / "python" / "treediffusion").mkdir(parents=True)
    for name in LIGHT:
        source = ROOT / "python" / "treediffusion" / f"{name}.py"
        shutil.copy(source, folder / "python" / "treediffusion")
    shutil.copytree(ROOT / "kernels" / "aot", folder / "kernels" / "aot")
    for name in ("__init__.py", "variants.py"):
        shutil.copy(ROOT / "kernels" / name, folder / "kernels")
    (folder / "kernels" / "small").mkdir()
    shutil.copy(
        ROOT / "tests" / "support" / "small_kernel.py", folder / "kernels" / "small" / "kernel.py"
    )
    (folder / "kernels" / "small" / "__init__.py").write_text("raise AssertionError\n")
    (folder / "kernels" / "aot" / "table.json").write_text("{}\n")
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    return folder


def run(root: Path, *words: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the folder, compiling."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    script = str(root / "kernels" / "aot" / "standalone.py")
    command = [sys.executable, "-P", script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    ended = run(small, "build", "--arch", "80", "sm_90", "--out", str(folder))
    assert ended.returncode == 0, ended.stderr
    return folder


def write_kernel(folder: Path, *files: tuple[str, str, int], **changes: Any) -> BuiltKernel:
    """A folder as if built, with files (name, form, arch) of no real code."""
    rows = []
    for name, form, arch in files:
        (folder / name).write_bytes(name.encode())
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        rows.append(BuiltFile(name, form, arch, sha256, "scale", 4, 50_000, 2, 20))  # type: ignore[arg-type]
    arguments = (
        Argument("x", "*fp32", True),
        Argument("factor", "fp32", False),
        Argument("rows", "i32", False),
        Argument("wide", "i64", True),
    )
    kernel = BuiltKernel("scale", "scale", arguments, {"BLOCK": 256}, tuple(rows))
    write_manifest(folder, [kernel], triton="3.9.0")
    return kernel


ALL = (("a.cubin", "cubin", 80), ("b.cubin", "cubin", 90), ("c.ptx", "ptx", 80))
GOOD = {"x": 1024, "factor": 0.1, "rows": -5, "wide": 1 << 40}


# Building


@needs_triton
def test_manifest_lists_what_a_launch_needs(built: Path) -> None:
    content = json.loads((built / "manifest.json").read_text())
    assert content["triton"]
    first, second = content["kernels"]
    assert [a["name"] for a in first["arguments"]] == ["x", "factor", "rows", "y"]
    assert [a["aligned"] for a in first["arguments"]] == [True, False, False, True]
    assert first["constants"] == {"BLOCK": 256}
    assert first["grid"] == "scale"
    assert [(f["form"], f["arch"], f["num_warps"]) for f in second["files"]] == [
        ("cubin", 80, 1),
        ("ptx", 80, 1),
        ("cubin", 90, 1),
    ]
    assert {f["hidden"] for k in (first, second) for f in k["files"]} == {2}
    assert len(list(built.iterdir())) == 7


@needs_triton
def test_ptx_runs_on_drivers_since_12_and_names_no_path(built: Path) -> None:
    text = (built / "scale_fp32_b64.sm_80.ptx").read_text()
    assert ".version 8.0" in text
    assert "kernel.py" not in text
    assert "fma" not in text


@needs_triton
def test_same_bytes_from_another_folder_without_a_cache(built: Path, tmp_path: Path) -> None:
    other = checkout(tmp_path / "other")
    again = tmp_path / "again"
    ended = run(other, "build", "--arch", "80", "90", "--out", str(again), cache=tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    for path in built.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@needs_triton
def test_packed_arguments_have_the_sizes_of_the_ptx(built: Path) -> None:
    from treediffusion.kernels.aot.compile import parameter_sizes

    for kernel in BuiltKernels(built).kernels.values():
        for file in kernel.files:
            cells = pack(kernel, file, {"x": 16, "factor": 1, "rows": 1, "y": 32}).cells
            if file.form == "ptx":
                sizes = parameter_sizes((built / file.file).read_text())
                assert [ctypes.sizeof(cell) for cell in cells] == sizes


@needs_triton
def test_table_asks_for_a_record_then_holds_kernels_against_it(tmp_path: Path) -> None:
    root = checkout(tmp_path / "checkout")
    before = run(root, "table", "--arch", "80")
    assert before.returncode == 1
    assert "scale_fp32_b256 on sm_80 is not in the table; run: python -m" in before.stdout
    assert run(root, "table", "--write").returncode == 0
    assert run(root, "table", "--arch", "80", "120").returncode == 0
    table = root / "kernels" / "aot" / "table.json"
    content = json.loads(table.read_text())
    (rows,) = content.values()
    rows["scale_fp32_b256"]["80"][0] //= 2
    table.write_text(json.dumps(content))
    worse = run(root, "table", "--arch", "80", "--quick")
    assert worse.returncode == 1
    assert "scale_fp32_b256 on sm_80 takes" in worse.stdout


@needs_triton
def test_kernels_load_where_only_triton_is_installed() -> None:
    """So CMake builds them in an environment that has neither PyTorch nor NumPy."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "numpy", "pydantic", "rich")))
import standalone
from pathlib import Path
standalone.load_bare(Path(sys.argv[1]))
from treediffusion.kernels.aot.compile import find_variants
print(len({variant.name.partition("_")[0] for variant in find_variants()}))
"""
    aot = ROOT / "kernels" / "aot"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "kernels")],
        cwd=aot, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 5


@needs_triton
def test_one_of_each_kernel_is_as_recorded() -> None:
    """On sm_80 and sm_90; `table` without --quick compares all, which takes many minutes."""
    ended = run(ROOT, "table", "--quick", "--arch", "80", "90")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_triton
@pytest.mark.skipif(CMAKE is None, reason="CMake is not installed")
def test_cmake_builds_and_installs(small: Path, built: Path, tmp_path: Path) -> None:
    steps = [
        ["-S", small, "-B", tmp_path / "b", "-DTREEDIFFUSION_CUDA_ARCHS=80;90"],
        ["--build", tmp_path / "b"],
        ["--install", tmp_path / "b", "--prefix", tmp_path / "site"],
    ]
    steps[0].append(f"-DPython_EXECUTABLE={sys.executable}")
    for step in steps:
        command = [CMAKE, *map(str, step)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    installed = tmp_path / "site" / "treediffusion" / "kernels" / "built"
    assert BuiltKernels(installed).kernels == BuiltKernels(built).kernels


# Opening


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_kernel(tmp_path, *ALL)
    (tmp_path / "b.cubin").write_bytes(b"other")
    with pytest.raises(BundleIntegrityError, match=r"b\.cubin"):
        BuiltKernels(tmp_path)
    (tmp_path / "b.cubin").unlink()
    with pytest.raises(BundleFormatError, match=r"b\.cubin"):
        BuiltKernels(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "kernels": [{}]}'])
def test_a_broken_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BundleFormatError, match=r"manifest\.json"):
        BuiltKernels(tmp_path)


def test_a_manifest_names_no_file_elsewhere(tmp_path: Path) -> None:
    write_kernel(tmp_path, *ALL)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("a.cubin", "../a.cubin"))
    with pytest.raises(BundleFormatError, match=r"\.\./a"):
        BuiltKernels(tmp_path)


def test_newer_and_absent_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"aot\.build"):
        BuiltKernels(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(BundleVersionError, match="build the kernels again"):
        BuiltKernels(tmp_path)


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 0), "a.cubin"), ((8, 9), "a.cubin"), ((9, 0), "b.cubin"), ((12, 0), "c.ptx")],
)
def test_a_device_gets_its_cubin_or_ptx(
    tmp_path: Path, capability: tuple[int, int], name: str
) -> None:
    assert choose_file(write_kernel(tmp_path, *ALL), capability).file == name


@pytest.mark.parametrize("capability", [(7, 5), (10, 3)])
def test_a_device_that_runs_none_is_told(tmp_path: Path, capability: tuple[int, int]) -> None:
    """Machine code for 9.0 and 10.0 has no successors."""
    kernel = write_kernel(tmp_path, ("b.cubin", "cubin", 90), ("d.cubin", "cubin", 100))
    with pytest.raises(BackendUnavailableError, match="cubin for sm_90, cubin for sm_100"):
        choose_file(kernel, capability)


# Launching


def test_pointers_lead_to_the_values_in_order(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, *ALL)
    packed = pack(kernel, kernel.files[0], dict(reversed(GOOD.items())))
    types = (
        ctypes.c_uint64, ctypes.c_float, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64,
        ctypes.c_uint64,
    )  # fmt: skip
    read = [t.from_address(at).value for t, at in zip(types, packed.pointers, strict=True)]
    assert read == [1024, ctypes.c_float(0.1).value, -5, 1 << 40, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", 8), ("x", -16), ("x", 1.0), ("rows", 1 << 31), ("factor", "no"), ("wide", 1)],
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    kernel = write_kernel(tmp_path, *ALL)
    with pytest.raises(ShapeError, match=f"{name} of scale"):
        pack(kernel, kernel.files[0], {**GOOD, name: value})


def test_arguments_are_those_of_the_kernel(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, *ALL)
    for values in ({}, {**GOOD, "more": 1}):
        with pytest.raises(ConfigError, match="arguments of scale"):
            pack(kernel, kernel.files[0], values)


class PretendDriver:
    """A driver that notes its calls, has a 9.0, and fails where it is told."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuDeviceGetAttribute":
                answers = {75: 9, 76: 0, 97: 232_448}
                arguments[0]._obj.value = answers[arguments[1].value]
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_NO_BINARY_FOR_GPU"
            return 209 if name == self.failing else 0

        return function

    def given(self, name: str) -> tuple[Any, ...]:
        (arguments,) = [arguments for called, arguments in self.calls if called == name]
        return arguments


def loaded(folder: Path, library: PretendDriver) -> LoadedKernel:
    write_kernel(folder, *ALL)
    return BuiltKernels(folder).load("scale", driver=Driver(library))


def test_a_launch_tells_the_driver_all(tmp_path: Path) -> None:
    library = PretendDriver()
    kernel = loaded(tmp_path, library)
    assert library.given("cuModuleLoadData")[1].value == b"b.cubin"
    assert library.given("cuFuncSetAttribute")[2].value == 50_000
    kernel.launch((3, 0, 1), GOOD)
    assert "cuLaunchKernel" not in [name for name, _ in library.calls]
    kernel.launch((3, 2, 1), GOOD, stream=77)
    _, *sizes, stream, arguments, extra = library.given("cuLaunchKernel")
    assert [size.value for size in sizes] == [3, 2, 1, 128, 1, 1, 50_000]
    assert (stream.value, len(arguments), extra) == (77, 6, None)


def test_what_the_driver_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"NO_BINARY_FOR_GPU \(209\)"):
        loaded(tmp_path, PretendDriver("cuModuleLoadData"))
    with pytest.raises(ConfigError, match="one of scale"):
        BuiltKernels(tmp_path).load("other")


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open")

    monkeypatch.setattr(driver_module.ctypes, "CDLL", absent)
    with pytest.raises(BackendUnavailableError, match="expected a driver"):
        Driver()


def test_the_loader_needs_neither_torch_nor_triton() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, triton=None, numpy=None)\n"
        "import treediffusion.kernels.aot.loader"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.gpu
def test_built_kernels_run(built: Path) -> None:
    import torch

    x = torch.arange(1000, dtype=torch.float32, device="cuda")
    for name, block in (("scale_fp32_b256", 256), ("scale_fp32_b64", 64)):
        y = torch.full_like(x, -1.0)
        kernel = BuiltKernels(built).load(name)
        values = {"x": x.data_ptr(), "factor": 2.0, "rows": 999, "y": y.data_ptr()}
        stream = torch.cuda.current_stream().cuda_stream
        kernel.launch((-(-1000 // block), 1, 1), values, stream=stream)
        torch.cuda.synchronize()
        assert torch.equal(y[:999], 2 * x[:999])
        assert y[999] == -1.0
