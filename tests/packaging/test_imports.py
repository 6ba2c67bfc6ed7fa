"""Who may import whom, read from the source, and what an import really loads."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTER = {"kernels": ROOT / "kernels", "export": ROOT / "export"}
INNER = ROOT / "python" / "treediffusion"

# What each room may import besides itself and the light modules. A light module is a file directly
# in the package: NumPy and the base dependencies only.
ROOMS: dict[str, set[str]] = {
    "data": set(),
    "kernels": set(),
    "solvers": set(),
    "nn": {"kernels"},
    "diffusion": {"kernels", "nn"},
    "train": {"data", "diffusion", "kernels", "nn"},
    "estimator": {"data", "nn", "train"},
    "baselines": {"data", "diffusion", "kernels", "nn", "train"},
    "evaluate": {"baselines", "data", "diffusion", "explore", "kernels", "nn", "runtime", "train"},
    "hub": {"data", "diffusion", "evaluate", "kernels", "nn", "train"},
    "export": {"data", "diffusion", "kernels", "nn", "runtime", "train"},
    "runtime": set(),
    "explore": {"runtime"},
    "serve": {"explore", "runtime"},
    "scale": {"runtime", "serve"},
}
LIGHT_FOR_RUNTIME = {
    "", "bundle", "errors", "files", "noise", "noise_series", "optional", "progress", "schedule",
    "signals", "solvers", "spacing", "topology",
}  # fmt: skip
FOR_ALL = {"solvers"}  # a package, but as light as topology and schedule: NumPy and errors alone
TOP = {
    "cli", "cli_data", "cli_draw", "cli_explore", "cli_figures", "cli_judge", "cli_serve", "demo",
    "__main__",
}  # fmt: skip  # sees everything

BASE = {"PIL", "numpy", "pydantic", "rich", "tyro", "yaml"}
TORCH = BASE | {"torch", "torchvision", "safetensors"}
THIRD_PARTY: dict[str, set[str]] = {
    "data": TORCH,
    "kernels": TORCH | {"triton"},
    "nn": TORCH,
    "diffusion": TORCH,
    "train": TORCH,
    "estimator": TORCH | {"sklearn"},
    "baselines": TORCH | {"scipy", "sklearn"},
    "evaluate": TORCH | {"matplotlib", "scipy", "sklearn"},
    "hub": TORCH,  # huggingface_hub comes through `require`
    "export": TORCH | {"joblib", "onnx", "onnxscript"},
    "runtime": {"numpy"},
    "explore": {"numpy", "PIL"},
    "solvers": {"numpy"},
    "serve": {
        "PIL",
        "fastapi",
        "numpy",
        "opentelemetry",
        "prometheus_client",
        "pydantic",
        "starlette",
        "uvicorn",
    },
    "scale": set(),  # ray comes through `require`
}
BLOCKED = ["torch", "torchvision", "triton", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib"]


@dataclass(frozen=True)
class Import:
    """An import statement: what it names, and whether it runs when the module is loaded."""

    module: str
    line: int
    on_load: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the three folders, by dotted name below the package; "" is the package."""
    found = {}
    for prefix, folder in {"": INNER, **OUTER}.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if prefix == "" and parts[0] in OUTER:  # a link, seen from within
                continue
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((prefix, *parts) if prefix else parts)] = path
    return found


def room(name: str) -> str:
    """The first part of a name: a room, or a light module."""
    return name.partition(".")[0]


@cache
def imports(name: str) -> tuple[Import, ...]:
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(_walk(ast.parse(path.read_text(encoding="utf-8")), package, on_load=True))


def _walk(node: ast.AST, package: str, *, on_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, on_load)
        elif isinstance(child, ast.ImportFrom):
            for target in _targets(child, package):
                yield Import(target, child.lineno, on_load)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _walk(ast.Module([part], []), package, on_load=False)
            for part in child.orelse:
                yield from _walk(ast.Module([part], []), package, on_load=on_load)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, on_load=on_load and not inside)


def _targets(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Absolute names; ours begin with ``treediffusion``."""
    if node.level == 0:
        yield node.module or ""
        return
    parts = ["treediffusion", *package.split(".")] if package else ["treediffusion"]
    base = ".".join(parts[: len(parts) - node.level + 1])
    full = f"{base}.{node.module}" if node.module else base
    for alias in node.names:
        below = f"{full}.{alias.name}"
        yield below if below.removeprefix("treediffusion.") in modules() else full


def ours(name: str) -> Iterator[tuple[str, Import]]:
    """Imports of our own modules, by their name below the package."""
    for found in imports(name):
        if found.module.partition(".")[0] == "treediffusion":
            yield found.module.removeprefix("treediffusion").removeprefix("."), found


def place(name: str, found: Import) -> str:
    return f"{modules()[name].relative_to(ROOT)}:{found.line}"


def test_every_room_has_a_row() -> None:
    packages = {room(name) for name, path in modules().items() if path.name == "__init__.py"}
    assert packages - {"", "presets"} <= set(ROOMS), "add the room to ROOMS and THIRD_PARTY"
    assert set(ROOMS) == set(THIRD_PARTY)


def test_rows_have_no_cycle() -> None:
    TopologicalSorter(ROOMS).prepare()


def test_imports_point_one_way() -> None:
    faults = []
    for name in modules():
        if room(name) in TOP or name == "":
            continue
        allowed = ROOMS.get(room(name), set()) | {room(name)} | FOR_ALL
        for target, found in ours(name):
            if room(target) in TOP or (room(target) in ROOMS and room(target) not in allowed):
                faults.append(f"{place(name, found)} imports {target}")
    assert not faults


def test_runtime_sees_only_the_light_modules_it_needs() -> None:
    faults = [
        f"{place(name, found)} imports {target}"
        for name in modules()
        if room(name) == "runtime"
        for target, found in ours(name)
        if room(target) not in LIGHT_FOR_RUNTIME | {"runtime"}
    ]
    assert not faults


def test_modules_load_without_a_cycle() -> None:
    graph = {
        name: {target for target, found in ours(name) if found.on_load and target not in {"", name}}
        for name in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_third_party_packages_stay_in_their_rooms() -> None:
    """At load only: inside a function, ``optional.require`` answers for what is absent."""
    faults = []
    for name in modules():
        allowed = THIRD_PARTY.get(room(name), set() if name == "" else BASE)
        for found in imports(name):
            first = found.module.partition(".")[0]
            known = first in sys.stdlib_module_names or first in {"treediffusion", "__future__"}
            if found.on_load and not known and first not in allowed:
                faults.append(f"{place(name, found)} imports {first}")
    assert not faults


def test_outer_rooms_use_leading_dots() -> None:
    """With absolute names, ``import export`` in the checkout would load a second copy."""
    faults = []
    for name, path in modules().items():
        if room(name) not in OUTER:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                named = [node.module or ""]
            else:
                continue
            if any(room(each) in {"treediffusion", *OUTER} for each in named):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not faults


def test_only_optional_catches_import_errors() -> None:
    faults = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if name == "optional" or not isinstance(node, ast.ExceptHandler) or node.type is None:
                continue
            if re.search("ImportError|ModuleNotFound", ast.unparse(node.type)):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not faults


def test_every_public_name_is_there() -> None:
    import treediffusion

    for name in treediffusion.__all__:
        assert getattr(treediffusion, name) is not None
    assert set(treediffusion._HOME) | {"__version__"} == set(treediffusion.__all__)
    assert set(treediffusion.__all__) <= set(dir(treediffusion))
    with pytest.raises(AttributeError, match="no attribute 'Tree'"):
        treediffusion.__getattr__("Tree")


def loaded_by(module: str, blocked: list[str]) -> set[str]:
    """First names of the modules that an import adds, in a process where some cannot be had."""
    code = """
import importlib.abc, json, sys
blocked = set(json.loads(sys.argv[2]))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)
sys.meta_path.insert(0, Refuse())
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    command = [sys.executable, "-P", "-c", code, module, json.dumps(blocked)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_package_alone_imports_no_third_party_package() -> None:
    assert loaded_by("treediffusion", []) - set(sys.stdlib_module_names) == {"treediffusion"}


@pytest.mark.parametrize(
    "name", ["topology", "errors", "config", "files", "optional", "progress", "doctor"]
)
def test_light_module_loads_without_torch(name: str) -> None:
    assert not loaded_by(f"treediffusion.{name}", BLOCKED) & set(BLOCKED)


@pytest.mark.skipif(
    not (INNER / "runtime" / "__init__.py").exists(), reason="the runtime is not written"
)
def test_runtime_loads_without_torch() -> None:
    assert not loaded_by("treediffusion.runtime", BLOCKED) & set(BLOCKED)
