"""A bundle: the folder that holds a trained model for use without PyTorch.

    manifest.json             format, shapes, graph sets, schedule, provenance, hashes of the rest
    manifest.sha256           the manifest's own hash
    tree.json                 the tree, see `TreeTopology.to_json`
    graphs/<set>/<role>.onnx  a graph per role, for each target and precision that was exported
    parity.json               how far each graph is from the model it was exported from

This is the reading side. It checks the version first, then hashes, then that manifest, tree and
graphs say the same, each before anything is allocated on its word, and executes nothing: JSON is
parsed, of graphs the interface is read. NumPy and the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .bundle_files import MANIFEST, SEAL, check_files, check_seal, inside, read_json
from .bundle_tensors import (
    CLIP_RANGE,
    PIXEL_RANGES,
    ROLES,
    Tensors,
    TensorSpec,
    Told,
    graph_tensors,
)
from .bundle_values import (
    ELEMENT_LIMIT,
    SIDE_LIMIT,
    WIDTH_LIMIT,
    Sampling,
    check_object,
    count,
    read_sampling,
    read_schedule,
    read_shares,
    read_told,
    read_topology,
    wrong,
)
from .errors import BundleError, BundleFormatError, BundleVersionError, ConfigError
from .onnx_wire import read_interface
from .schedule import DiffusionSchedule
from .topology import TreeTopology

__all__ = [
    "CLIP_RANGE",
    "DEFAULT_SET",
    "FORMAT",
    "KIND",
    "MANIFEST",
    "PARITY",
    "PIXEL_RANGES",
    "PRECISIONS",
    "ROLES",
    "SEAL",
    "TARGETS",
    "TREE",
    "Bundle",
    "GraphSet",
    "GraphSpec",
    "Precision",
    "Sampling",
    "Target",
    "TensorSpec",
    "Told",
    "graph_tensors",
]

Target = Literal["onnx-cpu", "onnx-gpu", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
TARGETS: tuple[Target, ...] = get_args(Target)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

FORMAT, KIND = 3, "treediffusion bundle"
TREE, PARITY = "tree.json", "parity.json"
DEFAULT_SET = "onnx-cpu-fp32"


@dataclass(frozen=True)
class GraphSpec:
    """A graph of the bundle.

    Attributes:
        file: the ONNX file; sets may share it.
        inputs: in order.
        outputs: in order.
    """

    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class GraphSet:
    """The graphs for one target at one precision. All take and give float32 and int64.

    Attributes:
        target: what they are meant for.
        precision: of the denoiser's arithmetic within the step; all else is float32 always.
        opset: version of the operators.
        batches: numbers of images that calls are expected to have.
        graphs: by role.
    """

    target: Target
    precision: Precision
    opset: int
    batches: tuple[int, ...]
    graphs: Mapping[str, GraphSpec]

    @property
    def name(self) -> str:
        """Target and precision."""
        return f"{self.target}-{self.precision}"


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
        sets: by name; at least one.
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
    sets: Mapping[str, GraphSet]
    told: Told
    sampling: Sampling
    node_share: NDArray[np.float64]

    @property
    def default_set(self) -> GraphSet:
        """The float32 set of ONNX Runtime on a CPU, or the first if there is none."""
        return self.sets.get(DEFAULT_SET) or next(iter(self.sets.values()))

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        """Those of the default set, by role."""
        return self.default_set.graphs

    def only(self, name: str) -> Bundle:
        """The same with one set, whose graphs are then `graphs`.

        Raises:
            ConfigError: the bundle has no such set.
        """
        if name not in self.sets:
            raise ConfigError(
                "graph set", got=repr(name), expected=f"one of {', '.join(self.sets)}",
                hint="export with --targets and --precision",
            )  # fmt: skip
        return replace(self, sets={name: self.sets[name]})

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Reads and checks a bundle.

        Args:
            path: the folder.
            verify: compare every file with its hash; without it, only their presence and size,
                and the manifest with its hash.

        Raises:
            BundleVersionError: written by a version with another format.
            BundleIntegrityError: a file is not the one that was written.
            BundleFormatError: no bundle, or one that is cut or contradicts itself.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        check_seal(path)
        check_files(path, manifest.get("files"), verify=verify)
        try:
            return _parse(path, manifest)
        except BundleError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as fault:
            raise BundleFormatError(
                str(path / MANIFEST),
                got=f"{type(fault).__name__}: {fault!s:.200}",
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
    manifest = read_json(file)
    if not isinstance(manifest, dict):
        raise BundleFormatError(str(file), got=type(manifest).__name__, expected="an object")
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        got = f"format {version!r:.40}"
        raise BundleFormatError(str(file), got=got, expected=f"format {FORMAT}", hint=hint)
    if version != FORMAT:
        newer = version > FORMAT
        raise BundleVersionError(
            str(file),
            got=f"format {version}, by {_producer(manifest)}",
            expected=f"format {FORMAT}",
            hint=f"{'upgrade treediffusion, or ' * newer}export the model with this version",
        )
    if manifest.get("kind") != KIND:
        got = f"kind {manifest.get('kind')!r:.40}"
        raise BundleFormatError(str(file), got=got, expected=f"kind {KIND!r}", hint=hint)
    return manifest


def _producer(manifest: Mapping[str, Any]) -> str:
    producer = manifest.get("producer")
    if not isinstance(producer, dict):
        return "an unknown producer"
    return f"{producer.get('name')!s:.40} {producer.get('version')!s:.40}"


def _parse(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    """The typed view of a manifest whose files are checked."""
    for name in (TREE, PARITY):
        _listed(manifest, name)
    topology = read_topology(path / TREE)
    schedule = read_schedule(manifest["schedule"])
    image, latent = manifest["image"], manifest["latent"]
    if image["pixel_range"] not in PIXEL_RANGES:
        expected = " or ".join(PIXEL_RANGES)
        raise wrong("image: pixel_range", image["pixel_range"], expected)
    side = count("image: size", image["size"], SIDE_LIMIT)
    image_shape = (count("image: channels", image["channels"], SIDE_LIMIT), side, side)
    pixel_range = PIXEL_RANGES[image["pixel_range"]]
    first, second, third = (count("latent: shape", n, WIDTH_LIMIT) for n in latent["shape"])
    told = read_told(manifest["denoiser"])
    tensors = graph_tensors(
        topology,
        image_shape,
        (first, second, third),
        condition_width=count("condition_width", manifest["condition_width"], WIDTH_LIMIT),
        timesteps=schedule.timesteps,
        pixel_range=pixel_range,
        told=told,
    )
    _check_tensors(manifest["tensors"], tensors)
    check_object("config", manifest["config"], "data")
    check_object("provenance", manifest["provenance"], "versions")
    return Bundle(
        path=path,
        manifest=manifest,
        topology=topology,
        schedule=schedule,
        image_shape=image_shape,
        pixel_range=pixel_range,
        latent_shape=(first, second, third),
        sets=_sets(path, manifest, tensors),
        told=told,
        sampling=read_sampling(manifest["sampling"]),
        node_share=read_shares(manifest["node_share"], topology.num_nodes),
    )


def _check_tensors(found: Mapping[str, Any], tensors: Tensors) -> None:
    """The manifest's inputs and outputs are those of its tree, images and latents."""
    if set(found) != set(ROLES):
        raise wrong("tensors", sorted(found), f"the roles {', '.join(ROLES)}")
    for role, both in tensors.items():
        for key, specs in zip(("inputs", "outputs"), both, strict=True):
            expected = [spec.to_dict() for spec in specs]
            if found[role][key] != expected:
                raise wrong(f"graph '{role}': {key}", found[role][key], f"{expected}")
            for spec in specs:
                size = math.prod(side for side in spec.shape if isinstance(side, int))
                if size > ELEMENT_LIMIT:
                    raise wrong(f"graph '{role}'", str(spec), f"at most {ELEMENT_LIMIT} elements")


def _sets(path: Path, manifest: Mapping[str, Any], tensors: Tensors) -> dict[str, GraphSet]:
    found = {}
    read: dict[tuple[str, str, int], GraphSpec] = {}
    for name, facts in manifest["sets"].items():
        target, precision = facts["target"], facts["precision"]
        known = target in TARGETS and precision in PRECISIONS
        if not known or name != f"{target}-{precision}":
            expected = f"a target of {', '.join(TARGETS)} and a precision"
            raise wrong("sets", f"{name!s:.80}: {target!r:.40}, {precision!r:.40}", expected)
        opset = count(f"sets: {name}: opset", facts["opset"], 1 << 10)
        batches = tuple(count(f"sets: {name}: batches", n, WIDTH_LIMIT) for n in facts["batches"])
        if set(facts["graphs"]) != set(ROLES):
            got = f"the graphs {', '.join(map(str, facts['graphs']))}"
            raise wrong(f"sets: {name}", got, f"a graph for each of {', '.join(ROLES)}")
        for role in ROLES:
            key = (role, facts["graphs"][role], opset)
            if key not in read:
                read[key] = _graph(path, manifest, *key, tensors)
        graphs = {role: read[role, facts["graphs"][role], opset] for role in ROLES}
        found[name] = GraphSet(target, precision, opset, batches, graphs)
    if not found:
        raise wrong("sets", "none", "at least one set of graphs")
    return found


def _graph(
    path: Path, manifest: Mapping[str, Any], role: str, name: str, opset: int, tensors: Tensors
) -> GraphSpec:
    """A graph whose file says what the manifest says."""
    file = inside(path, name)
    _listed(manifest, name)
    found, (inputs, outputs) = read_interface(file), tensors[role]
    for values, specs in ((found.inputs, inputs), (found.outputs, outputs)):
        expected = tuple((spec.name, spec.dtype, spec.shape) for spec in specs)
        if values != expected:
            raise BundleFormatError(
                str(file),
                got=", ".join(str(TensorSpec(*value)) for value in values)[:400],
                expected=", ".join(map(str, specs)),
                hint="export the model again",
            )
    if found.opset != opset:
        raise BundleFormatError(str(file), got=f"opset {found.opset}", expected=f"opset {opset}")
    return GraphSpec(file, inputs, outputs)


def _listed(manifest: Mapping[str, Any], name: str) -> None:
    if name not in manifest["files"]:
        raise wrong("files", f"no {name}", "it with its hash")
