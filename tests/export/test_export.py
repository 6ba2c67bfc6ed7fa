"""A bundle computes what its model computes, and is the same bytes every time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import IRREGULAR, tiny_bundle, tiny_model
from support.tables import table_of
from torch import nn
from treediffusion.bundle import FORMAT, KIND, ROLES, Bundle
from treediffusion.diffusion.sampler import sample
from treediffusion.errors import (
    BackendUnavailableError,
    CheckpointError,
    DependencyError,
    ParityError,
)
from treediffusion.export import export_bundle, parity, provenance, write_bundle
from treediffusion.export.graphs import make_graphs, on_cpu
from treediffusion.export.sets import plan_sets
from treediffusion.export.to_onnx import to_onnx
from treediffusion.noise import Stream, normal
from treediffusion.runtime import Engine
from treediffusion.runtime.backends import OnnxRuntimeBackend
from treediffusion.runtime.pixels import to_uint8

GRAPHS = make_graphs(on_cpu(tiny_model()))


def feeds(role: str, batch: int) -> dict[str, np.ndarray]:
    """Inputs other than those of the export's own proof."""
    generator = np.random.default_rng(batch)
    paths = IRREGULAR.paths.astype(np.int64)
    table = table_of(tiny_model().schedule, [150, 80, 20, 0], eta=1.0)
    special = {
        "nodes": paths[generator.integers(0, len(paths), batch)],
        "timesteps": table.timestep,
        "coef": table.network.astype(np.float32),
        "step": generator.integers(0, 4, batch),
    }
    made = {}
    for spec in GRAPHS[role].inputs:
        shape = [batch if side == "B" else side for side in spec.shape]
        draw = generator.random if spec.name == "images" else generator.standard_normal
        made[spec.name] = special[spec.name] if spec.name in special else draw(shape, np.float32)
    return made


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_graph_equals_module_at_any_batch(role: str, batch: int) -> None:
    backend = OnnxRuntimeBackend(Bundle.open(tiny_bundle()), threads=1)
    feed = feeds(role, batch)
    found = backend.run(role, feed)
    expected = GRAPHS[role].run({name: torch.from_numpy(value) for name, value in feed.items()})
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-5, atol=1e-5)


def test_a_step_gathers_each_images_own_row() -> None:
    """Images at four different steps share a call, and the last step's noise has no weight."""
    backend = OnnxRuntimeBackend(Bundle.open(tiny_bundle()), threads=1)
    feed = feeds("step", 4) | {"step": np.arange(4)}
    together = backend.run("step", feed)["x_next"]
    for i in range(4):
        own = {
            k: v[i : i + 1] if k in {"x", "cond", "step", "noise"} else v for k, v in feed.items()
        }
        alone = backend.run("step", own)["x_next"]
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    silent = backend.run("step", feed | {"noise": np.zeros_like(feed["noise"])})["x_next"]
    assert np.array_equal(silent[3], together[3])
    assert not np.array_equal(silent[0], together[0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_generation_equals_torch_with_the_same_noise(eta: float) -> None:
    """Every image against PyTorch's own modules and sampler; only the leaves are taken over."""
    model, seed, images = tiny_model(), 9, [4, 5, 6]
    with Engine.load(tiny_bundle(), threads=1) as engine:
        found = engine.generate(3, seed=seed, offset=4, eta=eta, num_inference_steps=12)
    shape, (channels, side, _) = model.tree.latent_shape, model.tree.image_shape
    latents = [normal(seed, images, shape, stream=Stream.ROOT)] + [
        normal(seed, images, shape, stream=Stream.NODE, step=row)
        for row in range(1, IRREGULAR.num_nodes)
    ]
    steps = model.schedule.inference_steps(12, spacing="quadratic")
    table = table_of(model.schedule, steps, eta=eta)
    pixels = (channels, side, side)
    with torch.no_grad():
        z = model.tree.generate(torch.from_numpy(np.stack(latents, axis=1))).z.flatten(2)
        nodes = torch.from_numpy(IRREGULAR.paths[found.leaf].astype(np.int64))
        y = model.denoiser.condition(z[torch.arange(3)[:, None], nodes], nodes)
        x = sample(
            model.denoiser,
            y,
            torch.from_numpy(normal(seed, images, pixels, stream=Stream.START)),
            table,
            noise=lambda s: torch.from_numpy(
                normal(seed, images, pixels, stream=Stream.STEP, step=s)
            ),
        )
    apart = to_uint8(x.numpy(), (-1.0, 1.0)).astype(int) - found.images
    assert np.abs(apart).max() <= 1


def test_parity_is_recorded_within_its_limits() -> None:
    report = json.loads((tiny_bundle() / "parity.json").read_text())
    assert set(report["graphs"]) == {f"graphs/onnx-cpu-fp32/{role}.onnx" for role in ROLES}
    assert report["batches"] == [1, 5]
    for facts in report["graphs"].values():
        assert all(output["max_abs_error"] < 1e-4 for output in facts["outputs"].values())
    generation = report["generation"]
    assert generation["max_abs_error"] <= generation["max_abs_error_allowed"]
    # More than 1e-3 only as far as PyTorch itself rounds in this untrained network.
    assert 1e-3 <= generation["max_abs_error_allowed"] < 5e-2
    assert report["generation"]["uint8_max_difference"] <= 1
    assert len(set(report["generation"]["leaves"])) == IRREGULAR.num_leaves


@pytest.mark.parametrize("role", ["condition", "decode"])
def test_a_second_export_gives_the_same_bytes(role: str) -> None:
    again = to_onnx(make_graphs(on_cpu(tiny_model()))[role], opset=18)
    assert again == (tiny_bundle() / f"graphs/onnx-cpu-fp32/{role}.onnx").read_bytes()


@pytest.mark.slow
def test_a_second_bundle_is_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two processes, as large networks are, and with more threads, which PyTorch rounds by."""
    tiny_bundle()
    monkeypatch.setattr(write_bundle, "LARGE", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        again = export_bundle(tiny_model(), tmp_path / "again")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    files = [f.relative_to(again) for f in again.rglob("*") if f.is_file()]
    assert len(files) == len(ROLES) + 4
    for file in files:
        assert (again / file).read_bytes() == (tiny_bundle() / file).read_bytes(), file


class Deadly(nn.Module):
    """Ends the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_process_that_dies_while_it_traces_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = GRAPHS | {"assign": dataclasses.replace(GRAPHS["assign"], module=Deadly())}
    monkeypatch.setattr(write_bundle, "LARGE", 0)
    monkeypatch.setattr(write_bundle, "make_graphs", lambda model: graphs)
    with pytest.raises(BackendUnavailableError, match="the end of a process"):
        export_bundle(tiny_model(), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_no_file_names_this_machine() -> None:
    here = {str(Path(__file__).parents[2]), sys.prefix, str(tiny_bundle().parent), str(Path.home())}
    for file in tiny_bundle().rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not [place for place in here - {"/"} if place.encode() in data], file
            assert b".py" not in data, file


def test_manifest_describes_the_model() -> None:
    manifest = json.loads((tiny_bundle() / "manifest.json").read_text())
    assert (manifest["kind"], manifest["format"]) == (KIND, FORMAT)
    assert manifest["image"] == {"channels": 1, "size": 8, "pixel_range": "-1..1"}
    assert list(manifest["sets"]) == ["onnx-cpu-fp32"]
    assert manifest["config"]["preset"] == "tiny"
    assert set(manifest["files"]) == {
        f.relative_to(tiny_bundle()).as_posix()
        for f in tiny_bundle().rglob("*")
        if f.is_file() and not f.name.startswith("manifest.")
    }


def test_manifest_tells_where_it_is_from_but_not_when() -> None:
    found = json.loads((tiny_bundle() / "manifest.json").read_text())["provenance"]
    assert set(found) == {"commit", "versions"}
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "onnx", "onnxscript", "numpy"} <= set(found["versions"])


def test_an_installed_package_takes_no_foreign_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert provenance._commit(tmp_path) is None


def test_the_place_of_the_data_is_not_published() -> None:
    model = tiny_model()
    config = model.config.model_copy(update={"data": "/home/somebody/secret/cats"})
    manifest = write_bundle._manifest(dataclasses.replace(model, config=config), GRAPHS, ())
    assert manifest["config"]["data"] == "cats"


def test_a_wrong_graph_is_refused() -> None:
    """The proof compares with the model it is given: another one's graphs do not pass."""
    other = on_cpu(tiny_model(seed=1))
    _, files = plan_sets(["onnx-cpu"], ["fp32"], [1])
    with pytest.raises(ParityError, match="difference of"):
        parity.check(tiny_bundle(), other, make_graphs(other), files)


def test_the_tree_itself_is_what_its_folded_copy_is_compared_with() -> None:
    model = on_cpu(tiny_model())
    with torch.no_grad():
        model.tree.root_head.weight.add_(0.1)
    _, files = plan_sets(["onnx-cpu"], ["fp32"], [1])
    with pytest.raises(ParityError, match="posterior"):
        parity.check(tiny_bundle(), model, GRAPHS, files)


def test_nan_is_a_difference() -> None:
    values = np.zeros(3, np.float32)
    error, _ = parity._difference(np.array([0, np.nan, 0], np.float32), values)
    with pytest.raises(ParityError):
        parity._limit("x", error, 1.0)


def test_missing_runtime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[cpu\]"):
        export_bundle(tiny_model(), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="other files"):
        export_bundle(tiny_model(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, treediffusion.export; print(*({'torch', 'onnx'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ended.stdout.split()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_decoders_of_large_images_take_any_number(channels: int, side: int) -> None:
    """Their convolutions have a form of their own on a CPU, which must not fix the batch."""
    model = tiny_model(image_channels=channels, image_size=side)
    graph = make_graphs(on_cpu(model))["decode"]
    model_bytes = to_onnx(graph, opset=18)
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        z = torch.randn(batch, *graph.inputs[0].shape[1:])
        (found,) = session.run(None, {"z": z.numpy()})
        np.testing.assert_allclose(found, graph.run({"z": z})["images"], rtol=1e-4, atol=1e-5)
