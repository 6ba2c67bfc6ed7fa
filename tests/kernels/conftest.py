"""Kernels forced to run: in Triton's interpreter, or compiled where there is a GPU.

Triton decides when it decorates a function whether that is compiled or interpreted, its own library
too, so a process has one or the other for good. `tests/conftest.py` decides before anything imports
Triton: ``TRITON_INTERPRET=1`` in processes without a GPU. Nothing is imported afresh here; what a
test asks for is that operations take their kernel, and for the length of that test alone:

    def test_kernel(interpreted: torch.device) -> None:
        x = torch.randn(2, 64, 7, 7, device=interpreted)
        assert_close(op(x), reference(x))

A module whose tests all do: ``pytestmark = pytest.mark.usefixtures("interpreted")``. References are
called by their own names, or under ``use_kernels("reference")``. The compiler runs in a process of
its own, without the variable: see `compiled`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from treediffusion.kernels import choice

Compiled = dict[str, dict[str, Any]]

# Arguments: module, architecture, whether integers are specialised to 1, a pattern of names.
_COMPILE = """
import importlib, json, re, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

module, arch, ones, only = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4]
report = {}
for variant in importlib.import_module(module).VARIANTS:
    if re.search(only, variant.name) is None:
        continue
    types, constants = dict(variant.types), dict(variant.constants)
    integers = {name for name, kind in types.items() if kind in ("i32", "i64")} if ones else set()
    constants |= dict.fromkeys(integers, 1)
    types |= dict.fromkeys(constants, "constexpr")
    # Attributes go by position: of pointers and integers that are multiples of 16.
    places = {name: place for place, name in enumerate(variant.kernel.arg_names)}
    attributes = {
        (places[name],): [["tt.divisibility", 16]]
        for name in variant.aligned
        if name not in constants
    }
    source = ASTSource(variant.kernel, types, constants, attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    options["enable_fp_fusion"] = not variant.precise
    built = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    report[variant.name] = {"shared": built.metadata.shared, "ptx": len(built.asm["ptx"])}
print(json.dumps(report))
"""


@pytest.fixture
def interpreted() -> Iterator[torch.device]:
    """Forces kernels for one test; the device whose tensors they take."""
    choice._unable.cache_clear()  # a test may have asked while the environment was another
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = choice._unable(device.type, interpreted=True)
    if reason is not None:
        pytest.skip(reason)
    with choice.use_kernels("triton"):
        yield device


@pytest.fixture
def compiled() -> Callable[..., Compiled]:
    """A function that compiles the `VARIANTS` of a module, in a process without the interpreter.

    ``compiled("treediffusion.kernels.gn_silu.kernel", arch=90, ones=False)`` gives bytes of shared
    memory and of PTX, by variant; with `ones`, every integer argument is specialised to 1, as
    Triton does at run time. `only` is a pattern of the names of those to compile.
    """

    def build(module: str, *, arch: int = 90, ones: bool = False, only: str = "") -> Compiled:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        arguments = [sys.executable, "-c", _COMPILE, module, str(arch), "01"[ones], only]
        run = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-4000:]
        report: Compiled = json.loads(run.stdout.splitlines()[-1])
        return report

    return build
