"""Checkpoints: nothing is lost, nothing half-written is read, and a resumed run is the same run."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from treediffusion.errors import CheckpointError
from treediffusion.train.checkpoint import load, restore, save, training_state

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "step": torch.tensor(7),
    "empty": torch.empty(0, 4, dtype=torch.bfloat16),
    "half": torch.tensor([math.nan, math.inf, -0.0], dtype=torch.float16),
    "flag": torch.tensor([True, False]),
    "rng": torch.get_rng_state(),
}
STATE = {"epoch": 3, "elbo": -97.125, "phase": "subtree", "leaves": ["r0", "r1"], "best": None}


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All that a tensor is; bytes, because NaN is not equal to itself."""
    return tensor.dtype, tensor.shape, bytes(tensor.contiguous().reshape(-1).view(torch.uint8))


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert bits(left[name]) == bits(right[name]), name


def small() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = small()
    *rest, head_weight, head_bias = module.parameters()
    # Two groups in another order than the module's, so that positions are not names' positions.
    groups: list[dict[str, Any]] = [
        {"params": [head_weight, head_bias]},
        {"params": rest, "lr": 3e-3},
    ]
    return module, torch.optim.Adam(groups, lr=1e-2, weight_decay=1e-3)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    losses = []
    for _ in range(steps):
        images = torch.randn(16, 6)
        loss = (module(images) - images[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", TENSORS, STATE)
    tensors, state = load(tmp_path / "a.safetensors")
    assert_same(tensors, TENSORS)
    assert state == STATE


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.bool]),
    state=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=8) | st.none()),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_type_and_state_comes_back(
    shape: list[int], dtype: torch.dtype, state: dict[str, Any]
) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "a", {"x": tensor}, state)
        tensors, found = load(Path(folder) / "a")
    assert_same(tensors, {"x": tensor})
    assert found == state


def test_views_ties_and_gradients_are_stored_as_plain_values(tmp_path: Path) -> None:
    base = torch.randn(4, 6, requires_grad=True)
    given_ = {"base": base, "tied": base, "part": base[1:3], "turned": base.t(), "row": base[0]}
    save(tmp_path / "a", given_, {})
    tensors, _ = load(tmp_path / "a")
    assert_same(tensors, {name: tensor.detach() for name, tensor in given_.items()})
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values())


def test_loaded_tensors_are_the_callers_own(tmp_path: Path) -> None:
    save(tmp_path / "a", TENSORS, STATE)
    tensors, _ = load(tmp_path / "a")
    tensors["matrix"].zero_()
    assert_same(load(tmp_path / "a")[0], TENSORS)


def test_same_content_gives_the_same_file(tmp_path: Path) -> None:
    save(tmp_path / "a", TENSORS, STATE)
    save(tmp_path / "b", dict(reversed(TENSORS.items())), STATE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_save_that_cannot_be_finished_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    save(path, TENSORS, STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(path, {"other": torch.zeros(1)}, {})
    assert load(path)[1] == STATE
    assert list(tmp_path.iterdir()) == [path]


def test_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "none")
    assert caught.value.got == "no such file"
    assert "none" in caught.value.name
    assert caught.value.hint


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, {"x": torch.arange(5), "e": torch.empty(0)}, STATE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{length} bytes"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        load(path)


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_damaged_header_is_refused_or_read_but_never_crashes(place: int, flip: int) -> None:
    header = {"treediffusion": json.dumps({"format": 1, "state": {"epoch": 1}})}
    content = bytearray(safetensors.torch.save({"x": torch.arange(5)}, header))
    content[place % (8 + int.from_bytes(content[:8], "little"))] ^= flip
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(CheckpointError):
            load(Path(file.name))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {
        "text": b"not a checkpoint at all",
        "pickle": b"\x80\x04K\x01.",
        "no header": safetensors.torch.save(TENSORS),
        "other key": safetensors.torch.save(TENSORS, {"format": "pt"}),
    }
    types = b'{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    contents["unknown type"] = len(types).to_bytes(8, "little") + types + b"\0"
    texts = ("7", "[]", "{", "null", '{"format": 1}', '{"format": 1, "state": 3}')
    for text in texts:
        contents[text] = safetensors.torch.save(TENSORS, {"treediffusion": text})
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert caught.value.hint
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    header = {"treediffusion": json.dumps({"format": 2, "parts": []})}
    (tmp_path / "a").write_bytes(safetensors.torch.save(TENSORS, header))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a")
    assert caught.value.got == "format 2"
    assert "upgrade" in caught.value.hint


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = fresh(0)
    straight = train(module, optimizer, 10)
    end = training_state(module, optimizer)

    module, optimizer = fresh(0)
    before = train(module, optimizer, 5)
    save(tmp_path / "a", training_state(module, optimizer), {})
    # Other weights, moments and random numbers, all of which must be replaced.
    module, optimizer = fresh(1)
    train(module, optimizer, 2)
    restore(module, optimizer, load(tmp_path / "a")[0])
    after = train(module, optimizer, 5)

    assert [loss.item() for loss in before + after] == [loss.item() for loss in straight]
    assert_same(training_state(module, optimizer), end)


def test_state_is_a_copy_and_restoring_leaves_it_alone() -> None:
    module, optimizer = fresh(0)
    train(module, optimizer, 2)
    state = training_state(module, optimizer)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    restore(module, optimizer, state)
    train(module, optimizer, 2)
    assert_same(state, kept)


def test_names_and_types_of_the_state() -> None:
    module, optimizer = fresh(0)
    assert not any(name.startswith("optimizer") for name in training_state(module, optimizer))
    train(module, optimizer, 1)
    state = training_state(module, optimizer)
    assert {name for name in state if name.startswith("optimizer.0.")} == {
        "optimizer.0.exp_avg",
        "optimizer.0.exp_avg_sq",
        "optimizer.0.step",
    }
    # Position 0 is the optimizer's first parameter, not the module's.
    assert state["optimizer.0.exp_avg"].shape == module.get_parameter("4.weight").shape
    assert state["model.1.num_batches_tracked"].dtype == torch.int64
    assert state["rng"].dtype == torch.uint8


def test_learning_rate_stays_the_configurations() -> None:
    module, optimizer = fresh(0)
    train(module, optimizer, 1)
    state = training_state(module, optimizer)
    optimizer.param_groups[0]["lr"] = 0.125
    restore(module, optimizer, state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 3e-3]


def test_restoring_another_model_changes_nothing() -> None:
    module, optimizer = fresh(0)
    train(module, optimizer, 1)
    good = training_state(module, optimizer)
    wrong = [
        {name: tensor for name, tensor in good.items() if name != "model.0.bias"},
        {name: tensor for name, tensor in good.items() if name != "rng"},
        good | {"model.extra": torch.zeros(1)},
        good | {"model.0.bias": torch.zeros(9)},
        good | {"model.0.bias": good["model.0.bias"].double()},
        good | {"optimizer.0.exp_avg": torch.zeros(2)},
        good | {"optimizer.6.exp_avg": torch.zeros(2)},
        good | {"optimizer.x.exp_avg": torch.zeros(2)},
        good | {"rng": torch.zeros(3, dtype=torch.uint8)},
    ]
    train(module, optimizer, 1)
    here = training_state(module, optimizer)
    for tensors in wrong:
        with pytest.raises(CheckpointError) as caught:
            restore(module, optimizer, tensors)
        assert caught.value.hint
    assert_same(training_state(module, optimizer), here)


def test_tensors_of_other_names_travel_along(tmp_path: Path) -> None:
    module, optimizer = fresh(0)
    state = training_state(module, optimizer)
    save(tmp_path / "a", state | {"ema.0.bias": torch.ones(8), "rng_data": torch.ones(2)}, {})
    restore(module, optimizer, load(tmp_path / "a")[0])
    assert_same(training_state(module, optimizer), state)
