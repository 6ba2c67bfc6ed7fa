"""A training that was stopped anywhere ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import bars_config
from treediffusion.config import Config, parse_config
from treediffusion.errors import CheckpointError, ConfigError
from treediffusion.train import checkpoint
from treediffusion.train.run import CONFIG, DIFFUSION, TREE, load_run, train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return bars_config(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(config, run, quiet=True)
    return run


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(straight, tmp_path / "copy"))


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
    monkeypatch.setattr(checkpoint, "INTERVAL_S", -1.0)
    real = checkpoint.save
    count = [0]

    def save(*args: object, **keywords: object) -> None:
        real(*args, **keywords)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == saves:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save", save)


def test_every_phase_resumes_bit_for_bit(
    config: Config, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes again and again, in every phase of both stages, and loses nothing."""
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
    assert_same(straight, tmp_path / "crashed")


def test_killed_processes_resume_bit_for_bit(
    config: Config, straight: Path, tmp_path: Path
) -> None:
    """SIGKILL at three moments; the same command then ends with the same weights."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(config.model_dump_json())
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
    assert_same(straight, killed)


def test_a_cut_checkpoint_is_an_error_and_stays(config: Config, copy: Path) -> None:
    whole = (copy / TREE).read_bytes()
    (copy / TREE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut"):
        train(config, copy, quiet=True)
    assert (copy / TREE).read_bytes() == whole[: len(whole) // 2]


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


def test_another_configuration_does_not_continue_a_run(config: Config, copy: Path) -> None:
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="seed"):
        train(other, copy, quiet=True)


def test_other_images_do_not_continue_a_run(copy: Path, tmp_path: Path) -> None:
    claim = json.loads((copy / CONFIG).read_text())
    fewer = np.load(claim["config"]["data"])[:100]
    np.save(tmp_path / "fewer.npy", fewer, allow_pickle=False)
    claim["config"]["data"] = str(tmp_path / "fewer.npy")
    (copy / CONFIG).write_text(json.dumps(claim))
    with pytest.raises(ConfigError, match="fingerprint"):
        train(parse_config(claim["config"], source="the test"), copy, quiet=True)


def test_an_unfinished_run_is_not_a_model(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_after(patch, saves=2)
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="finished"):
        load_run(tmp_path / "run")


def test_a_finished_run_loads_as_it_was_trained(config: Config, straight: Path) -> None:
    """Repeating the command on a finished run trains nothing and returns the same model."""
    model = train(config, straight, quiet=True)
    loaded = load_run(straight)
    assert loaded.tree.topology == model.tree.topology
    assert loaded.data_fingerprint == model.data_fingerprint
    for mine, theirs in ((loaded.tree, model.tree), (loaded.denoiser, model.denoiser)):
        for key, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), key


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("image_shape", [1, 10**6, 10**6]),
        ("image_shape", [10**12, 8, 8]),
        ("image_shape", [2, 8, 8]),
        ("config.tree.channels", 10**9),
        ("config.tree.latent_size", 10**12),
        ("config.diffusion.unet.channels", 32 * 10**7),
        ("config.diffusion.unet.multipliers", [1, 10**9]),
    ],
)
def test_settings_of_another_network_are_refused_before_memory_is_taken(
    copy: Path, place: str, value: object
) -> None:
    claim = json.loads((copy / CONFIG).read_text())
    *inner, last = place.split(".")
    spoilt = claim
    for name in inner:
        spoilt = spoilt[name]
    spoilt[last] = value
    (copy / CONFIG).write_text(json.dumps(claim))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CheckpointError, ConfigError)):
        load_run(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
