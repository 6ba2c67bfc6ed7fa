"""A trained model as a bundle: six ONNX graphs, the tree, a manifest, and the proof of parity.

The folder appears whole or not at all, and a second export of the same model with the same
versions gives the same bytes: no dates, no host, no path. See `bundle` for what is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..bundle import FORMAT, MANIFEST, PARITY, TREE
from ..diffusion.model import TreeDiffusion
from ..files import replace_directory
from ..optional import require
from .graphs import Graph, make_graphs, on_cpu

if TYPE_CHECKING:
    from ..progress import Progress

GRAPHS = "graphs/onnx-fp32"
EXPORT_STEPS = 7
"""By how much an export advances its progress: a graph each, and the proof."""


def export_bundle(model: TreeDiffusion, out: Path, *, progress: Progress | None = None) -> Path:
    """Writes a bundle and proves that it computes what the model computes.

    Args:
        model: on any device; it is left as it is.
        out: the folder; an older bundle there is replaced.
        progress: advanced by `EXPORT_STEPS` in all.

    Returns:
        The folder.

    Raises:
        DependencyError: onnx, onnxscript or onnxruntime is not installed.
        ParityError: a graph computes something else; nothing is written.
        CheckpointError: the folder cannot be written, or holds other files.
    """
    for module, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "cpu")):
        require(module, extra=extra)
    from .parity import check
    from .to_onnx import OPSET, to_onnx

    out = Path(out)
    model = on_cpu(model)
    graphs = make_graphs(model)
    with replace_directory(out, marker=MANIFEST) as folder:
        (folder / GRAPHS).mkdir(parents=True)
        for role, graph in graphs.items():
            (folder / GRAPHS / f"{role}.onnx").write_bytes(to_onnx(graph))
            _advance(progress, f"export {role}")
        (folder / TREE).write_text(model.tree.topology.to_json(), "utf-8", newline="\n")
        manifest = _manifest(model, graphs, OPSET)
        # The proof reads the bundle through the runtime, so a manifest must be there before it.
        _write_json(folder / PARITY, {})
        _write_json(folder / MANIFEST, manifest | {"files": _files(folder)})
        _write_json(folder / PARITY, check(folder, model, graphs))
        _write_json(folder / MANIFEST, manifest | {"files": _files(folder)})
        _advance(progress, "compare")
    return out


def _manifest(model: TreeDiffusion, graphs: Mapping[str, Graph], opset: int) -> dict[str, Any]:
    """Everything but the list of files."""
    channels, size, _ = model.tree.image_shape
    config = model.config.model_dump(mode="json")
    # Where the images lay is the machine's affair; the fingerprint tells which they were.
    config["data"] = PureWindowsPath(config["data"]).name
    return {
        "format": FORMAT,
        "producer": {"name": "treediffusion", "version": __version__},
        "image": {
            "channels": channels,
            "size": size,
            "pixel_range": model.config.diffusion.pixel_range,
        },
        "latent": {"shape": list(model.tree.latent_shape)},
        "condition_width": model.denoiser.unet.embed_dim,
        "denoiser": asdict(model.told),
        "graphs": {
            role: {
                "file": f"{GRAPHS}/{role}.onnx",
                "opset": opset,
                "inputs": [spec.to_dict() for spec in graph.inputs],
                "outputs": [spec.to_dict() for spec in graph.outputs],
            }
            for role, graph in graphs.items()
        },
        "schedule": model.schedule.to_dict(),
        "sampling": config["sampling"],
        "node_share": [float(share) for share in model.node_share],
        "data_fingerprint": model.data_fingerprint,
        "config": config,
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file but the manifest, by its name in the bundle."""
    return {
        file.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", "utf-8", newline="\n")


def _advance(progress: Progress | None, description: str) -> None:
    if progress is not None:
        progress.advance(1, description)
