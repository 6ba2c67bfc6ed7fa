"""Values of a manifest as what they mean, or the error that says why not.

Every number has a limit, far beyond any model of this kind and little enough that a table of so
many rows is no burden, and is compared with it before anything is made of it. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from .bundle_files import MANIFEST, read_json, read_text
from .bundle_tensors import Told
from .errors import BundleFormatError, ConfigError, TopologyError
from .schedule import DiffusionSchedule, Spacing
from .solvers import SOLVERS
from .topology import TreeTopology

SIDE_LIMIT, WIDTH_LIMIT, STEP_LIMIT, NODE_LIMIT, DEPTH_LIMIT = 4096, 1 << 16, 100_000, 4096, 64
ELEMENT_LIMIT = 1 << 26
"""Of one image's part in any tensor that a graph takes or gives."""


@dataclass(frozen=True)
class Sampling:
    """How images are drawn unless a call says otherwise."""

    num_inference_steps: int
    solver: str
    spacing: Spacing
    eta: float
    guidance_scale: float | tuple[float, ...]


def read_topology(file: Path) -> TreeTopology:
    """The tree of a file.

    Raises:
        BundleFormatError: it has none, or one that is larger than the limits.
    """
    read_json(file)
    try:
        topology = TreeTopology.from_json(read_text(file), source=file)
    except TopologyError as fault:
        raise BundleFormatError(str(file), got=str(fault)[:400], expected="a tree") from fault
    if topology.num_nodes > NODE_LIMIT or topology.max_depth > DEPTH_LIMIT:
        got = f"{topology.num_nodes} nodes, {topology.max_depth} levels deep"
        expected = f"at most {NODE_LIMIT} nodes and {DEPTH_LIMIT} levels"
        raise BundleFormatError(str(file), got=got, expected=expected)
    return topology


def read_schedule(values: Mapping[str, Any]) -> DiffusionSchedule:
    """The noise schedule of its plain values."""
    count("schedule: timesteps", values["timesteps"], STEP_LIMIT)
    try:
        return DiffusionSchedule.from_dict(values)
    except ConfigError as fault:
        raise wrong("schedule", str(fault), "a noise schedule") from fault


def read_told(values: Mapping[str, Any]) -> Told:
    """What the denoiser is told, of its plain values."""
    names = {field.name for field in fields(Told)}
    if set(values) != names:
        raise wrong("denoiser", sorted(values), f"the keys {sorted(names)}")
    for field in fields(Told):
        known = get_args(get_type_hints(Told)[field.name])
        if values[field.name] not in known:
            expected = f"one of {', '.join(known)}"
            raise wrong(f"denoiser: {field.name}", values[field.name], expected)
    return Told(**values)


def read_sampling(values: Mapping[str, Any]) -> Sampling:
    """The defaults of drawing."""
    eta, scale = float(values["eta"]), values["guidance_scale"]
    known = values["spacing"] in get_args(Spacing) and values["solver"] in SOLVERS
    if not known or not 0.0 <= eta <= 1.0:
        raise wrong("sampling", values, "a known solver and spacing, eta in 0..1")
    steps = count("sampling: num_inference_steps", values["num_inference_steps"], STEP_LIMIT)
    scale = tuple(map(float, scale)) if isinstance(scale, list) else float(scale)
    return Sampling(steps, values["solver"], values["spacing"], eta, scale)


def read_shares(values: Any, nodes: int) -> NDArray[np.float64]:
    """[N] float64, shares of the images."""
    if not isinstance(values, list) or len(values) != nodes:
        raise wrong("node_share", values, f"{nodes} numbers")
    share = np.array([float(value) for value in values], np.float64)
    if not np.all((share >= 0.0) & (share <= 1.0 + 1e-6)):
        raise wrong("node_share", values, "shares in 0..1")
    return share


def check_object(name: str, value: object, key: str) -> None:
    """Refuses what is no object with a key."""
    if not isinstance(value, dict) or key not in value:
        raise wrong(name, value, f"an object with {key!r}")


def count(name: str, value: object, limit: int) -> int:
    """A size, checked against its limit."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise wrong(name, value, f"a number from 1 to {limit}")
    return value


def wrong(name: str, got: object, expected: str) -> BundleFormatError:
    """The error of a value of the manifest."""
    shown = got if isinstance(got, str) else repr(got)
    return BundleFormatError(
        f"{MANIFEST}: {name[:200]}", got=shown[:400], expected=expected[:800],
        hint="export the model again",
    )  # fmt: skip
