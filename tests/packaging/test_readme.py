"""The README is a promise: its links lead somewhere, its commands parse, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.models import tiny_bundle
from treediffusion import cli, estimator
from treediffusion.cli import COMMANDS
from treediffusion.config import load_preset, merge_settings, parse_config
from treediffusion.data import load_images

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMAND_LINES = [
    line.partition("#")[0]
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]


def test_links_and_pictures_are_there() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_make_targets_exist() -> None:
    named = re.findall(r"\bmake ([a-z-]+)", README)
    assert {"demo", "test"} <= set(named)
    assert [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.M)] == []


@pytest.mark.parametrize("line", [x for x in COMMAND_LINES if x.startswith("treediffusion")])
def test_options_of_the_commands_exist(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    name = "export" if program == "treediffusion-export" else words.pop(0)
    cli._parse(COMMANDS[name], words, prog=program)  # whatever the files it names


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_generation_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the bundle of the tests, in the place of the demo's."""
    (block,) = [block for block in BLOCKS if "Engine" in block]
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "bundle").symlink_to(tiny_bundle())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_clustering_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a training of seconds in the preset's place."""
    (block,) = [block for block in BLOCKS if "TreeVAEClusterer" in block]
    assert len(BLOCKS) == 2
    phases = dict.fromkeys(("initial", "subtree", "intermediate", "final"), 1)
    tree = {"batch_size": 16, "min_share": 0.0, "restarts": 1, "phases": phases}
    short = merge_settings(load_preset("tiny").model_dump(), {"tree": tree})
    monkeypatch.setattr(estimator, "load_preset", lambda _: parse_config(short, source="tests"))
    exec(compile(block, "README.md", "exec"), {"images": load_images("digits").images[:200]})
