from __future__ import annotations

import math
from pathlib import Path

import pytest
from treediffusion.errors import DependencyError
from treediffusion.optional import require


def test_returns_the_module() -> None:
    assert require("math", extra="cpu") is math


def test_absent_package_names_the_exact_command() -> None:
    with pytest.raises(DependencyError) as caught:
        require("surely_no_such_package.sub", extra="cpu")
    assert caught.value.name == "surely_no_such_package.sub"
    assert caught.value.got == "no such package installed"
    assert str(caught.value).endswith('run: pip install "treediffusion[cpu]"')
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    "source",
    ["import surely_no_such_dependency", "raise OSError('libgone.so: cannot open')"],
    ids=["its own dependency is missing", "its shared library is missing"],
)
def test_broken_package_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "half_installed.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match="an error while loading it") as caught:
        require("half_installed", extra="gpu")
    assert caught.value.__cause__ is not None


def test_stray_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match=r"stray_folder, which is no package"):
        require("stray_folder", extra="cpu")
