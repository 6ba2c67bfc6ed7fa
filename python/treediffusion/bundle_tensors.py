"""What the graphs of a bundle take and give: names, types, sizes and ranges, by role.

    assign      images             -> leaf_prob
    path        noise              -> z, p_left
    posterior   images, noise      -> z, leaf_prob
    condition   z_path, nodes      -> cond
    step        x, cond, timesteps, coef, step, noise -> x_next, x0; what else the denoiser sees
    decode      z                  -> images

The tree, the sizes of images and latents and what the denoiser is told decide everything, so that
an exporter writes and a reader checks the same table. All floats are float32, whatever a graph
computes in. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from .signals import Reconstruction, Signal, leaf_slots, reads_latents
from .solvers import Prediction
from .topology import TreeTopology

ROLES = ("assign", "path", "posterior", "condition", "step", "decode")
PIXEL_RANGES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0)}
# The estimate of x0 is limited to this whatever the pixel range, as published.
CLIP_RANGE = (-1.0, 1.0)

Range = tuple[float | None, float | None]
"""Least and largest value; None where there is no limit."""
FREE: Range = (None, None)
UNIT: Range = (0.0, 1.0)


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
        range: of its values.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    range: Range = FREE

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "range": list(self.range),
        }


Tensors = dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]
"""Inputs and outputs in order, by role."""


def graph_tensors(
    topology: TreeTopology,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    *,
    condition_width: int,
    timesteps: int,
    pixel_range: tuple[float, float],
    told: Told,
) -> Tensors:
    """What every role takes and gives, for a model of these sizes.

    Args:
        topology: the tree.
        image_shape: (C, H, W).
        latent_shape: (Z, R, R).
        condition_width: E.
        timesteps: T.
        pixel_range: of pixels as the denoiser sees them.
        told: what the denoiser is told of the tree.
    """
    of_tree = (topology.num_nodes, *latent_shape)
    leaves, ids = topology.num_leaves, leaf_slots(topology, told.signal).ids
    slots = ids.shape[1]
    images = _rows("images", *image_shape, range=UNIT)
    noise, z = _rows("noise", *of_tree), _rows("z", *of_tree)
    leaf_prob = _rows("leaf_prob", leaves, range=UNIT)
    p_left = _rows("p_left", len(topology.routers), range=UNIT)
    cond = _rows("cond", condition_width)
    z_path = _rows("z_path", slots, math.prod(latent_shape))
    nodes = TensorSpec("nodes", "int64", ("B", slots), (-1.0, float(ids.max())))
    seen = (_rows("reconstruction", *image_shape, range=pixel_range),)
    step = (
        _rows("x", *image_shape),
        cond,
        TensorSpec("timesteps", "int64", ("S",), (0.0, float(timesteps - 1))),
        TensorSpec("coef", "float32", ("S", 5)),
        TensorSpec("step", "int64", ("B",), (0.0, None)),
        _rows("noise", *image_shape),
        *(seen if told.reconstruction != "none" else ()),
    )
    x0 = _rows("x0", *image_shape, range=CLIP_RANGE)
    latents = (z_path,) if reads_latents(told.signal) else ()
    return {
        "assign": ((images,), (leaf_prob,)),
        "path": ((noise,), (z, p_left)),
        "posterior": ((images, noise), (z, leaf_prob)),
        "condition": ((*latents, nodes), (cond,)),
        "step": (step, (_rows("x_next", *image_shape), x0)),
        "decode": ((z,), (_rows("images", leaves, *image_shape, range=UNIT),)),
    }


def _rows(name: str, *shape: int, range: Range = FREE) -> TensorSpec:
    return TensorSpec(name, "float32", ("B", *shape), range)
