"""A call that runs out of time loses nothing, whatever it was doing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.runs import bars_config
from treediffusion.config import Config
from treediffusion.errors import CheckpointError, ConfigError
from treediffusion.topology import TreeTopology
from treediffusion.train import checkpoint
from treediffusion.train.budget import OutOfTime, TrainingProgress
from treediffusion.train.run import (
    DIFFUSION,
    HISTORY,
    TOPOLOGY,
    TREE,
    check_tree,
    load_run,
    train,
    train_tree,
)


class Impatient(TrainingProgress):
    """Time for so many steps."""

    steps = 7

    def __init__(self, *args: float, **keywords: object) -> None:
        super().__init__(*args, quiet=True)
        self.made = 0

    def advance(self, amount: float, description: str) -> None:
        super().advance(amount, description)
        self.made += 1
        if self.made == self.steps:
            raise OutOfTime(description, self.fraction, self.eta)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return bars_config(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had all the time it wanted."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(config, run, quiet=True)
    return run


def test_time_is_over_after_the_step_that_takes_it() -> None:
    moment = [0.0]
    progress = TrainingProgress(10.0, minutes=10, quiet=True, clock=lambda: moment[0])
    moment[0] = 300.0
    progress.advance(2.5, "first")
    moment[0] = 600.0
    with pytest.raises(OutOfTime) as caught:
        progress.advance(2.5, "second")
    end = caught.value
    assert (end.where, end.fraction) == ("second", 0.5)
    assert end.left == pytest.approx(600)
    assert str(end) == "50 % done (second), about 10:00 left"
    assert isinstance(end, Exception)


def test_without_minutes_there_is_time_for_everything() -> None:
    moment = [0.0]
    progress = TrainingProgress(10.0, quiet=True, clock=lambda: moment[0])
    moment[0] = 1e12
    progress.advance(1.0, "step")


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_no_time_at_all_is_a_mistake(minutes: float) -> None:
    with pytest.raises(ConfigError, match="max-minutes"):
        TrainingProgress(1.0, minutes=minutes)


def test_lines_go_to_standard_error_unless_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    TrainingProgress(quiet=True).say("unheard")
    TrainingProgress().say("heard")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "heard\n")


def test_every_stop_resumes_bit_for_bit(
    config: Config, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps a call, of epochs of five: stops within epochs and phases of both stages."""
    monkeypatch.setattr("treediffusion.train.run.TrainingProgress", Impatient)
    run, seen = tmp_path / "run", set()
    for _ in range(60):
        try:
            train(config, run)
        except OutOfTime as end:
            seen.add(end.where.split(",")[1].split()[0])
            continue
        break
    else:
        pytest.fail("never finished")
    assert {"initial", "subtree"} <= seen
    for name in (TREE, DIFFUSION):
        ours, theirs = (checkpoint.load(folder / name) for folder in (run, straight))
        assert ours[0].keys() == theirs[0].keys()
        assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0]), name
        assert ours[1]["history"] == theirs[1]["history"]


def test_an_instant_is_one_step(config: Config, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime, match="tree of 2 leaves, initial 1/8"):
        train(config, tmp_path / "run", minutes=1e-9, quiet=True)
    state = checkpoint.load(tmp_path / "run" / TREE)[1]
    assert (state["epoch"], state["step"]) == (0, 1)


def test_the_tree_alone_then_what_comes_after_it(
    config: Config, straight: Path, tmp_path: Path
) -> None:
    """Is the run of both; the tree's files are there as soon as it is."""
    run, shown = tmp_path / "run", []
    tree = train_tree(config, run, look=lambda data, end: shown.append((len(data.images), end)))
    assert TreeTopology.from_json((run / TOPOLOGY).read_text()) == tree
    history = json.loads((run / HISTORY).read_text())
    assert list(history) == ["tree"]
    assert not (run / DIFFUSION).exists()
    check_tree(run)
    with pytest.raises(CheckpointError, match="step 0 of 30"):
        load_run(run)

    assert [str(end.phase) for _, end in shown] == [
        row["phase"] + (f" of {row['leaf']}" if row["leaf"] else "") for row in history["tree"]
    ]
    for (count, end), row in zip(shown, history["tree"], strict=True):
        assert count == len(end.leaf) == 160
        assert end.leaf.max() < end.topology.num_leaves == len(end.share)
        assert end.share.sum() == pytest.approx(1)
        assert end.elbo == row["elbo"]
        assert f"{end.topology.num_leaves} leaves" in str(end)

    train(config, run, quiet=True)
    for name in (TREE, DIFFUSION):
        ours, theirs = (checkpoint.load(folder / name)[0] for folder in (run, straight))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_tree_as_it_stands_is_readable_while_it_grows(config: Config, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    def look(_: object, end: object) -> None:
        seen.append(TreeTopology.from_json((run / TOPOLOGY).read_text()).num_leaves)

    train_tree(config, run, look=look, quiet=True)
    assert seen[:2] == [2, 3]


def test_a_tree_that_is_not_finished_has_nothing_after_it(config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tree"):
        check_tree(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutOfTime):
        train_tree(config, tmp_path / "run", minutes=1e-9, quiet=True)
    with pytest.raises(CheckpointError, match="'initial'"):
        check_tree(tmp_path / "run")
