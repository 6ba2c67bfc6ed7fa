"""The reading side of a bundle: a good one opens, and every fault has its error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treediffusion.bundle import FORMAT, ROLES, Bundle, Told, graph_tensors
from treediffusion.errors import (
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    BundleVersionError,
)
from treediffusion.schedule import DiffusionSchedule
from treediffusion.topology import TreeTopology

TREE = TreeTopology.of(["r", "r0", "r1", "r00"])
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle whose graphs are not ONNX, which the reading side does not look at."""
    folder = tmp_path / "bundle"
    (folder / "graphs").mkdir(parents=True)
    tensors = graph_tensors(TREE, (1, 8, 8), (4, 2, 2), condition_width=16, told=Told())
    for role in ROLES:
        (folder / "graphs" / f"{role}.onnx").write_bytes(role.encode())
    (folder / "tree.json").write_text(TREE.to_json())
    (folder / "parity.json").write_text("{}")
    manifest = {
        "format": FORMAT,
        "producer": {"name": "treediffusion", "version": "0.1.0"},
        "image": {"channels": 1, "size": 8, "pixel_range": "-1..1"},
        "latent": {"shape": [4, 2, 2]},
        "condition_width": 16,
        "graphs": {
            role: {
                "file": f"graphs/{role}.onnx",
                "opset": 18,
                "inputs": [spec.to_dict() for spec in inputs],
                "outputs": [spec.to_dict() for spec in outputs],
            }
            for role, (inputs, outputs) in tensors.items()
        },
        "schedule": DiffusionSchedule().to_dict(),
        "denoiser": asdict(Told()),
        "sampling": {
            "num_inference_steps": 50,
            "solver": "ddim",
            "spacing": "quadratic",
            "eta": 0.0,
            "guidance_scale": 1.0,
        },
        "node_share": [1.0, 0.5, 0.5, 0.5],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Lists every file with its hash, as an exporter does."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"] = {
            f.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
                "size": f.stat().st_size,
            }
            for f in folder.rglob("*")
            if f.is_file() and f.name != "manifest.json"
        }

    change(folder, edit)


def change(folder: Path, edit: Edit) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


def setting(*keys: str, value: Any) -> Edit:
    """Puts a value in a place of the manifest."""

    def edit(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit


def test_a_good_bundle_opens(path: Path) -> None:
    bundle = Bundle.open(str(path))
    assert bundle.topology == TREE
    assert bundle.schedule == DiffusionSchedule()
    assert bundle.image_shape == (1, 8, 8)
    assert bundle.pixel_range == (-1.0, 1.0)
    assert bundle.graphs["step"].inputs[0].shape == ("B", 1, 8, 8)
    assert bundle.graphs["assign"].file.read_bytes() == b"assign"
    np.testing.assert_array_equal(bundle.node_share, [1.0, 0.5, 0.5, 0.5])


def test_unknown_keys_are_ignored(path: Path) -> None:
    change(path, setting("motto", value="later versions of format 1 may say more"))
    Bundle.open(path)


def test_what_is_not_a_bundle(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleFormatError, match="a file"):
        Bundle.open(path / "tree.json")
    with pytest.raises(BundleFormatError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)


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


@pytest.mark.parametrize("name", ["tree.json", "parity.json", "graphs/step.onnx"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(BundleFormatError, match=f"{name}.*no such file"):
        Bundle.open(path)


def test_a_changed_file_is_named(path: Path) -> None:
    (path / "graphs" / "step.onnx").write_bytes(b"stop")
    with pytest.raises(BundleIntegrityError, match=r"step\.onnx: got sha256"):
        Bundle.open(path)
    Bundle.open(path, verify=False)


def test_a_cut_file_is_named_without_reading_it(path: Path) -> None:
    (path / "graphs" / "decode.onnx").write_bytes(b"deco")
    with pytest.raises(BundleIntegrityError, match=r"decode\.onnx: got 4 bytes"):
        Bundle.open(path, verify=False)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "graphs/../../secret", "a\\..\\b", "C:/secret", "", "."]
)
def test_a_name_may_not_lead_out(path: Path, name: str) -> None:
    (path.parent / "secret").write_text("x")
    change(path, setting("files", name, value={"sha256": "", "size": 1}))
    with pytest.raises(BundleFormatError):
        Bundle.open(path)
    seal(path)
    change(path, setting("graphs", "step", "file", value=name))
    with pytest.raises(BundleFormatError):
        Bundle.open(path)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_may_not_lead_out(path: Path) -> None:
    (path.parent / "secret").write_bytes(b"step")
    (path / "graphs" / "step.onnx").unlink()
    (path / "graphs" / "step.onnx").symlink_to(path.parent / "secret")
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
        setting("image", value=None),
        setting("image", "size", value=9),
        setting("image", "size", value=-8),
        setting("image", "pixel_range", value="0..255"),
        setting("image", "pixel_range", value=[0, 1]),
        setting("latent", "shape", value=[4, 2]),
        setting("latent", "shape", value=[4, 2, 3]),
        setting("condition_width", value=17),
        setting("graphs", value={}),
        setting("graphs", "step", "inputs", value=[]),
        setting("graphs", "step", "opset", value="new"),
        setting("schedule", value={}),
        setting("schedule", "timesteps", value=0),
        setting("sampling", "eta", value=2),
        setting("sampling", "spacing", value="wide"),
        setting("sampling", "num_inference_steps", value=0),
        setting("node_share", value=[1.0]),
        setting("node_share", value=["a", 1, 1, 1]),
        setting("node_share", value=None),
    ],
)
def test_a_manifest_that_contradicts_itself(path: Path, edit: Edit) -> None:
    change(path, edit)
    with pytest.raises(BundleFormatError):
        Bundle.open(path)


@pytest.mark.parametrize(
    "key", ["files", "image", "latent", "graphs", "denoiser", "schedule", "sampling"]
)
def test_a_missing_field(path: Path, key: str) -> None:
    change(path, lambda manifest: manifest.pop(key))
    with pytest.raises(BundleFormatError, match=key):
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


@pytest.mark.parametrize("name", ["tree.json", "parity.json"])
def test_every_file_must_have_a_hash(path: Path, name: str) -> None:
    change(path, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleFormatError, match=name):
        Bundle.open(path)


def test_all_faults_are_one_family(path: Path) -> None:
    shutil.rmtree(path)
    with pytest.raises(BundleError):
        Bundle.open(path)
    assert issubclass(BundleFormatError, ValueError)
