"""The folders, the dependency lists and the tables that describe them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "python", ROOT / "kernels", ROOT / "export"]
VARIABLE = re.compile(r"\| `([A-Z][A-Z0-9_]*)` \|")
EIGHT = {
    "torch", "triton", "onnx", "onnxruntime-gpu", "tensorrt", "pycuda", "torchvision",
    "pytest-benchmark",
}  # fmt: skip


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = settings["project"]
    return table


@pytest.fixture(scope="module")
def extras(project: dict[str, Any]) -> dict[str, set[str]]:
    """For each extra, the distributions it brings, our own extras unfolded."""
    listed: dict[str, list[str]] = project["optional-dependencies"]

    def unfold(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in listed[extra]:
            if distribution(requirement) == "treediffusion":
                inner = re.search(r"\[(.*)\]", requirement)
                assert inner is not None
                found |= set().union(*(unfold(name.strip()) for name in inner[1].split(",")))
            else:
                found.add(distribution(requirement))
        return found

    return {extra: unfold(extra) for extra in listed}


@pytest.mark.parametrize("folder", ["kernels", "export"])
def test_outer_rooms_shadow_no_installed_package(
    folder: str, project: dict[str, Any], extras: dict[str, set[str]]
) -> None:
    """A script run from such a folder would import ours instead of theirs."""
    packages = {distribution(line) for line in project["dependencies"]}.union(*extras.values())
    reserved = {name.replace("-", "_") for name in packages} | {"cuda", "sklearn", "yaml", "PIL"}
    names = {
        path.stem if path.suffix == ".py" else path.name for path in (ROOT / folder).rglob("*")
    }
    assert not names & (reserved | set(sys.stdlib_module_names))


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_no_package_at_the_top_of_tests_and_bench(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("name", ["kernels", "export"])
def test_outer_room_imports_as_part_of_the_package(name: str) -> None:
    code = f"import treediffusion.{name} as room; print(room.__name__, room.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    full, path = ended.stdout.split()
    assert full == f"treediffusion.{name}"
    assert Path(path).name == "__init__.py"


@pytest.mark.parametrize("name", ["kernels", "export"])
def test_outer_room_cannot_be_imported_on_its_own(name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode != 0
    assert "attempted relative import beyond top-level package" in ended.stderr


def test_links_are_not_tracked() -> None:
    """Wheels and sdists would hold the outer rooms twice."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/python/treediffusion/kernels" in ignored
    assert "/python/treediffusion/export" in ignored


def test_one_onnxruntime_at_most(extras: dict[str, set[str]]) -> None:
    """They install the same module over one another."""
    runtimes = {
        extra: {name for name in brought if name.startswith("onnxruntime")}
        for extra, brought in extras.items()
    }
    assert all(len(found) <= 1 for found in runtimes.values())
    assert {extra for extra, found in runtimes.items() if found} == {"cpu", "gpu", "all"}


def test_all_brings_the_eight_packages(extras: dict[str, set[str]]) -> None:
    assert extras["all"] >= EIGHT


def test_base_is_light(project: dict[str, Any]) -> None:
    base = {distribution(line) for line in project["dependencies"]}
    assert base == {"numpy", "pillow", "pydantic", "pyyaml", "rich", "tyro"}


def test_every_extra_named_in_the_code_exists(extras: dict[str, set[str]]) -> None:
    command = re.compile(r"treediffusion\[([\w,-]+)\]")
    asked = re.compile(r"require\([^()]*extra=\"([^\"]+)\"")
    texts = [path.read_text(encoding="utf-8") for path in python_files()]
    named = {name for text in texts for found in command.findall(text) for name in found.split(",")}
    named |= {name for text in texts for name in asked.findall(text)}
    assert named <= set(extras)


def test_environment_table_equals_the_code() -> None:
    """Ours: both ways. Everybody's: what the code reads has a row."""
    text = (ROOT / "ENVIRONMENT.md").read_text(encoding="utf-8")
    table = set(VARIABLE.findall(text))
    ours = {name for name in table if name.startswith("TREEDIFFUSION_")}
    mentioned = {
        name
        for path in python_files()
        for name in re.findall(r"\bTREEDIFFUSION_[A-Z0-9_]+", path.read_text(encoding="utf-8"))
    }
    assert ours == mentioned
    read = {name for path in python_files() for name in variables_read(path)}
    assert read <= table
    elsewhere = {"TRITON_INTERPRET"}  # read by Triton, set by tests/conftest.py
    assert table - elsewhere <= read


def python_files() -> list[Path]:
    links = {ROOT / "python" / "treediffusion" / name for name in ("kernels", "export")}
    return [
        path
        for folder in SOURCES
        for path in sorted(folder.rglob("*.py"))
        if not links & set(path.parents)
    ]


READERS = {"os.environ.get", "os.environ.setdefault", "os.getenv", "environ.get", "getenv"}


def variables_read(path: Path) -> set[str]:
    """Names given to os.environ.get and setdefault, os.environ[...] and os.getenv."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args:
            if ast.unparse(node.func) in READERS:
                named = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            named = node.slice
        if isinstance(named, ast.Constant) and isinstance(named.value, str):
            found.add(named.value)
    return found
