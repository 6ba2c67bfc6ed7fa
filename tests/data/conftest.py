"""Nothing that these tests read or pack touches the user's own folders."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Path = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("TREEDIFFUSION_CACHE", str(folder / "packed"))
    monkeypatch.setenv("TREEDIFFUSION_DATA", str(folder / "originals"))
