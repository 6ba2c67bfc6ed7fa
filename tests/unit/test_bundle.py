"""The reading side of a bundle: a good one opens, and every fault has its error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.plain_bundles import TREE, Edit, change, plain_bundle, seal, setting
from treediffusion.bundle import FORMAT, ROLES, Bundle
from treediffusion.errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
)
from treediffusion.schedule import DiffusionSchedule
from treediffusion.topology import TreeTopology

SET = "onnx-cpu-fp32"
STEP = f"graphs/{SET}/step.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return plain_bundle(tmp_path / "bundle")


def add_set(name: str, **facts: Any) -> Edit:
    """A further set, of the same files unless told otherwise."""
    target, _, precision = name.rpartition("-")

    def edit(manifest: dict[str, Any]) -> None:
        first = manifest["sets"][SET]
        manifest["sets"][name] = first | {"target": target, "precision": precision} | facts

    return edit


def test_a_good_bundle_opens(path: Path) -> None:
    bundle = Bundle.open(str(path))
    assert bundle.topology == TREE
    assert bundle.schedule == DiffusionSchedule()
    assert bundle.image_shape == (1, 8, 8)
    assert bundle.pixel_range == (-1.0, 1.0)
    assert bundle.graphs["step"].inputs[0].shape == ("B", 1, 8, 8)
    assert bundle.graphs["assign"].file == path / f"graphs/{SET}/assign.onnx"
    np.testing.assert_array_equal(bundle.node_share, [1.0, 0.5, 0.5, 0.5])


def test_unknown_keys_are_ignored(path: Path) -> None:
    change(path, setting("motto", value="later versions of this format may say more"))
    Bundle.open(path)


def test_every_tensor_has_its_range(path: Path) -> None:
    ranges = {
        f"{role}.{spec.name}": spec.range
        for role, graph in Bundle.open(path).graphs.items()
        for spec in (*graph.inputs, *graph.outputs)
    }
    assert ranges["assign.images"] == ranges["assign.leaf_prob"] == (0.0, 1.0)
    assert ranges["step.timesteps"] == (0.0, 999.0)
    assert ranges["condition.nodes"] == (-1.0, TREE.num_nodes - 1)
    assert ranges["step.x0"] == (-1.0, 1.0)
    assert ranges["step.x"] == (None, None)


def test_sets_may_share_files(path: Path) -> None:
    change(path, add_set("onnx-gpu-fp32", batches=[16]))
    bundle = Bundle.open(path)
    first, second = bundle.sets.values()
    assert list(bundle.sets) == [first.name, second.name] == [SET, "onnx-gpu-fp32"]
    assert second.batches == (16,)
    assert second.graphs == first.graphs


def test_the_default_set_is_that_of_the_cpu_wherever_it_stands(path: Path) -> None:
    change(path, add_set("onnx-gpu-fp32", opset=18))
    change(path, lambda m: m["sets"].update({SET: m["sets"].pop(SET)}))
    bundle = Bundle.open(path)
    assert next(iter(bundle.sets)) == "onnx-gpu-fp32"
    assert bundle.default_set.name == SET
    assert bundle.only("onnx-gpu-fp32").default_set.name == "onnx-gpu-fp32"
    with pytest.raises(ConfigError, match=r"tensorrt-fp16.*onnx-gpu-fp32"):
        bundle.only("tensorrt-fp16")


def test_what_is_not_a_bundle(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleFormatError, match="a file"):
        Bundle.open(path / "tree.json")
    with pytest.raises(BundleFormatError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)


def test_manifests_of_other_programs(path: Path) -> None:
    change(path, setting("kind", value="browser extension"))
    with pytest.raises(BundleFormatError, match=r"browser extension.*folder that treediffusion"):
        Bundle.open(path)


@pytest.mark.parametrize("text", ['{"format": FORMAT, "imag', "[]", "\xff", "", "[" * 100_000])
def test_a_manifest_that_is_not_one(path: Path, text: str) -> None:
    (path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleFormatError, match=r"manifest\.json"):
        Bundle.open(path)


@pytest.mark.parametrize(("version", "hint"), [(FORMAT + 1, "upgrade"), (FORMAT - 1, "export")])
def test_another_format_is_told_before_anything_else(path: Path, version: int, hint: str) -> None:
    manifest = {"format": version, "producer": {"name": "x", "version": "9"}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleVersionError, match=rf"format {version}, by x 9.*{hint}"):
        Bundle.open(path)


@pytest.mark.parametrize("value", [0, -1, "1", None, True, 1.5])
def test_a_format_that_is_no_number(path: Path, value: object) -> None:
    change(path, setting("format", value=value))
    with pytest.raises(BundleFormatError, match="format"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["tree.json", "parity.json", STEP])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(BundleFormatError, match=f"{name}.*no such file"):
        Bundle.open(path)


def test_a_changed_file_is_named(path: Path) -> None:
    content = (path / "parity.json").read_bytes()
    (path / "parity.json").write_bytes(content[:-1] + b"]")
    with pytest.raises(BundleIntegrityError, match=r"parity\.json: got sha256"):
        Bundle.open(path)
    Bundle.open(path, verify=False)


def test_a_changed_manifest_is_named(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"version": "0.1.0"', '"version": "0.1.1"'))
    for verify in (True, False):
        with pytest.raises(BundleIntegrityError, match=r"manifest\.json: got sha256"):
            Bundle.open(path, verify=verify)
    (path / "manifest.sha256").unlink()
    with pytest.raises(BundleFormatError, match=r"no manifest\.sha256"):
        Bundle.open(path)


def test_a_cut_file_is_named_without_reading_it(path: Path) -> None:
    (path / STEP).write_bytes(b"deco")
    with pytest.raises(BundleIntegrityError, match=r"step\.onnx: got 4 bytes"):
        Bundle.open(path, verify=False)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "graphs/../../secret", "a\\..\\b", "C:/secret", "", ".", "x\0y",
     "graphs//step", "\ud800", "a" * 5000],
)  # fmt: skip
def test_a_name_may_not_lead_out(path: Path, name: str) -> None:
    (path.parent / "secret").write_text("x")
    change(path, setting("files", name, value={"sha256": "", "size": 1}))
    with pytest.raises(BundleFormatError):
        Bundle.open(path)
    seal(path)
    change(path, setting("sets", SET, "graphs", "step", value=name))
    with pytest.raises(BundleFormatError):
        Bundle.open(path)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
@pytest.mark.parametrize("target", ["secret", "bundle/" + STEP])
def test_a_link_may_lead_neither_out_nor_to_itself(path: Path, target: str) -> None:
    (path.parent / "secret").write_bytes((path / STEP).read_bytes())
    (path / STEP).unlink()
    (path / STEP).symlink_to(path.parent / target)
    with pytest.raises(BundleFormatError, match=r"out of the bundle|loop|symbolic"):
        Bundle.open(path)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_folder_may_not_be_a_link_out(path: Path) -> None:
    (path / "graphs").rename(path.parent / "graphs")
    (path / "graphs").symlink_to(path.parent / "graphs")
    with pytest.raises(BundleFormatError, match="out of the bundle"):
        Bundle.open(path)


def test_a_bundle_may_itself_be_reached_through_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert Bundle.open(tmp_path / "link").topology == TREE


@pytest.mark.parametrize(
    "edit",
    [
        setting("files", value={}),
        setting("files", value=["tree.json"]),
        setting("files", "tree.json", value=7),
        setting("files", "Tree.json", value={"sha256": "", "size": 1}),
        setting("image", value=None),
        setting("image", "size", value=9),
        setting("image", "size", value=-8),
        setting("image", "pixel_range", value="0..255"),
        setting("image", "pixel_range", value=[0, 1]),
        setting("latent", "shape", value=[4, 2]),
        setting("latent", "shape", value=[4, 2, 3]),
        setting("condition_width", value=17),
        setting("tensors", value={}),
        setting("tensors", "step", "inputs", value=[]),
        setting("tensors", "assign", "outputs", 0, "range", value=[0.0, 2.0]),
        setting("sets", value={}),
        setting("sets", SET, "opset", value="new"),
        setting("sets", SET, "opset", value=17),
        setting("sets", SET, "target", value="tensorrt"),
        setting("sets", SET, "precision", value=["fp32"]),
        setting("sets", SET, "batches", value=[0]),
        setting("sets", SET, "batches", value=1),
        setting("sets", SET, "graphs", "extra", value=STEP),
        setting("sets", SET, "graphs", "assign", value=STEP),
        setting("sets", SET, "graphs", "assign", value="tree.json"),
        add_set("onnx-cpu-int4"),
        add_set("onnx-gpu-fp16", opset=19),
        setting("schedule", value={}),
        setting("schedule", "timesteps", value=0),
        setting("schedule", "beta_end", value="NaN"),
        setting("sampling", "eta", value=2),
        setting("sampling", "spacing", value="wide"),
        setting("sampling", "num_inference_steps", value=0),
        setting("node_share", value=[1.0]),
        setting("node_share", value=["a", 1, 1, 1]),
        setting("node_share", value=[1, 0.5, 0.5, 7.0]),
        setting("node_share", value=None),
        setting("config", value=[]),
        setting("provenance", value="here"),
    ],
)
def test_a_manifest_that_contradicts_itself(path: Path, edit: Edit) -> None:
    change(path, edit)
    with pytest.raises(BundleFormatError):
        Bundle.open(path)


@pytest.mark.parametrize(
    "key",
    ["files", "image", "latent", "tensors", "sets", "denoiser", "schedule", "sampling", "config"],
)
def test_a_missing_field(path: Path, key: str) -> None:
    change(path, lambda manifest: manifest.pop(key))
    with pytest.raises(BundleFormatError, match=key):
        Bundle.open(path)


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_graph(path: Path, role: str) -> None:
    change(path, lambda manifest: manifest["sets"][SET]["graphs"].pop(role))
    with pytest.raises(BundleFormatError, match=role):
        Bundle.open(path)


def test_a_tree_that_is_not_one(path: Path) -> None:
    (path / "tree.json").write_text("{}")
    seal(path)
    with pytest.raises(BundleFormatError, match=r"tree\.json"):
        Bundle.open(path)


def test_another_tree_does_not_fit_the_graphs(path: Path) -> None:
    (path / "tree.json").write_text(TreeTopology.initial().to_json())
    seal(path)
    with pytest.raises(BundleFormatError, match="graph 'path'"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["tree.json", "parity.json", STEP])
def test_every_file_must_have_a_hash(path: Path, name: str) -> None:
    change(path, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleFormatError, match=name):
        Bundle.open(path)


def test_all_faults_are_one_family(path: Path) -> None:
    shutil.rmtree(path)
    with pytest.raises(BundleError):
        Bundle.open(path)
    assert issubclass(BundleFormatError, ValueError)
