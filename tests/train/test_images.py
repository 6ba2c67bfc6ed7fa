"""Images to train on: the floats that they always were, wherever the bytes lie, and never all."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import bars_config
from support.small_stage import Impatient, small_stage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from treediffusion.config import Config
from treediffusion.data import Pixels, to_float
from treediffusion.train import checkpoint
from treediffusion.train import images as images_module
from treediffusion.train import run as run_module
from treediffusion.train.budget import OutOfTime
from treediffusion.train.images import TrainingImages, fits, has_room
from treediffusion.train.measure import CHUNK
from treediffusion.train.run import DIFFUSION, TREE, train
from treediffusion.train.step import GraphedStep, Step

BYTES = np.random.default_rng(0).permutation(np.arange(512, dtype=np.uint16) % 256)
BYTES = BYTES.astype(np.uint8).reshape(16, 2, 4, 4)
FLOATS = np.random.default_rng(1).random((16, 2, 4, 4), dtype=np.float32)


class Hosted(TrainingImages):
    """A set that its device has no room for."""

    def __init__(self, pixels: Pixels, device: torch.device | str = "cpu") -> None:
        super().__init__(pixels, device)
        self.resident = False


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was pinned, where there is no GPU to pin it for."""
    seen: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda batch: (seen.append(batch), batch)[1])
    return seen


def assert_same(one: Path, other: Path) -> None:
    (ours, our_state), (theirs, their_state) = checkpoint.load(one), checkpoint.load(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert our_state == their_state


@pytest.mark.parametrize("made", [TrainingImages, Hosted])
@pytest.mark.parametrize("pixels", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize(
    "rows",
    [torch.tensor([3, 0, 15, 3]), torch.tensor([[1, 2], [9, 1], [0, 0]]), slice(5, 12), slice(20)],
    ids=["batch", "several trees", "slice", "all"],
)
def test_a_batch_has_the_bits_of_to_float(
    made: Callable[[Pixels], TrainingImages],
    pixels: Pixels,
    rows: Tensor | slice,
    pinned: list[Tensor],
) -> None:
    images = made(pixels)
    found = images[rows]
    expected = to_float(pixels)[rows if isinstance(rows, slice) else rows.numpy()]
    assert found.shape == expected.shape
    assert found.numpy().tobytes() == expected.tobytes()
    assert (images.shape, len(images), images.device.type) == (pixels.shape, 16, "cpu")
    # What crosses from the host is what is stored.
    assert [batch.numpy().dtype for batch in pinned] == [pixels.dtype] * (not images.resident)


def test_chunks_are_the_set_in_order() -> None:
    parts = list(TrainingImages(BYTES).chunks(6))
    assert [len(part) for part in parts] == [6, 6, 4]
    assert torch.cat(parts).numpy().tobytes() == to_float(BYTES).tobytes()


def test_bounds_are_those_of_the_pixels() -> None:
    assert TrainingImages(BYTES).bounds == (0.0, 1.0)
    assert TrainingImages(FLOATS).bounds == (FLOATS.min(), FLOATS.max())
    spoilt = FLOATS.copy()
    spoilt[3, 1, 2, 2] = np.nan
    assert np.isnan(TrainingImages(spoilt).bounds).all()


@pytest.mark.parametrize("pixels", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_a_mapped_file_is_neither_copied_nor_written_to(pixels: Pixels, tmp_path: Path) -> None:
    """Read-only as well, which is nothing to be warned of."""
    np.save(tmp_path / "set.npy", pixels)
    mapped = np.load(tmp_path / "set.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = TrainingImages(mapped)
    assert images._stored.data_ptr() == mapped.ctypes.data
    assert images[torch.arange(16)].numpy().tobytes() == to_float(pixels).tobytes()


def test_training_is_left_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU; what a CPU has is not asked."""
    assert fits(500, 1000)
    assert not fits(501, 1000)
    assert not fits(1, 0)
    monkeypatch.setattr(images_module, "_free", lambda device: 1000)
    assert [has_room(torch.device("cuda", 0), needed) for needed in (500, 501)] == [True, False]
    assert has_room(torch.device("cpu"), 10**18)


def test_a_run_from_host_memory_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: list[Tensor]
) -> None:
    """Both stages, with growth, views and contrast."""
    config = bars_config(tmp_path)
    train(config, tmp_path / "resident", quiet=True)
    assert not pinned
    monkeypatch.setattr(run_module, "TrainingImages", Hosted)
    train(config, tmp_path / "hosted", quiet=True)
    assert {batch.dtype for batch in pinned} == {torch.uint8}
    for name in (TREE, DIFFUSION):
        assert_same(tmp_path / "resident" / name, tmp_path / "hosted" / name)


def test_a_training_goes_on_where_there_is_no_room(tmp_path: Path, pinned: list[Tensor]) -> None:
    """Where the images lie is no part of what a checkpoint continues."""
    small_stage(tmp_path / "straight").run()
    with pytest.raises(OutOfTime):
        small_stage(tmp_path / "moved", progress=Impatient(5)).run()
    assert not pinned
    moved = small_stage(tmp_path / "moved")
    moved.images.resident = False
    moved.run()
    assert len(pinned) >= 7
    assert_same(tmp_path / "straight", tmp_path / "moved")


class Whole(TorchDispatchMode):
    """Counts floats in the shape of the whole set."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels, self.made = pixels, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and one.is_floating_point():
                self.made += tuple(one.shape) == self.pixels.shape
        return out


def large_config(folder: Path) -> tuple[Config, Pixels]:
    """More images than any pass of either stage takes at once."""
    config = bars_config(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (CHUNK + 50, 1, 8, 8), dtype=np.uint8)
    np.save(config.data, pixels)
    phases = {"initial": 1, "subtree": 1, "intermediate": 1, "final": 1, "intermediate_every": 1}
    changed = {"phases": config.tree.phases.model_copy(update=phases), "batch_size": 350}
    tree = config.tree.model_copy(update=changed)
    diffusion = config.diffusion.model_copy(update={"steps": 3})
    return config.model_copy(update={"tree": tree, "diffusion": diffusion}), pixels


def test_bytes_never_become_floats_all_at_once(tmp_path: Path) -> None:
    config, pixels = large_config(tmp_path)
    with Whole(pixels) as whole:
        train(config, tmp_path / "run", quiet=True)
        assert whole.made == 0
        TrainingImages(pixels)[:]  # what would have been seen
    assert whole.made == 1


def test_opening_a_run_makes_no_floats(tmp_path: Path) -> None:
    """Nor does NumPy: the file's bytes are all that is held."""
    config, _ = large_config(tmp_path)
    pixels = np.zeros((2000, 1, 32, 32), np.uint8)
    np.save(config.data, pixels)
    tracemalloc.start()
    try:
        data, images = run_module._open(config, tmp_path / "run")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == len(data.images) == 2000
    assert peak < 3 * pixels.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("pixels", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("short", [0, 1])
def test_a_gpu_holds_what_fits(pixels: Pixels, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_free", lambda device: 2 * pixels.nbytes - short)
    images = TrainingImages(pixels, "cuda")
    assert images.resident == (not short)
    for rows in (torch.tensor([3, 0, 15]), torch.tensor([[1, 2], [9, 1]]), slice(5, 12)):
        found = images[rows if isinstance(rows, slice) else rows.cuda()]
        expected = to_float(pixels)[rows if isinstance(rows, slice) else rows.numpy()]
        assert found.device == images.device
        assert found.cpu().numpy().tobytes() == expected.tobytes()


@pytest.mark.gpu
def test_a_gpu_records_steps_only_of_images_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(small_stage(tmp_path / "a", device="cuda")._make_step()) is GraphedStep
    monkeypatch.setattr(images_module, "_free", lambda device: 0)
    stage = small_stage(tmp_path / "b", device="cuda")
    assert type(stage._make_step()) is Step
    assert all(weight.isfinite().all() for weight in stage.run().parameters())
