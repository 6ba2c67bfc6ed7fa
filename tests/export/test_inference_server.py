"""The model repository of NVIDIA Triton Inference Server: its schema, and what its model answers.

The server itself is not run; see `support.inference_server`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from support.inference_server import InferenceRequest, Tensor, read_config, server_module
from support.models import IRREGULAR, tiny_bundle, tiny_model
from treediffusion.cli import export_main
from treediffusion.errors import BundleError, CheckpointError
from treediffusion.export import write_bundle
from treediffusion.export.inference_server import MODEL, write_model_repository
from treediffusion.runtime import Engine
from treediffusion.runtime.sampling import Sampler

GOOD = {"NODE": ["r"], "SEED": [7]}
TYPES = {"SEED": np.uint64, "OFFSET": np.uint64, "NUM_INFERENCE_STEPS": np.int32}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    write_model_repository(tiny_bundle(), repository)
    return repository


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[Any]:
    """The class of the written file, loaded as the server loads it."""
    path = repository / MODEL / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", server_module())
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize({"model_name": MODEL, "model_version": "1"})
        yield model
        model.finalize()


def request(**columns: list[Any]) -> InferenceRequest:
    """With a batch axis, and strings as bytes, as the server hands them over."""
    return InferenceRequest([
        Tensor(name, np.array([[encoded(value)] for value in column], np.object_)
               if name == "NODE" else np.array(column, TYPES[name])[:, None])
        for name, column in columns.items()
    ])  # fmt: skip


def encoded(name: str) -> bytes:
    """Bytes that need not be UTF-8: the server does not look at them."""
    return name.encode("utf-8", "surrogateescape")


def outputs(response: Any) -> Mapping[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_settings_are_of_the_servers_schema(repository: Path) -> None:
    folder = repository / MODEL
    config = read_config((folder / "config.pbtxt").read_text("utf-8"))
    assert config.name == folder.name, "the server wants the folder's name"
    assert config.backend == "python"
    assert config.max_batch_size == 64
    assert config.HasField("dynamic_batching")
    assert [(tensor.name, tensor.optional) for tensor in config.input] == [
        ("NODE", False), ("SEED", False), ("OFFSET", True), ("NUM_INFERENCE_STEPS", True)
    ]  # fmt: skip
    assert list(config.output[0].dims) == [1, 8, 8]
    assert (folder / str(1) / "model.py").is_file()
    assert not list(repository.glob(".*")), "nothing half written"


@pytest.mark.parametrize(
    ("good", "bad", "fault"),
    [
        ("name:", "nmae:", text_format.ParseError),
        ("TYPE_UINT64", "TYPE_UINT65", text_format.ParseError),
        ("max_batch_size: 64", 'max_batch_size: "64"', text_format.ParseError),
        ("max_batch_size: 64", "max_batch_size: 0", AssertionError),
        ("dims: [ 1, 8, 8 ]", "", AssertionError),
        ('name: "LEAF"', 'name: "IMAGE"', AssertionError),
    ],
)
def test_the_check_of_settings_is_strict(
    repository: Path, good: str, bad: str, fault: type[Exception]
) -> None:
    text = (repository / MODEL / "config.pbtxt").read_text("utf-8")
    assert good in text
    with pytest.raises(fault):
        read_config(text.replace(good, bad, 1))


def test_images_are_the_engines(model: Any) -> None:
    """Of all requests of a call, whatever nodes, seeds, offsets and steps they mix."""
    nodes = ["r", "r0", "r", "r1", "r0"]
    seeds, offsets, steps = [7, 2**64 - 1, 7, 3, 9], [0, 4, 1, 0, 2], [4, 5, 4, 4, 4]
    mixed = request(NODE=nodes, SEED=seeds, OFFSET=offsets, NUM_INFERENCE_STEPS=steps)
    answers = [outputs(each) for each in model.execute([request(**GOOD), mixed])]
    asked = [("r", 7, 0, None), *zip(nodes, seeds, offsets, steps, strict=True)]
    found = [
        (image, leaf, prob)
        for answer in answers
        for image, (leaf,), (prob,) in zip(*answer.values(), strict=True)
    ]
    with Engine.load(tiny_bundle()) as engine:
        for (node, seed, offset, count), (image, leaf, prob) in zip(asked, found, strict=True):
            alone = engine.generate(
                1, node=node, seed=seed, offset=offset, num_inference_steps=count
            )
            assert image.tobytes() == alone.images[0].tobytes()
            assert leaf == alone.leaf_names[alone.leaf[0]]
            assert prob == alone.leaf_prob[0, alone.leaf[0]]


def test_outputs_are_those_of_the_settings(model: Any, repository: Path) -> None:
    config = read_config((repository / MODEL / "config.pbtxt").read_text("utf-8"))
    numpy_types = {2: np.uint8, 11: np.float32, 13: np.object_}
    (answer,) = model.execute([request(NODE=["r", "r1"], SEED=[0, 1])])
    found = outputs(answer)
    assert list(found) == [tensor.name for tensor in config.output]
    for tensor in config.output:
        assert found[tensor.name].dtype == numpy_types[tensor.data_type]
        assert found[tensor.name].shape == (2, *tensor.dims)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"NODE": ["r", "nowhere"], "SEED": [1, 2]}, "nowhere"),
        ({"NODE": ["\udcff"], "SEED": [1]}, "expected"),
        ({**GOOD, "NUM_INFERENCE_STEPS": [0]}, "num_inference_steps"),
        ({**GOOD, "NUM_INFERENCE_STEPS": [2**31 - 1]}, "at most 200"),
    ],
)
def test_a_request_that_cannot_be_used_disturbs_no_other(
    model: Any, wrong: dict[str, list[Any]], told: str
) -> None:
    bad = request(**wrong)
    first, refused, last = model.execute([request(**GOOD), bad, request(**GOOD)])
    assert refused.has_error()
    assert told in refused.error().message()
    assert refused.error().code() == refused.error().INVALID_ARG
    assert refused.output_tensors() == []
    (alone,) = model.execute([request(**GOOD)])
    for answer in (first, last):
        assert np.array_equal(outputs(answer)["IMAGE"], outputs(alone)["IMAGE"])
    (only,) = model.execute([bad])
    assert only.has_error()


def test_requests_share_calls_of_the_network(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    advance = Sampler.advance

    def counted(sampler: Sampler, drawings: Any) -> None:
        rows.append(sum(drawing.rows for drawing in drawings))
        advance(sampler, drawings)

    monkeypatch.setattr(Sampler, "advance", counted)
    model.execute([
        request(NODE=["r1"], SEED=[1], NUM_INFERENCE_STEPS=[2]),
        request(NODE=["r", "r"], SEED=[1, 2], NUM_INFERENCE_STEPS=[3, 3]),
    ])  # fmt: skip
    assert rows == [3, 3, 2]


def test_the_servers_python_needs_no_torch() -> None:
    code = "import sys, treediffusion.export.inference_model; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]


def test_writing_again_replaces_the_model_and_leaves_others(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text("")
    first = write_model_repository(tiny_bundle(), tmp_path)
    (first / "1" / "stale").write_text("")
    assert write_model_repository(tiny_bundle(), tmp_path) == first
    assert sorted(path.name for path in first.rglob("*") if path.parent.name == "1") == [
        "bundle", "model.py"
    ]  # fmt: skip
    assert (tmp_path / "other" / "config.pbtxt").is_file()


def test_another_model_of_this_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "config.pbtxt").write_text("mine")
    with pytest.raises(CheckpointError, match="other files"):
        write_model_repository(tiny_bundle(), tmp_path)
    assert (tmp_path / MODEL / "config.pbtxt").read_text() == "mine"
    with pytest.raises(BundleError):
        write_model_repository(tmp_path, tmp_path / "none")
    assert not (tmp_path / "none" / MODEL).exists()


def test_the_command_writes_it_beside_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(model: Any, out: Path, **given: Any) -> Path:
        return Path(shutil.copytree(tiny_bundle(), out))

    monkeypatch.setattr(write_bundle, "export_bundle", export)
    monkeypatch.setattr("treediffusion.train.run.load_run", lambda *given, **named: tiny_model())
    words = ["--checkpoint", "run", "--out", str(tmp_path / "mine")]
    assert export_main(words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    shutil.rmtree(tmp_path / "mine")
    assert export_main([*words, "--also", "triton-repo"]) == 0
    copied = tmp_path / "mine-triton-repo" / MODEL / "1" / "bundle"
    with Engine.load(copied) as engine:  # every hash is compared
        assert engine.topology.names == IRREGULAR.names
    assert "NVIDIA Triton Inference Server" in capsys.readouterr().out
    assert export_main([*words, "--also", "flask"]) == 2
