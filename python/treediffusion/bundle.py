"""A bundle: the folder that holds a trained model for use without PyTorch.

    manifest.json             format, producer, shapes, graphs, schedule, hashes of the rest
    tree.json                 the tree, see `TreeTopology.to_json`
    graphs/onnx-fp32/*.onnx   one graph per role
    parity.json               how far each graph is from the model it was exported from

This is the reading side. It checks the version first, then every file's hash, then the shapes, and
executes nothing: JSON is parsed, graphs are only located. NumPy and the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from .errors import (
    BundleFormatError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
    TopologyError,
)
from .schedule import DiffusionSchedule, Spacing
from .signals import Reconstruction, Signal, leaf_slots, reads_latents
from .solvers import SOLVERS, Prediction
from .topology import TreeTopology

FORMAT = 2
MANIFEST, TREE, PARITY = "manifest.json", "tree.json", "parity.json"
ROLES = ("assign", "path", "posterior", "condition", "step", "decode")
PIXEL_RANGES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}
# The estimate of x0 is limited to this whatever the pixel range, as published.
CLIP_RANGE = (-1.0, 1.0)


@dataclass(frozen=True)
class Told:
    """What the denoiser is told of the tree, and what it gives.

    Attributes:
        signal: what of the tree is its condition.
        reconstruction: how it sees TreeVAE's image of the leaf.
        prediction: the noise, or v.
        guidance: what its training left out: nothing, whole signals, or their levels, too.
    """

    signal: Signal = "path"
    reconstruction: Reconstruction = "none"
    prediction: Prediction = "eps"
    guidance: Literal["none", "whole", "levels"] = "none"


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output of a graph.

    Attributes:
        name: as in the ONNX file.
        dtype: NumPy's name of it.
        shape: sizes; a letter stands for one that may vary.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def graph_tensors(
    topology: TreeTopology,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    *,
    condition_width: int,
    told: Told,
) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """What every role takes and gives, for a model of these sizes.

    Args:
        topology: the tree.
        image_shape: (C, H, W).
        latent_shape: (Z, R, R).
        condition_width: E.
        told: what the denoiser is told of the tree.

    Returns:
        Inputs and outputs in order, by role.
    """
    of_tree = (topology.num_nodes, *latent_shape)
    slots, leaves = leaf_slots(topology, told.signal).ids.shape[1], topology.num_leaves
    images, noise, z = _rows("images", *image_shape), _rows("noise", *of_tree), _rows("z", *of_tree)
    leaf_prob, cond = _rows("leaf_prob", leaves), _rows("cond", condition_width)
    z_path = _rows("z_path", slots, math.prod(latent_shape))
    nodes = TensorSpec("nodes", "int64", ("B", slots))
    seen = (_rows("reconstruction", *image_shape),) if told.reconstruction != "none" else ()
    step = (
        _rows("x", *image_shape),
        cond,
        TensorSpec("timesteps", "int64", ("S",)),
        TensorSpec("coef", "float32", ("S", 5)),
        TensorSpec("step", "int64", ("B",)),
        _rows("noise", *image_shape),
        *seen,
    )
    latents = (z_path,) if reads_latents(told.signal) else ()
    return {
        "assign": ((images,), (leaf_prob,)),
        "path": ((noise,), (z, _rows("p_left", len(topology.routers)))),
        "posterior": ((images, noise), (z, leaf_prob)),
        "condition": ((*latents, nodes), (cond,)),
        "step": (step, (_rows("x_next", *image_shape), _rows("x0", *image_shape))),
        "decode": ((z,), (_rows("images", leaves, *image_shape),)),
    }


def _rows(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("B", *shape))


@dataclass(frozen=True)
class GraphSpec:
    """A graph of the bundle.

    Attributes:
        file: the ONNX file.
        opset: its operator set.
        inputs: in order.
        outputs: in order.
    """

    file: Path
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn unless a call says otherwise."""

    num_inference_steps: int
    solver: str
    spacing: Spacing
    eta: float
    guidance_scale: float | tuple[float, ...]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        path: the folder.
        manifest: everything in manifest.json.
        topology: the tree.
        schedule: of the noise.
        image_shape: (C, H, W).
        pixel_range: lowest and highest pixel as the denoiser sees it.
        latent_shape: (Z, R, R) of every node.
        graphs: by role.
        told: what the denoiser is told of the tree.
        sampling: defaults.
        node_share: [N] float64, share of the training images that reach each node.
    """

    path: Path
    manifest: Mapping[str, Any]
    topology: TreeTopology
    schedule: DiffusionSchedule
    image_shape: tuple[int, int, int]
    pixel_range: tuple[float, float]
    latent_shape: tuple[int, int, int]
    graphs: Mapping[str, GraphSpec]
    told: Told
    sampling: Sampling
    node_share: NDArray[np.float64]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Reads and checks a bundle.

        Args:
            path: the folder.
            verify: compare every file with its hash; without it, only their presence and size.

        Raises:
            BundleVersionError: written by a version with another format.
            BundleIntegrityError: a file is not the one that was written.
            BundleFormatError: no bundle, or one that is cut or contradicts itself.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        _check_files(path, manifest, verify=verify)
        try:
            return _parse(path, manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            if isinstance(fault, BundleFormatError):
                raise
            raise BundleFormatError(
                str(path / MANIFEST),
                got=f"{type(fault).__name__}: {fault}",
                expected=f"the fields of format {FORMAT}",
                hint="export the model again",
            ) from fault


def _read_manifest(path: Path) -> dict[str, Any]:
    hint = "give the folder that treediffusion-export wrote"
    if not path.is_dir():
        got = "a file" if path.exists() else "no such folder"
        raise BundleFormatError(str(path), got=got, expected="a bundle's folder", hint=hint)
    file = path / MANIFEST
    if not file.is_file():
        raise BundleFormatError(str(path), got=f"no {MANIFEST}", expected="one", hint=hint)
    manifest = _read_json(file)
    if not isinstance(manifest, dict):
        raise BundleFormatError(str(file), got=type(manifest).__name__, expected="an object")
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleFormatError(str(file), got=f"format {version!r}", expected=f"format {FORMAT}")
    if version != FORMAT:
        newer = version > FORMAT
        raise BundleVersionError(
            str(file),
            got=f"format {version}, by {_producer(manifest)}",
            expected=f"format {FORMAT}",
            hint=f"{'upgrade treediffusion, or ' * newer}export the model with this version",
        )
    return manifest


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise BundleFormatError(
            str(file), got=f"unreadable text ({fault})", expected="JSON", hint="copy it again"
        ) from fault


def _producer(manifest: Mapping[str, Any]) -> str:
    producer = manifest.get("producer")
    if not isinstance(producer, dict):
        return "an unknown producer"
    return f"{producer.get('name')} {producer.get('version')}"


def _check_files(path: Path, manifest: Mapping[str, Any], *, verify: bool) -> None:
    """Every listed file is inside the bundle and is the one that was written."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise BundleFormatError(
            str(path / MANIFEST), got=f"files {files!r}", expected="each file's sha256 and size"
        )
    for name, facts in files.items():
        file = _inside(path, name)
        if not isinstance(facts, dict) or {"sha256", "size"} - set(facts):
            raise BundleFormatError(
                f"{MANIFEST}: files: {name}", got=repr(facts), expected="its sha256 and size"
            )
        if not file.is_file():
            raise BundleFormatError(
                str(file), got="no such file", expected="the file of the manifest",
                hint="copy the whole folder again",
            )  # fmt: skip
        size = file.stat().st_size
        if size != facts["size"]:
            raise _not_the_one(file, f"{size} bytes", f"{facts['size']} bytes")
        if verify and (found := _sha256(file)) != facts["sha256"]:
            raise _not_the_one(file, f"sha256 {found}", f"sha256 {facts['sha256']}")


def _inside(path: Path, name: object) -> Path:
    """The file of a name in the manifest, which may not lead out of the bundle.

    Raises:
        BundleFormatError: it does, or is no plain relative name.
    """
    pure = PurePosixPath(str(name))
    plain = isinstance(name, str) and "\\" not in name and ":" not in name and "\0" not in name
    if not plain or not pure.parts or pure.is_absolute() or ".." in pure.parts:
        raise BundleFormatError(
            f"{MANIFEST}: files", got=repr(name), expected="a relative name inside the bundle"
        )
    file = path.joinpath(*pure.parts)
    if not file.resolve().is_relative_to(path.resolve()):
        raise BundleFormatError(str(file), got="a link out of the bundle", expected="a file in it")
    return file


def _not_the_one(file: Path, got: str, expected: str) -> BundleIntegrityError:
    return BundleIntegrityError(
        str(file), got=got, expected=expected, hint="copy or export the bundle again"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    """The typed view of a manifest whose files are checked."""
    for name in (TREE, PARITY):
        _listed(manifest, name)
    try:
        topology = TreeTopology.from_json((path / TREE).read_text("utf-8"), source=path / TREE)
    except (TopologyError, UnicodeDecodeError) as fault:
        raise BundleFormatError(str(path / TREE), got=str(fault), expected="a tree") from fault
    try:
        schedule = DiffusionSchedule.from_dict(manifest["schedule"])
    except ConfigError as fault:
        raise BundleFormatError(
            f"{MANIFEST}: schedule", got=str(fault), expected="a noise schedule"
        ) from fault
    image, latent = manifest["image"], manifest["latent"]
    if image["pixel_range"] not in PIXEL_RANGES:
        expected = " or ".join(PIXEL_RANGES)
        raise BundleFormatError(
            f"{MANIFEST}: pixel_range", got=repr(image["pixel_range"]), expected=expected
        )
    bundle = Bundle(
        path=path,
        manifest=manifest,
        topology=topology,
        schedule=schedule,
        image_shape=(_count(image["channels"]), _count(image["size"]), _count(image["size"])),
        pixel_range=PIXEL_RANGES[image["pixel_range"]],
        latent_shape=_three(latent["shape"]),
        graphs={role: _graph(path, manifest, role) for role in ROLES},
        told=_told(manifest["denoiser"]),
        sampling=_sampling(manifest["sampling"]),
        node_share=np.array(manifest["node_share"], np.float64),
    )
    _check_shapes(bundle, _count(manifest["condition_width"]))
    return bundle


def _listed(manifest: Mapping[str, Any], name: str) -> None:
    if name not in manifest["files"]:
        raise BundleFormatError(f"{MANIFEST}: files", got=f"no {name}", expected="it with its hash")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BundleFormatError(MANIFEST, got=repr(value), expected="a size of at least 1")
    return value


def _three(values: Any) -> tuple[int, int, int]:
    first, second, third = (_count(value) for value in values)
    return first, second, third


def _graph(path: Path, manifest: Mapping[str, Any], role: str) -> GraphSpec:
    if role not in manifest["graphs"]:
        raise BundleFormatError(f"{MANIFEST}: graphs", got=f"no '{role}'", expected="it")
    facts = manifest["graphs"][role]
    file = _inside(path, facts["file"])
    _listed(manifest, facts["file"])
    inputs, outputs = (
        tuple(TensorSpec(str(t["name"]), str(t["dtype"]), tuple(t["shape"])) for t in facts[key])
        for key in ("inputs", "outputs")
    )
    return GraphSpec(file, _count(facts["opset"]), inputs, outputs)


def _told(values: Mapping[str, Any]) -> Told:
    names = {field.name for field in fields(Told)}
    if set(values) != names:
        raise BundleFormatError(
            f"{MANIFEST}: denoiser", got=sorted(values), expected=f"the keys {sorted(names)}"
        )
    told = Told(**values)
    for field in fields(Told):
        known = get_args(get_type_hints(Told)[field.name])
        if getattr(told, field.name) not in known:
            raise BundleFormatError(
                f"{MANIFEST}: denoiser: {field.name}",
                got=repr(getattr(told, field.name)),
                expected=f"one of {', '.join(known)}",
            )
    return told


def _sampling(values: Mapping[str, Any]) -> Sampling:
    eta, scale = float(values["eta"]), values["guidance_scale"]
    known = values["spacing"] in get_args(Spacing) and values["solver"] in SOLVERS
    if not known or not 0.0 <= eta <= 1.0:
        raise BundleFormatError(
            f"{MANIFEST}: sampling",
            got=repr(values),
            expected="a known solver and spacing, eta in 0..1",
        )
    steps = _count(values["num_inference_steps"])
    scale = tuple(map(float, scale)) if isinstance(scale, list) else float(scale)
    return Sampling(steps, values["solver"], values["spacing"], eta, scale)


def _check_shapes(bundle: Bundle, width: int) -> None:
    """Tree, images and latents are those of every graph, and the shares those of the tree."""
    tree = bundle.topology
    expected = graph_tensors(
        tree, bundle.image_shape, bundle.latent_shape, condition_width=width, told=bundle.told
    )
    for role, (inputs, outputs) in expected.items():
        graph = bundle.graphs[role]
        for found, right in ((graph.inputs, inputs), (graph.outputs, outputs)):
            if found != right:
                raise BundleFormatError(
                    f"{MANIFEST}: graph '{role}'",
                    got=", ".join(map(str, found)),
                    expected=", ".join(map(str, right)),
                )
    share = bundle.node_share
    if share.shape != (tree.num_nodes,) or not np.all(np.isfinite(share)):
        raise BundleFormatError(
            f"{MANIFEST}: node_share",
            got=f"shape {list(share.shape)}",
            expected=f"{tree.num_nodes} finite numbers",
        )
