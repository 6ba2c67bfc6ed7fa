"""What is installed here and whether it works, fit to paste into an issue.

Each package is really imported, in a process of its own with a time limit, so that one that
crashes or hangs is a row of the table and not the end of it. Needs nothing but the base
dependencies, and does not judge: a package that is absent is fine, one that is broken is not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from . import __version__
from .errors import DependencyError
from .optional import NOT_INSTALLED, require

State = Literal["ok", "absent", "broken"]

TIMEOUT_S = 120.0  # a first import of torch from a slow disk takes a minute


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the report.

    Attributes:
        name: what was looked at.
        version: its version, or ``-``.
        state: ``ok``, ``absent`` (not installed) or ``broken`` (installed, does not work).
        detail: what was found, or what to do.
    """

    name: str
    version: str
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A package to try.

    Attributes:
        name: its name in the report.
        module: what to import.
        extra: the extra that installs it; empty for a base dependency.
    """

    name: str
    module: str
    extra: str


PROBES = (
    Probe("numpy", "numpy", ""),
    Probe("torch", "torch", "train"),
    Probe("triton", "triton", "train"),
    Probe("onnx", "onnx", "train"),
    Probe("onnxruntime", "onnxruntime", "cpu"),
    Probe("openvino", "openvino", "openvino"),
    Probe("tensorrt", "tensorrt", "tensorrt"),
    Probe("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx"),
    Probe("pycuda", "pycuda.driver", "pycuda"),
    Probe("cuda-bindings", "cuda.bindings.driver", "tensorrt"),
)


def doctor() -> int:
    """Print the report.

    Returns:
        0, or 1 if something that is installed is broken.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "absent": "dim", "broken": "bold red"}
    checks = report()
    table = Table("name", "version", "state", "detail")
    for check in checks:
        state = Text(check.state, style=colours[check.state])
        table.add_row(check.name, check.version, state, Text(check.detail, overflow="fold"))
    Console().print(table)
    return int(any(check.state == "broken" for check in checks))


def report() -> list[Check]:
    """Look at the machine, then at every package.

    Returns:
        One row each, always the same names in the same order.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [*_machine(), *pool.map(examine, PROBES)]


def examine(probe: Probe, *, timeout_s: float = TIMEOUT_S) -> Check:
    """Import one package in a process of its own.

    Args:
        probe: the package.
        timeout_s: seconds until it counts as hanging.

    Returns:
        Its row.
    """
    code = f"from treediffusion.doctor import _answer; _answer({probe.name!r}, {probe.module!r})"
    # -P: a folder of the working directory must not pass for the package.
    command = [sys.executable, "-P", "-c", code]
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(probe.name, "-", "broken", f"importing it took more than {timeout_s:g} s")
    found = _parse(child.stdout)
    if found is None:
        said = child.stderr.strip().splitlines()
        reason = f"ended with code {child.returncode}" + (f": {said[-1]}" if said else "")
        return Check(probe.name, "-", "broken", f"importing it {reason}")
    if found.state == "absent":
        install = f"treediffusion[{probe.extra}]" if probe.extra else "treediffusion"
        return Check(probe.name, "-", "absent", f'pip install "{install}"')
    return found


def _machine() -> list[Check]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    supported = sys.version_info >= (3, 11)
    return [
        Check("treediffusion", __version__, "ok", str(Path(__file__).parent)),
        Check("python", platform.python_version(), "ok" if supported else "broken", sys.executable),
        Check("platform", "-", "ok", platform.platform()),
        Check("cpu", "-", "ok", f"{threads} threads"),
    ]


def _environment() -> dict[str, str]:
    """The child finds this very package; its folder comes last, to shadow nothing."""
    home = str(Path(__file__).resolve().parents[1])
    earlier = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{earlier}{os.pathsep}{home}" if earlier else home}


def _parse(output: str) -> Check | None:
    """The child's answer is its last line; a package may print before it."""
    try:
        return Check(**json.loads(output.strip().splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        return None


def _answer(name: str, module: str) -> None:
    """Runs in the child: import, look, print one line of JSON."""
    print("\n" + json.dumps(asdict(_look(name, module))), flush=True)


def _look(name: str, module: str) -> Check:
    try:
        loaded = require(module, extra="")
    except DependencyError as error:
        state: State = "absent" if error.got == NOT_INSTALLED else "broken"
        return Check(name, "-", state, str(error.got))
    version = _version(loaded, module)
    try:
        return Check(name, version, "ok", _DETAILS.get(name, _nothing)(loaded))
    except Exception as error:
        return Check(name, version, "broken", f"{type(error).__name__}: {error}")


def _version(loaded: ModuleType, module: str) -> str:
    top: Any = sys.modules[module.partition(".")[0]]
    for holder in (loaded, sys.modules.get(module.rpartition(".")[0]), top):
        version = getattr(holder, "__version__", None) or getattr(holder, "VERSION_TEXT", None)
        if version is not None:
            return str(version)
    return "-"


def _nothing(loaded: Any) -> str:
    return ""


def _torch(torch: Any) -> str:
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"
    return f"CUDA {torch.version.cuda}, no device" if torch.version.cuda else "CPU only"


def _onnxruntime(onnxruntime: Any) -> str:
    import numpy as np

    installed = sorted(set(metadata.packages_distributions().get("onnxruntime", [])))
    if len(installed) > 1:
        raise RuntimeError(f"{' and '.join(installed)} overwrite each other: keep one of them")
    listed = onnxruntime.get_available_providers()
    tried = [name for name in listed if name.startswith(("CUDA", "CPU"))]
    session = onnxruntime.InferenceSession(_identity_model(), providers=tried)
    given = np.array([0.5], dtype=np.float32)
    (returned,) = session.run(None, {"x": given})
    if not np.array_equal(given, returned):
        raise RuntimeError(f"the identity of {given} came back as {returned}")
    return f"runs on {session.get_providers()[0]}; lists {', '.join(listed)}"


def _cuda_bindings(driver: Any) -> str:
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:
        return f"no driver ({error})"
    return "driver ready" if int(status) == 0 else f"no device ({status.name})"


_DETAILS: dict[str, Callable[[Any], str]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "cuda-bindings": _cuda_bindings,
}


def _identity_model() -> bytes:
    """An ONNX model ``y = x`` of one float, written by hand: the onnx package may be absent."""
    tensor = _number(1, 1) + _block(2, _block(1, _number(1, 1)))  # float32, shape [1]
    ends = [_block(1, end) + _block(2, _block(1, tensor)) for end in (b"x", b"y")]
    node = _block(1, b"x") + _block(2, b"y") + _block(4, b"Identity")
    graph = _block(1, node) + _block(2, b"identity") + _block(11, ends[0]) + _block(12, ends[1])
    return _number(1, 8) + _block(7, graph) + _block(8, _number(2, 17))  # IR 8, opset 17


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _block(field: int, content: bytes) -> bytes:
    assert len(content) < 128  # longer ones need a length of two bytes
    return bytes([field << 3 | 2, len(content)]) + content
