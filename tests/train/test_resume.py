"""A training that was stopped anywhere ends with the weights of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from treediffusion.config import Config, parse_config
from treediffusion.errors import CheckpointError, ConfigError
from treediffusion.train import checkpoint, tree_stage
from treediffusion.train.run import DIFFUSION, TREE, load_run, train

SETTINGS = {
    "preset": "tiny",
    "threads": 1,
    "tree": {
        "latent_channels": 2,
        "channels": 8,
        "levels": 4,
        "max_leaves": 4,
        "batch_size": 32,
        "phases": {
            "initial": 3,
            "subtree": 3,
            "intermediate": 1,
            "final": 2,
            "intermediate_every": 1,
        },
        "contrastive": {"weight": 0.5},
    },
    "diffusion": {
        "unet": {"channels": 32, "multipliers": [1, 1], "blocks": 1, "heads": 2},
        "batch_size": 16,
        "steps": 30,
        "warmup": 5,
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rng = np.random.default_rng(0)
    images = np.zeros((160, 8, 8), np.uint8)
    for number, image in enumerate(images):  # four kinds of bars, so that there is a tree to find
        place = 2 * (number % 4)
        image[:, place : place + 2] = rng.integers(150, 255)
    path = tmp_path / "bars.npy"
    np.save(path, images, allow_pickle=False)
    return parse_config(SETTINGS | {"data": str(path)}, source="the test")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": tensor
        for name in (TREE, DIFFUSION)
        for key, tensor in checkpoint.load(run / name)[0].items()
    }


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    different = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    assert not different


class Stopped(Exception):
    """Stands for a crash."""


def crash_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """The process dies right after so many checkpoints, each epoch writing one."""
    monkeypatch.setattr(tree_stage, "CHECKPOINT_INTERVAL_S", -1.0)
    monkeypatch.setattr("treediffusion.train.diffusion_stage.CHECKPOINT_INTERVAL_S", -1.0)
    real = checkpoint.save
    count = [0]

    def save(*args: object, **keywords: object) -> None:
        real(*args, **keywords)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == saves:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save", save)


def test_every_phase_resumes_bit_for_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes again and again, in every phase of both stages, and loses nothing."""
    train(config, tmp_path / "straight", quiet=True)
    for _ in range(40):
        with monkeypatch.context() as patch:
            crash_after(patch, saves=5)
            try:
                train(config, tmp_path / "crashed", quiet=True)
            except Stopped:
                continue
            break
    else:
        pytest.fail("never finished")
    assert_same(tmp_path / "straight", tmp_path / "crashed")


def test_killed_processes_resume_bit_for_bit(config: Config, tmp_path: Path) -> None:
    """SIGKILL at three moments; the same command then ends with the same weights."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(config.model_dump_json())
    train(config, tmp_path / "straight", quiet=True)
    killed = tmp_path / "killed"
    command = [
        sys.executable, "-m", "treediffusion.cli", "train",
        "--config", str(settings), "--out", str(killed),
    ]  # fmt: skip
    environment = os.environ | {"TQDM_DISABLE": "1"}
    for seen in ("config.json", TREE, DIFFUSION):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (killed / seen).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same(tmp_path / "straight", killed)


def test_a_cut_checkpoint_is_an_error_and_stays(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config, run, quiet=True)
    whole = (run / TREE).read_bytes()
    (run / TREE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut"):
        train(config, run, quiet=True)
    assert (run / TREE).read_bytes() == whole[: len(whole) // 2]


def test_a_full_disk_leaves_the_last_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_after(patch, saves=2)
        with pytest.raises(Stopped):
            train(config, run, quiet=True)
    before = (run / TREE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            train(config, run, quiet=True)
    assert (run / TREE).read_bytes() == before
    train(config, run, quiet=True)


def test_another_configuration_does_not_continue_a_run(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", quiet=True)
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="seed"):
        train(other, tmp_path / "run", quiet=True)


def test_an_unfinished_run_is_not_a_model(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_after(patch, saves=2)
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="finished"):
        load_run(tmp_path / "run")


def test_a_finished_run_loads_as_it_was_trained(config: Config, tmp_path: Path) -> None:
    model = train(config, tmp_path / "run", quiet=True)
    loaded = load_run(tmp_path / "run")
    assert loaded.tree.topology == model.tree.topology
    assert loaded.data_fingerprint == model.data_fingerprint
    for mine, theirs in ((loaded.tree, model.tree), (loaded.denoiser, model.denoiser)):
        for key, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), key
