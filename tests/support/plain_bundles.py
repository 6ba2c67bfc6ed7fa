"""Small bundles whose graphs have an interface and nothing in between, and how to change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from treediffusion.bundle import FORMAT, KIND, ROLES, TensorSpec, Told, graph_tensors
from treediffusion.bundle_files import seal_of
from treediffusion.schedule import DiffusionSchedule
from treediffusion.topology import TreeTopology

TREE = TreeTopology.of(["r", "r0", "r1", "r00"])
KEYS = ("inputs", "outputs")
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
Edit = Callable[[dict[str, Any]], None]


def plain_graph(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, opset: int = 18
) -> onnx.ModelProto:
    """A graph that has inputs and outputs, and no operators."""
    values = [
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], s.shape) for s in specs]
        for specs in (inputs, outputs)
    ]
    graph = helper.make_graph([], "graph", *values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def plain_bundle(folder: Path) -> Path:
    """Writes a bundle that opens, and that no back end could run."""
    place = folder / "graphs" / "onnx-cpu-fp32"
    place.mkdir(parents=True)
    tensors = graph_tensors(
        TREE, (1, 8, 8), (4, 2, 2), condition_width=16, timesteps=1000, pixel_range=(-1.0, 1.0),
        told=Told(),
    )  # fmt: skip
    for role in ROLES:
        (place / f"{role}.onnx").write_bytes(plain_graph(*tensors[role]).SerializeToString())
    (folder / "tree.json").write_text(TREE.to_json())
    (folder / "parity.json").write_text("{}")
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "producer": {"name": "treediffusion", "version": "0.1.0"},
        "provenance": {"commit": None, "versions": {}},
        "image": {"channels": 1, "size": 8, "pixel_range": "-1..1"},
        "latent": {"shape": [4, 2, 2]},
        "condition_width": 16,
        "denoiser": asdict(Told()),
        "tensors": {
            role: {
                key: [spec.to_dict() for spec in specs]
                for key, specs in zip(KEYS, both, strict=True)
            }
            for role, both in tensors.items()
        },
        "sets": {
            "onnx-cpu-fp32": {
                "target": "onnx-cpu",
                "precision": "fp32",
                "opset": 18,
                "batches": [1, 4],
                "graphs": {role: f"graphs/onnx-cpu-fp32/{role}.onnx" for role in ROLES},
            }
        },
        "schedule": DiffusionSchedule().to_dict(),
        "sampling": {
            "num_inference_steps": 50,
            "solver": "ddim",
            "spacing": "quadratic",
            "eta": 0.0,
            "guidance_scale": 1.0,
        },
        "node_share": [1.0, 0.5, 0.5, 0.5],
        "config": {"data": "digits"},
    }
    write_manifest(folder, manifest)
    seal(folder)
    return folder


def write_manifest(folder: Path, manifest: Any) -> None:
    """Writes a manifest and its hash."""
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_text(seal_of(content))


def seal(folder: Path) -> None:
    """Lists every file with its hash, as an exporter does."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"] = {
            f.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
                "size": f.stat().st_size,
            }
            for f in folder.rglob("*")
            if f.is_file() and not f.name.startswith("manifest.")
        }

    change(folder, edit)


def change(folder: Path, edit: Edit) -> None:
    """Edits the manifest, with its hash."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    write_manifest(folder, manifest)


def setting(*keys: Any, value: Any) -> Edit:
    """Puts a value in a place of the manifest."""

    def edit(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return edit
