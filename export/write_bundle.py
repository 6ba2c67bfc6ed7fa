"""A trained model as a bundle: ONNX graphs, the tree, a manifest, and the proof of parity.

The folder appears whole or not at all, and a second export of the same model with the same
versions gives the same bytes: no dates, no host, no path. See `bundle` for what is in it, and
`sets` for which graphs are made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import joblib

from .. import __version__
from ..bundle import DEFAULT_SET, FORMAT, KIND, MANIFEST, PARITY, SEAL, TREE
from ..bundle_files import seal_of
from ..diffusion.model import TreeDiffusion
from ..errors import BackendUnavailableError
from ..files import replace_directory
from ..optional import require
from .graphs import Graph, make_graphs, on_cpu
from .half import at_precision
from .phases import in_phases
from .provenance import provenance
from .sets import BATCHES, ONNX_RUNTIME_OPSET, PlannedFile, PlannedSet, plan_sets

if TYPE_CHECKING:
    from ..progress import Progress

DEFAULT_TARGETS, DEFAULT_PRECISIONS = ("onnx-cpu",), ("fp32",)
WORKERS = 2
"""Processes that trace graphs. The step is a third of it all, so a third process would wait."""
LARGE = 10_000_000
"""Weights of a denoiser whose graphs take so long that the start of those processes pays."""


def export_steps(
    targets: Sequence[str] = DEFAULT_TARGETS,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    batches: Sequence[int] = BATCHES,
) -> int:
    """By how much such an export advances its progress: a graph each, and the proof.

    Raises:
        ConfigError: a target, precision or batch that there is not, or not together.
    """
    return len(plan_sets(targets, precisions, batches)[1]) + 1


EXPORT_STEPS = export_steps()
"""The same of the default."""


def export_bundle(
    model: TreeDiffusion,
    out: Path,
    *,
    targets: Sequence[str] = DEFAULT_TARGETS,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    batches: Sequence[int] = BATCHES,
    progress: Progress | None = None,
) -> Path:
    """Writes a bundle and proves that it computes what the model computes.

    Args:
        model: on any device; it is left as it is.
        out: the folder; an older bundle there is replaced.
        targets: what the graphs are for, of `bundle.TARGETS`.
        precisions: of the denoiser's arithmetic, of `bundle.PRECISIONS`.
        batches: numbers of images that calls will have; engines are built for them.
        progress: advanced by `export_steps` in all.

    Returns:
        The folder.

    Raises:
        ConfigError: a target, precision or batch that there is not, or not together.
        DependencyError: onnx, onnxscript or onnxruntime is not installed.
        ParityError: a graph computes something else; nothing is written.
        CheckpointError: the folder cannot be written, or holds other files.
        BackendUnavailableError: a process that traced a graph was ended; nothing is written.
    """
    sets, files = plan_sets(targets, precisions, batches)
    for module, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "cpu")):
        require(module, extra=extra)
    from .parity import check

    out = Path(out)
    model = on_cpu(model)
    graphs = make_graphs(model)
    with replace_directory(out, marker=MANIFEST) as folder:
        for role in _export(graphs, files, folder):
            _advance(progress, f"export {role}")
        (folder / TREE).write_text(model.tree.topology.to_json(), "utf-8", newline="\n")
        manifest = _manifest(model, graphs, sets)
        # The proof reads the bundle through the runtime, so a manifest must be there before it.
        _write_json(folder / PARITY, {})
        _seal(folder, manifest)
        _write_json(folder / PARITY, check(folder, model, graphs, files))
        _seal(folder, manifest)
        _advance(progress, "compare")
    return out


def _export(
    graphs: Mapping[str, Graph], files: Sequence[PlannedFile], folder: Path
) -> Iterator[str]:
    """Writes the ONNX files, and gives the role of each that is done.

    Tracing is Python on one core. The step is the longest, so it is the first.
    """
    network = sum(weight.numel() for weight in graphs["step"].module.parameters())
    together = min(WORKERS, os.cpu_count() or 1) if network > LARGE else 1
    written = joblib.Parallel(together, return_as="generator_unordered", max_nbytes=None)(
        joblib.delayed(_write)(graphs[file.role], file, folder)
        for file in sorted(files, key=lambda file: file.role != "step")
    )
    try:
        yield from written
    except BrokenProcessPool as fault:
        raise BackendUnavailableError(
            "export", got="the end of a process that traced a graph",
            expected="memory for two of them, as a rule 1 GB each", hint="free some, and try again",
        ) from fault  # fmt: skip


def _write(graph: Graph, file: PlannedFile, folder: Path) -> str:
    from .to_onnx import to_onnx

    graph = at_precision(graph, file.precision)
    if file.opset == ONNX_RUNTIME_OPSET and file.precision == "fp32":
        graph = in_phases(graph)
    out = folder / file.name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(to_onnx(graph, opset=file.opset))
    return file.role


def _manifest(
    model: TreeDiffusion, graphs: Mapping[str, Graph], sets: Sequence[PlannedSet]
) -> dict[str, Any]:
    """Everything but the list of files."""
    channels, size, _ = model.tree.image_shape
    config = model.config.model_dump(mode="json")
    # Where the images lay is the machine's affair; the fingerprint tells which they were.
    config["data"] = PureWindowsPath(config["data"]).name
    # The default set is the first one for people, too.
    sets = sorted(sets, key=lambda each: each.name != DEFAULT_SET)
    return {
        "kind": KIND,
        "format": FORMAT,
        "producer": {"name": "treediffusion", "version": __version__},
        "provenance": provenance(),
        "image": {
            "channels": channels,
            "size": size,
            "pixel_range": model.config.diffusion.pixel_range,
        },
        "latent": {"shape": list(model.tree.latent_shape)},
        "condition_width": model.denoiser.unet.embed_dim,
        "denoiser": asdict(model.told),
        "tensors": {
            role: {
                "inputs": [spec.to_dict() for spec in graph.inputs],
                "outputs": [spec.to_dict() for spec in graph.outputs],
            }
            for role, graph in graphs.items()
        },
        "sets": {
            each.name: {
                "target": each.target,
                "precision": each.precision,
                "opset": each.opset,
                "batches": list(each.batches),
                "graphs": each.files,
            }
            for each in sets
        },
        "schedule": model.schedule.to_dict(),
        "sampling": config["sampling"],
        "node_share": [float(share) for share in model.node_share],
        "data_fingerprint": model.data_fingerprint,
        "config": config,
    }


def _seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest with hash and size of every other file, and then its own hash."""
    files = {
        file.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (MANIFEST, SEAL)
    }
    content = _json({**manifest, "files": files})
    (folder / MANIFEST).write_bytes(content)
    (folder / SEAL).write_bytes(seal_of(content).encode())


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_bytes(_json(value))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _advance(progress: Progress | None, description: str) -> None:
    if progress is not None:
        progress.advance(1, description)
