"""Several trees side by side: the best ELBO is kept, and nothing is lost when a run is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.runs import bars_config
from treediffusion.config import Config
from treediffusion.errors import CheckpointError
from treediffusion.train import checkpoint
from treediffusion.train.budget import OutOfTime
from treediffusion.train.restarts import APART
from treediffusion.train.run import TREE, train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = bars_config(tmp_path_factory.mktemp("images"))
    tree = config.tree.model_copy(update={"restarts": 2})
    diffusion = config.diffusion.model_copy(update={"steps": 2})
    return config.model_copy(update={"tree": tree, "diffusion": diffusion})


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config, out, quiet=True)
    return out


def elbo(path: Path) -> float:
    return float(checkpoint.load(path)[1]["history"][-1]["elbo"])


def test_the_best_of_different_trees_is_kept(run: Path) -> None:
    scores = [elbo(run / APART.format(number)) for number in range(2)]
    assert scores[0] != scores[1]
    assert elbo(run / TREE) == max(scores)


def test_the_first_restart_is_the_tree_of_a_single_run(run: Path, tmp_path: Path) -> None:
    """Side by side changes nothing: the processes share no random number and no thread."""
    settings = checkpoint.load(run / APART.format(0))[0]
    config = bars_config(tmp_path)
    diffusion = config.diffusion.model_copy(update={"steps": 1})
    train(config.model_copy(update={"diffusion": diffusion}), tmp_path / "one", quiet=True)
    alone = checkpoint.load(tmp_path / "one" / TREE)[0]
    assert all(torch.equal(settings[name], tensor) for name, tensor in alone.items())


def test_a_killed_run_ends_with_the_same_tree(config: Config, run: Path, tmp_path: Path) -> None:
    """SIGKILL to the parent: its processes stop by themselves, and the next call continues them.

    That call has no time, so each of its processes makes a few steps, saves them and ends well.
    """
    path, out = tmp_path / "settings.yaml", tmp_path / "killed"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "treediffusion.cli", "train", "--config", str(path)]
    command += ["--out", str(out)]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / APART.format(1)).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    def places() -> list[tuple[object, ...]]:
        states = [checkpoint.load(out / APART.format(number))[1] for number in range(2)]
        return [(state["splits"], str(state["phase"]), state["epoch"], state["step"])
                for state in states]  # fmt: skip

    with pytest.raises(OutOfTime, match="2 trees, tree of"):
        train(config, out, minutes=1e-9, quiet=True)
    before = places()
    assert any("done" not in place[1] for place in before)
    assert not (out / TREE).exists()
    train(config, out, quiet=True)
    assert places() != before
    mine, theirs = (checkpoint.load(r / TREE)[0] for r in (out, run))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def test_a_fault_in_one_process_is_the_commands_fault(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / APART.format(1)).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut"):
        train(config, out, quiet=True)
