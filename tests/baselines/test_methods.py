"""Every baseline by one call: what it gives, that it can be repeated, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.small_stage import Impatient, small_config
from treediffusion.baselines.blank import blank_config, blank_tree, train_unconditional
from treediffusion.baselines.methods import METHODS, Found, Name, Task, run_method, training_cost
from treediffusion.config import Config
from treediffusion.errors import ConfigError
from treediffusion.evaluate.clustering import accuracy, dendrogram_purity
from treediffusion.evaluate.reproduce_draw import draw_by_denoiser
from treediffusion.progress import Progress
from treediffusion.signals import reads_ids, reads_latents
from treediffusion.train.budget import OutOfTime
from treediffusion.train.images import TrainingImages

TREE: dict[str, Any] = {
    "latent_channels": 4, "latent_size": 1, "channels": 8, "levels": 3, "max_leaves": 3,
    "batch_size": 16, "learning_rate": 5e-3, "kl_limit": 0.1,
    "phases": {"initial": 10, "subtree": 4, "intermediate": 2, "final": 4},
}  # fmt: skip
CONFIG = Config.model_validate({"tree": TREE, "diffusion": small_config().model_dump()})
NUMBERS = np.random.default_rng(0)
LABELS = NUMBERS.integers(0, 3, 96)


def pictures() -> np.ndarray:
    """Three classes: bright at the top, in the middle, at the bottom."""
    images = np.zeros((96, 1, 8, 8), np.uint8)
    for k, image in zip(LABELS, images, strict=True):
        image[0, 3 * k : 3 * k + 2] = 255
    return np.clip(images + NUMBERS.integers(0, 20, images.shape), 0, 255).astype(np.uint8)


IMAGES = pictures()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Models are trained by the first test that needs them, and read by the others."""
    models, progress = tmp_path_factory.mktemp("models"), Progress(1, "", quiet=True)
    return Task(IMAGES, IMAGES, CONFIG, k=3, leaves=6, models=models, progress=progress)


def test_the_table_has_every_name() -> None:
    assert set(METHODS) == set(get_args(Name))


def test_nothing_can_be_confused_where_classes_are_apart(task: Task) -> None:
    for name in ("ward", "k_means", "vae_ward", "ladder_ward", "l2h"):
        found = run_method(name, task)  # type: ignore[arg-type]
        assert found.flat is not None
        assert accuracy(LABELS, found.flat) == 1, name
        if found.hierarchy is not None:
            leaf, topology = found.hierarchy
            assert topology.num_leaves == 6
            assert dendrogram_purity(LABELS, leaf, topology) == pytest.approx(1), name


@pytest.mark.parametrize("name", ["ward", "k_means", "vae_ward", "deepect", "l2h"])
def test_a_second_call_says_the_same(name: Name, task: Task) -> None:
    """From the checkpoint, where something is trained."""
    first, second = run_method(name, task), run_method(name, task)
    assert first.flat is not None
    assert second.flat is not None
    np.testing.assert_array_equal(first.flat, second.flat)


def test_what_each_one_gives(task: Task) -> None:
    gives = {name: run_method(name, task) for name in get_args(Name)}
    parts = {name: _parts(found) for name, found in gives.items()}
    assert parts == {
        "ward": {"flat", "hierarchy"},
        "k_means": {"flat"},
        "vae": {"tree"},
        "ladder_vae": {"tree"},
        "vae_ward": {"flat", "hierarchy", "tree"},
        "ladder_ward": {"flat", "hierarchy", "tree"},
        "deepect": {"flat", "hierarchy"},
        "l2h": {"flat", "hierarchy", "tree"},
        "ddim": {"tree", "denoiser"},
    }
    for name in ("vae_ward", "deepect", "l2h"):
        hierarchy = gives[name].hierarchy
        assert hierarchy is not None
        assert hierarchy.leaf.shape == (96,)


def test_judged_images_may_be_others(task: Task) -> None:
    other = replace(task, judged=IMAGES[:40])
    for name in ("ward", "vae_ward", "deepect", "l2h"):
        found = run_method(name, other)  # type: ignore[arg-type]
        assert found.flat is not None
        assert len(found.flat) == 40


def test_only_what_is_trained_costs(task: Task) -> None:
    assert training_cost("ward", task) == training_cost("k_means", task) == 0
    assert training_cost("vae", task) == training_cost("deepect", task) > 0
    assert training_cost("ddim", task) > 0


@pytest.mark.parametrize(("k", "leaves"), [(0, 6), (97, 97), (3, 2), (3, 97), (1, 1)])
def test_numbers_of_clusters_that_do_not_fit(k: int, leaves: int, task: Task) -> None:
    with pytest.raises(ConfigError):
        run_method("ward", replace(task, k=k, leaves=leaves))


def test_a_baseline_that_there_is_not(task: Task) -> None:
    with pytest.raises(ConfigError, match="one of ward, k_means"):
        run_method("wards", task)  # type: ignore[arg-type]


def test_ddim_is_told_nothing_and_draws(tmp_path: Path) -> None:
    images = TrainingImages(IMAGES[:23])
    tree, denoiser = train_unconditional(images, CONFIG, tmp_path / "d.safetensors", seed=0)
    told = blank_config(CONFIG.diffusion)
    assert not reads_ids(told.signal)
    assert not reads_latents(told.signal)
    drawn, leaf = draw_by_denoiser(tree, denoiser.eval(), told, CONFIG.sampling, 5, seed=0)
    assert drawn.shape == (5, 1, 8, 8)
    assert drawn.dtype == np.uint8
    assert not leaf.any()
    again, _ = draw_by_denoiser(tree, denoiser.eval(), told, CONFIG.sampling, 5, seed=0)
    np.testing.assert_array_equal(drawn, again)


def test_a_stopped_ddim_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The blank tree is the same in every call: the checkpoint would refuse another."""
    images = TrainingImages(IMAGES[:23])
    _, straight = train_unconditional(images, CONFIG, tmp_path / "a", seed=4)
    with pytest.raises(OutOfTime):
        train_unconditional(images, CONFIG, tmp_path / "b", seed=4, progress=Impatient(5))
    _, finished = train_unconditional(images, CONFIG, tmp_path / "b", seed=4)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, finished.state_dict()[name]), name


def test_making_a_blank_tree_disturbs_nobody() -> None:
    images = TrainingImages(torch.rand(4, 3, 8, 8).numpy())
    torch.manual_seed(1)
    blank_tree(images)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))


def test_nobody_draws_vectors(tmp_path: Path) -> None:
    vectors = TrainingImages(torch.rand(5, 20, 1, 1).numpy())
    with pytest.raises(ConfigError, match="vectors of 20"):
        train_unconditional(vectors, CONFIG, tmp_path / "x", seed=0)


def _parts(found: Found) -> set[str]:
    return {name for name in Found.__dataclass_fields__ if getattr(found, name) is not None}
