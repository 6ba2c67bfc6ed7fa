"""Images and settings that go wrong: a typed error before anything is spoilt, or no trouble."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from treediffusion.config import TreeConfig
from treediffusion.errors import DataError, TrainingError
from treediffusion.train import checkpoint, grower
from treediffusion.train.grower import Grower
from treediffusion.train.images import TrainingImages
from treediffusion.train.losses import TreeObjective
from treediffusion.train.tree_stage import TreeStage

PHASES = {"initial": 2, "subtree": 2, "intermediate": 1, "final": 1, "intermediate_every": 1}
CONFIG = TreeConfig.model_validate(
    {"latent_channels": 2, "channels": 4, "levels": 3, "max_leaves": 3, "batch_size": 8}
    | {"phases": PHASES}
)


def stage(images: Tensor, path: Path, **settings: object) -> TreeStage:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update=settings)
    return TreeStage(TrainingImages(images.numpy()), config, path / "tree.safetensors")


def draw(count: int, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_trained(trained: Grower) -> None:
    assert trained.state.phase.kind == "done"
    assert all(tensor.isfinite().all() for tensor in trained.tree.state_dict().values())
    assert all(math.isfinite(row["elbo"]) for row in trained.state.history)
    assert trained.state.node_share[0] == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.5, 255.0])
def test_pixels_that_are_not_finite_or_out_of_range_are_refused(
    value: float, tmp_path: Path
) -> None:
    images = draw(10)
    images[7, 0, 3, 3] = value
    with pytest.raises(DataError, match="0 to 1") as caught:
        stage(images, tmp_path)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        stage(draw(count), tmp_path)


@pytest.mark.parametrize("count", [2, 3, 7, 9])
def test_few_images_are_trained_on(count: int, tmp_path: Path) -> None:
    """Fewer than a batch are a batch; the ninth of nine is dropped, not a batch of one."""
    few = stage(draw(count), tmp_path)
    sizes = []
    real = few._report
    few._report = lambda now, size: (sizes.append(size), real(now, size))  # type: ignore[method-assign,assignment]
    assert_trained(*few.run())
    assert set(sizes) == {min(count, 8)}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images_are_trained_on(value: float, likelihood: str, tmp_path: Path) -> None:
    same = stage(torch.full((20, 1, 8, 8), value), tmp_path, likelihood=likelihood)
    assert_trained(*same.run())


@pytest.mark.parametrize("criterion", ["samples", "reconstruction", "elbo"])
@pytest.mark.parametrize("augmentation", ["none", "shifts"])
def test_every_criterion_grows_a_tree(criterion: str, augmentation: str, tmp_path: Path) -> None:
    (grown,) = stage(draw(40), tmp_path, criterion=criterion, augmentation=augmentation).run()
    assert_trained(grown)
    assert "subtree" in [row["phase"] for row in grown.state.history]


def test_images_that_all_fall_into_one_leaf_are_split_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other leaf has no images: it is neither split nor kept, and neither is an error."""

    def all_left(tree: torch.nn.Module, images: TrainingImages) -> Tensor:
        prob = torch.zeros(len(images), tree.topology.num_leaves)
        prob[:, tree.topology.leaf_names.index(min(tree.topology.leaf_names))] = 1
        return prob

    monkeypatch.setattr(grower, "leaf_prob", all_left)
    (one,) = stage(draw(20), tmp_path).run()
    assert_trained(one)
    assert [row["leaf"] for row in one.state.history if row["leaf"]] == ["r0"]
    assert one.tree.topology.leaf_names == ("r00",)


def test_a_loss_that_is_not_finite_names_its_step_and_spares_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before is what the folder still holds, although every epoch would write one."""
    monkeypatch.setattr(checkpoint, "INTERVAL_S", -1.0)
    real, steps = TreeObjective.loss, []

    def spoilt(self: TreeObjective, rows: Tensor, kl_weight: float) -> Tensor:
        steps.append(rows)
        loss = real(self, rows, kl_weight)
        return loss * math.nan if len(steps) == 8 else loss  # the third step of the second epoch

    bad = stage(draw(40), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TreeObjective, "loss", spoilt)
        with pytest.raises(TrainingError) as caught:
            bad.run()
    assert caught.value.name == "initial, epoch 2, step 3"
    assert "loss of nan" in str(caught.value.got)
    assert "learning_rate" in caught.value.hint
    assert "tree.safetensors" in caught.value.hint
    tensors, state = checkpoint.load(tmp_path / "tree.safetensors")
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert_trained(*stage(draw(40), tmp_path).run())


def test_a_learning_rate_that_explodes_is_an_error_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainingError, match="learning_rate"):
        stage(draw(40), tmp_path, learning_rate=1e30).run()
    assert not (tmp_path / "tree.safetensors").exists()


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    """Although every loss so far was: the step after the last loss can spoil them."""
    bad = stage(draw(40), tmp_path)
    with torch.no_grad():
        next(bad.growers[0].tree.parameters()).fill_(math.inf)
    with pytest.raises(TrainingError, match="weights"):
        bad._save()
    assert not list(tmp_path.iterdir())
