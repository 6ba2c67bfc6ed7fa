"""Two processes train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.small_stage import small_config, small_stage
from support.train_together import AVERAGES
from treediffusion.errors import ConfigError
from treediffusion.train import checkpoint
from treediffusion.train.distributed import Team, joined

SCRIPT = Path(__file__).parents[1] / "support" / "train_together.py"


def together(folder: Path, scenario: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(folder), scenario]
    places = [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]
    names = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    return subprocess.run(
        command, env=os.environ | names, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a team left that died, and one that did not."""
    made = tmp_path_factory.mktemp("together")
    assert together(made, "die").returncode != 0
    assert checkpoint.load(made / "killed")[1]["step"] == 4
    found = together(made, "train")
    assert found.returncode == 0, found.stderr
    assert (made / "train followed").exists()
    return made


def test_two_processes_train_what_one_trains(folder: Path, tmp_path: Path) -> None:
    """Batches of 5, so that parts differ in size; moments, averages and numbers included."""
    small_stage(tmp_path / "one", small_config(**AVERAGES)).run()
    ours, our_state = checkpoint.load(folder / "straight")
    theirs, their_state = checkpoint.load(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert our_state["window"] == pytest.approx(their_state["window"], rel=1e-5)


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_a_team_that_ended_early_goes_on_bit_for_bit(folder: Path, name: str) -> None:
    """Its leader killed, or out of time."""
    ours, straight = checkpoint.load(folder / name), checkpoint.load(folder / "straight")
    assert all(torch.equal(ours[0][key], straight[0][key]) for key in straight[0])
    assert ours[1] == straight[1]


def test_one_process_goes_on_where_two_stopped(folder: Path, tmp_path: Path) -> None:
    settings = AVERAGES | {"steps": 16}
    (tmp_path / "two").write_bytes((folder / "straight").read_bytes())
    for name in ("two", "one"):
        small_stage(tmp_path / name, small_config(**settings)).run()
    ours, theirs = (checkpoint.load(tmp_path / name)[0] for name in ("two", "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_the_leader_works_first_and_the_others_after_it(folder: Path) -> None:
    assert (folder / "shown").read_text() == "1"


def test_where_the_leader_fails_the_others_leave(folder: Path) -> None:
    assert [path.name for path in folder.glob("failing*")] == ["failing 0"]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 9, 23])
def test_parts_are_all_rows_once_and_almost_equal(size: int, count: int) -> None:
    parts = [Team(rank, size).rows(count) for rank in range(size)]
    assert (parts[0].start, parts[-1].stop) == (0, count)
    assert all(one.stop == two.start for one, two in pairwise(parts))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1


def test_fewer_images_than_processes_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        Team(0, 3).rows(2)


def test_numbers_of_ones_own_leave_those_in_common_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    own = []
    for rank in (0, 1):
        with Team(rank, 2).apart(5, torch.device("cpu")):
            own.append(torch.rand(3))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(*own)


def test_alone_everything_is_as_without_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as team:
        assert team == Team()
        assert team.leads
        assert team.divided(torch.sin) is torch.sin
        assert team.in_turn(lambda: 5) == 5
        assert [team.agree(said) for said in (True, False)] == [True, False]
        team.dismiss()


@pytest.mark.parametrize(
    "names",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_half_an_environment_is_a_mistake(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torchrun"), joined():
        pass
