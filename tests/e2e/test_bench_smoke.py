"""The benchmarks run: every case once on toy networks, and the goals' command says what it must."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from treediffusion.config import Config, parse_config
from treediffusion.topology import TreeTopology

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import render
from cases import bundles, denoising, treevae
from cases.pair import Pair
from goals import Effort, main
from goals_list import AREAS, GOALS, Goal

ONCE = Effort(rounds=1, min_time=0.0)
MEASURED = [goal for goal in GOALS if goal.measure is not None]
TREE = [goal for goal in MEASURED if goal.name.startswith("treevae/")]
DENOISER = [goal for goal in MEASURED if not goal.name.startswith("treevae/")]


def toy() -> Config:
    """The smallest networks, for a root with two leaves."""
    unet = {"channels": 32, "multipliers": [1], "blocks": 1, "heads": 4}
    return parse_config(
        {
            "tree": {"latent_channels": 2, "channels": 4, "levels": 2, "max_leaves": 2},
            "diffusion": {"unet": unet, "timesteps": 100, "beta_end": 0.05},
        },
        source="tests",
    )


@pytest.fixture(scope="module", autouse=True)
def toy_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every setting is the toy's, and its bundle is exported once, to a temporary folder."""
    config = toy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "FOLDER", tmp_path_factory.mktemp("bench"))
        patch.setattr(denoising, "STEPS", 3)
        for module in (treevae, denoising):
            patch.setattr(module, "ten_leaves", TreeTopology.initial)
        for setting in ("tiny", "mnist", "cifar"):
            patch.setattr(treevae, setting, lambda *_: treevae.Setting(config.tree, 8, 4))
        for setting in ("tiny", "mnist"):
            patch.setattr(denoising, setting, lambda: denoising.Setting("toy", config, 8))
        yield


def fake(ratio: float, goal: float, name: str = "treevae/fake") -> Goal:
    """A goal whose two sides differ by about `ratio`."""

    def work(amount: float) -> float:
        return float(sum(range(int(amount * 100_000))))

    sides = Pair(ours=lambda: work(1.0), baseline=lambda: work(ratio))
    return Goal(name=name, goal=goal, unit="x", measure=lambda: sides, why="a fake")


UNMEASURED = Goal(name="kernels/fake-gpu", goal=85.0, unit="%", measure=None, why="a fake")


def test_names_are_unique_and_begin_with_an_area() -> None:
    names = [goal.name for goal in GOALS]
    assert len(set(names)) == len(names)
    for goal in GOALS:
        assert re.fullmatch(rf"({'|'.join(AREAS)})/[a-z0-9]+(-[a-z0-9]+)*", goal.name)
        assert goal.goal > 0
        assert goal.why
    assert {goal.name.split("/")[0] for goal in GOALS} == set(AREAS)


def test_what_is_not_measured_here_says_so_in_its_name() -> None:
    assert all(goal.name.endswith("-gpu") == (goal.measure is None) for goal in GOALS)


@pytest.mark.parametrize("goal", TREE, ids=lambda goal: goal.name)
def test_a_case_of_the_tree_runs(goal: Goal) -> None:
    assert main(["--only", goal.name], [goal], ONCE) in (0, 1)


@pytest.mark.slow  # the toy's export
@pytest.mark.parametrize("goal", DENOISER, ids=lambda goal: goal.name)
def test_a_case_of_the_denoiser_runs(goal: Goal) -> None:
    assert main(["--only", goal.name], [goal], ONCE) in (0, 1)


def test_a_goal_that_is_met_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], [fake(10.0, goal=2.0), UNMEASURED], ONCE) == 0
    met, unmeasured = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"treevae/fake +\d+\.\d\dx +2\.00x", met)
    assert re.fullmatch(r"kernels/fake-gpu +not measured here +85 %", unmeasured)
    assert len(met) == len(unmeasured)


def test_a_goal_that_falls_short_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], [fake(10.0, goal=1000.0), fake(10.0, goal=2.0, name="runtime/met")], ONCE) == 1
    short, met = capsys.readouterr().out.splitlines()
    assert short.endswith("1000.00x  falls short")
    assert "short" not in met


def test_a_name_that_matches_nothing_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "speed"], [UNMEASURED], ONCE) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "--only: got 'speed', expected a part of: kernels/fake-gpu\n"


def test_the_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "gpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [g.name for g in GOALS if g.measure is None]


def test_the_results_file_names_machine_versions_and_commit(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    assert main(["--json", str(file)], [fake(10.0, goal=2.0), UNMEASURED], ONCE) == 0
    written = json.loads(file.read_text("utf-8"))
    assert list(written) == ["format", "device", "versions", "commit", "dirty", "date", "rows"]
    assert set(written["device"]) == {"cpu", "cores", "threads"}
    measured, unmeasured = written["rows"]
    assert set(measured["found"]) == {"ratio", "p20", "p80", "ours_ms", "baseline_ms"}
    told = {"name": "kernels/fake-gpu", "goal": 85.0, "unit": "%", "threads": 1, "found": None}
    assert unmeasured == told


def test_the_readme_shows_the_stored_results() -> None:
    """If not: python bench/render.py."""
    text = render.README.read_text("utf-8")
    assert text == render.with_table(text, json.loads(render.RESULTS.read_text("utf-8")))


def test_a_bundle_is_kept_until_its_settings_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []
    monkeypatch.setattr(bundles, "FOLDER", tmp_path)
    monkeypatch.setattr(bundles, "export_bundle", lambda model, out: exported.append(out.mkdir()))
    for settings in ("a", "a", "b"):
        if settings == "b":
            (tmp_path / "toy").rmdir()
        bundles.bundle_of("toy", settings, lambda: None)  # type: ignore[arg-type, return-value]
    assert len(exported) == 2
