"""The second stage: its batches, precision, averages and checkpoints, and what stops it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_stage import IMAGES, STEPS, Impatient, small_config, small_stage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from treediffusion.config import DiffusionConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.model import tree_key
from treediffusion.errors import CheckpointError, ConfigError, TrainingError
from treediffusion.train import checkpoint, diffusion_stage
from treediffusion.train.budget import OutOfTime
from treediffusion.train.conditions import Conditions
from treediffusion.train.diffusion_stage import DiffusionStage, averaged_weights

SEVERAL = {"ema": 0.9, "ema_also": (0.5, 0.99)}


def assert_same(one: Path, other: Path) -> None:
    (ours, our_state), (theirs, their_state) = checkpoint.load(one), checkpoint.load(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert our_state == their_state


def spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The loss of a step, counted from 1, is not a number."""
    real, made = DiffusionStage.loss, [0]

    def spoilt(self: DiffusionStage, rows: Tensor, kl_weight: float) -> Tensor:
        made[0] += 1
        loss = real(self, rows, kl_weight)
        return loss * math.nan if made[0] == step else loss

    monkeypatch.setattr(DiffusionStage, "loss", spoilt)


@pytest.mark.parametrize(
    "settings",
    [
        SEVERAL,
        {"precision": "bfloat16", "unet": {"dropout": 0.5}},
        {"shuffle": False, "learning_rate_schedule": "cosine"},
        SEVERAL | {"precision": "bfloat16", "shuffle": False},
    ],
    ids=["averages", "bfloat16", "unshuffled", "together"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_stops_anywhere_resume_bit_for_bit(
    settings: dict[str, Any],
    layout: torch.memory_format,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every fifth step, within windows and epochs; also in the layout that GPUs train in."""
    monkeypatch.setattr(diffusion_stage, "LOSS_WINDOW", 4)
    monkeypatch.setattr(diffusion_stage, "training_layout", lambda *told: layout)
    config = small_config(**settings)
    small_stage(tmp_path / "straight", config).run()
    for _ in range(2):
        with pytest.raises(OutOfTime, match="diffusion, step"):
            small_stage(tmp_path / "stopped", config, progress=Impatient(5)).run()
    small_stage(tmp_path / "stopped", config).run()
    assert_same(tmp_path / "straight", tmp_path / "stopped")
    state = checkpoint.load(tmp_path / "stopped")[1]
    assert [row["step"] for row in state["history"]] == [4, 8, 12]
    assert (state["step"], state["window"]) == (STEPS, 0.0)


def test_published_batches_are_the_same_in_every_epoch(tmp_path: Path) -> None:
    """23 images in batches of 5: the last three are never seen."""
    stage = small_stage(tmp_path / "c", small_config(shuffle=False))
    seen = []
    for stage.state.step in range(9):
        seen.append(stage._batch().tolist())
    epoch = [list(range(first, first + 5)) for first in (0, 5, 10, 15)]
    assert seen == (epoch * 3)[:9]


def test_shuffled_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    """No image twice within an epoch; orders, and which images are left over, differ."""
    stage = small_stage(tmp_path / "c")
    epochs = []
    for epoch in range(6):
        rows = []
        for stage.state.step in range(4 * epoch, 4 * epoch + 4):
            rows += stage._batch().tolist()
        assert len(set(rows)) == 20
        epochs.append(tuple(rows))
    assert len(set(epochs)) == 6
    assert set().union(*epochs) == set(range(IMAGES))
    stage.state.step = 0
    assert tuple(stage._batch().tolist()) == epochs[0][:5]


def test_a_batch_is_never_larger_than_the_data(tmp_path: Path) -> None:
    stage = small_stage(tmp_path / "c", small_config(batch_size=1000))
    assert sorted(stage._batch().tolist()) == list(range(IMAGES))


def test_only_the_networks_pass_is_narrow(tmp_path: Path) -> None:
    """Convolutions run in bfloat16; losses, gradients, weights, moments and averages do not."""
    stage = small_stage(tmp_path / "c", small_config(precision="bfloat16", **SEVERAL))
    narrow = []
    stage.denoiser.unet.stem.register_forward_hook(lambda *call: narrow.append(call[-1].dtype))
    stage.run()
    assert narrow == [torch.bfloat16] * STEPS
    tensors, _ = checkpoint.load(tmp_path / "c")
    kinds = {name: tensor.dtype for name, tensor in tensors.items() if name != "rng"}
    assert set(kinds.values()) == {torch.float32}
    assert {"ema", "ema_0.5", "ema_0.99", "model"} < {
        name.rpartition(".unet")[0] or name.split(".")[0] for name in kinds
    }
    assert stage.loss(torch.arange(5), 0.0).dtype == torch.float32


def test_bfloat16_learns_what_float32_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion_stage, "LOSS_WINDOW", STEPS)
    losses = []
    for precision in ("float32", "bfloat16"):
        stage = small_stage(tmp_path / precision, small_config(precision=precision))
        stage.run()
        losses += [row["loss"] for row in stage.state.history]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_no_step_waits_for_a_value(tmp_path: Path) -> None:
    """Losses are read in windows; so a device never idles, and a step can be a graph."""

    class Watch(TorchDispatchMode):
        read = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.read += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    stage = small_stage(tmp_path / "c")
    stage._conditions = Conditions(stage.images, stage.tree, stage.config)
    step = stage._make_step()
    with Watch() as watch:
        for _ in range(3):
            step.set(kl_weight=0.0, learning_rate=1e-3)
            step(stage._batch())
    assert watch.read == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_not_finite_names_its_step_and_spares_the_checkpoint(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "diffusion.safetensors", small_config(precision=precision)
    with pytest.raises(OutOfTime):
        small_stage(path, config, progress=Impatient(4)).run()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        spoil(patch, 3)  # the seventh step of all
        with pytest.raises(TrainingError) as caught:
            small_stage(path, config).run()
    assert caught.value.name == "diffusion, step 7"
    assert "loss of nan" in str(caught.value.got)
    assert "diffusion.safetensors holds the last good state" in caught.value.hint
    assert path.read_bytes() == before
    small_stage(path, config).run()
    assert all(tensor.isfinite().all() for tensor in checkpoint.load(path)[0].values())


def test_what_is_not_finite_is_found_before_the_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of time within a window is no way around the guard."""
    spoil(monkeypatch, 2)
    with pytest.raises(TrainingError, match="step 2"):
        small_stage(tmp_path / "c", progress=Impatient(4)).run()
    assert not (tmp_path / "c").exists()


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    """Although every loss so far was: the step after the last loss can spoil them."""
    stage = small_stage(tmp_path / "c")
    with torch.no_grad():
        next(stage.denoiser.parameters()).fill_(math.inf)
    with pytest.raises(TrainingError, match="weights"):
        stage._save()
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_without_further_averages_continues(tmp_path: Path) -> None:
    """The layout of earlier versions: model, optimizer, rng and one average by the name ema."""
    with pytest.raises(OutOfTime):
        small_stage(tmp_path / "c", progress=Impatient(5)).run()
    tensors, state = checkpoint.load(tmp_path / "c")
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "rng", "ema"}
    assert set(state) == {"step", "window", "history", "tree"}
    assert small_stage(tmp_path / "c").state.step == 5
    with pytest.raises(CheckpointError, match=r"ema_0\.5"):
        small_stage(tmp_path / "c", small_config(**SEVERAL))


def test_every_average_can_be_chosen_after_training(tmp_path: Path) -> None:
    """Kept averages change nothing about each other, or about the training."""
    config = small_config(**SEVERAL)
    stage = small_stage(tmp_path / "several", config)
    main = stage.run()
    tensors, _ = checkpoint.load(tmp_path / "several")
    for decay in (None, 0.9, 0.5, 0.99):
        alone = small_config(ema=decay or 0.9)
        expected = small_stage(tmp_path / f"alone {decay}", alone).run().state_dict()
        chosen = (main if decay is None else stage.averaged(decay)).state_dict()
        stored = averaged_weights(tensors, config, decay)
        assert expected.keys() == stored.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, chosen[name])
            assert torch.equal(tensor, stored[name])
    for refuse in (stage.averaged, lambda decay: averaged_weights(tensors, config, decay)):
        with pytest.raises(ConfigError, match=r"one of 0\.9, 0\.5, 0\.99"):
            refuse(0.999)


def test_looks_are_at_the_first_checkpoint_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They see the average as it stands, and whatever they draw, training does not miss it."""
    small_stage(tmp_path / "unseen").run()
    monkeypatch.setattr(checkpoint, "INTERVAL_S", -1.0)
    seen: list[int] = []

    def look(step: int, denoiser: Denoiser) -> None:
        assert not denoiser.training
        torch.rand(3)
        seen.append(step)
        assert (tmp_path / "seen").exists()

    small_stage(tmp_path / "seen", look=look).run()
    assert seen == [1, STEPS]
    assert_same(tmp_path / "seen", tmp_path / "unseen")


def test_slow_checkpoints_are_written_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a twentieth of the time goes into them."""
    now = [100.0]
    monkeypatch.setattr(diffusion_stage.time, "monotonic", lambda: now[0])
    pace = diffusion_stage._Pace()
    for took, wait in ((0.1, 10.0), (4.0, 80.0), (0.1, 10.0)):
        with pace:
            now[0] += took
        now[0] += wait - 0.1
        assert not pace.is_due
        now[0] += 0.2
        assert pace.is_due


def test_moments_take_the_layout_of_their_weights() -> None:
    """As fused kernels ask; a checkpoint keeps none."""
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.Adam(net.parameters(), fused=True)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    adam.step()
    moments = adam.state[net.weight]
    before = moments["exp_avg"].clone()
    moments["exp_avg"] = before.contiguous()
    diffusion_stage._follow_layout(adam)
    assert moments["exp_avg"].stride() == net.weight.stride()
    assert torch.equal(moments["exp_avg"], before)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_train_and_continue(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step is a graph: it learns, keeps its averages, and stops where it should."""
    monkeypatch.setattr(diffusion_stage, "LOSS_WINDOW", 50)
    settings: dict[str, Any] = {"steps": 200, "precision": precision, "unet": {"dropout": 0.1}}
    config = small_config(**settings, **SEVERAL)
    with pytest.raises(OutOfTime):
        small_stage(tmp_path / "c", config, "cuda", progress=Impatient(120)).run()
    stage = small_stage(tmp_path / "c", config, "cuda")
    assert stage.state.step == 120
    stage.run()
    losses = [row["loss"] for row in stage.state.history]
    assert losses[-1] < losses[0]
    some = next(stage.denoiser.unet.parameters())
    fast, slow = (next(stage.averaged(decay).unet.parameters()) for decay in (0.5, 0.99))
    assert (some - fast).norm() < (some - slow).norm()


@pytest.mark.gpu
def test_a_recorded_loss_that_is_not_finite_is_found(tmp_path: Path) -> None:
    config = DiffusionConfig.model_validate(
        small_config(learning_rate=1e30, clip=1e30, warmup=0).model_dump()
    )
    with pytest.raises(TrainingError, match="learning_rate"):
        small_stage(tmp_path / "c", config, "cuda").run()


def test_a_denoiser_of_another_tree_is_refused(tmp_path: Path) -> None:
    """Other weights are another tree, too: the latents of its nodes mean other things."""
    path, config = tmp_path / "diffusion.safetensors", small_config(steps=2)
    first = small_stage(path, config)
    first.run()
    before = path.read_bytes()
    with torch.no_grad():
        next(first.tree.parameters()).add_(1e-3)
    for other in (first.tree, first.tree.prune("r1")):
        with pytest.raises(CheckpointError, match=r"denoiser of the tree \w{16}.*whose nodes"):
            DiffusionStage(first.images, other, config, path, seed=7)
    assert path.read_bytes() == before


def test_the_same_tree_has_the_same_key_wherever_it_was_trained() -> None:
    tree = small_stage(Path("unused")).tree
    assert tree_key(tree) == tree_key(copy.deepcopy(tree).train())
    assert tree_key(tree) != tree_key(tree.prune("r1"))


@pytest.mark.parametrize(
    "settings",
    [
        {"signal": "leaf_id", "reconstruction": "concat"},
        {"reconstruction": "shift", "prediction": "v"},
        {"signal": "none"},
        {"path_dropout": 0.3, "level_dropout": 0.3},
        {"schedule": "edm", "prediction": "v", "augmentation": "edm"},
    ],
    ids=str,
)
def test_every_kind_learns_and_resumes_bit_for_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    # Two channels in each group of a norm: a group of one forgets what is added to it.
    config = small_config(unet={"channels": 64}, **settings)
    small_stage(tmp_path / "a", config).run()
    with pytest.raises(OutOfTime):
        small_stage(tmp_path / "b", config, progress=Impatient(5)).run()
    small_stage(tmp_path / "b", config).run()
    assert_same(tmp_path / "a", tmp_path / "b")
    stage = small_stage(tmp_path / "a", config)
    start = small_stage(tmp_path / "c", config)
    still = [
        name
        for (name, ours), theirs in zip(
            stage.denoiser.named_parameters(), start.denoiser.parameters(), strict=True
        )
        if torch.equal(ours, theirs)
    ]
    assert still == []
