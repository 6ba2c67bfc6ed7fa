"""Two graphs that are written by hand and load in milliseconds: an assignment and a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from treediffusion.bundle import GraphSpec, TensorSpec

LEAVES = 4

ASSIGN = """
<ir_version: 10, opset_import: ["": 18]>
assign (float[B, 1, 8, 8] images) => (float[B, 4] leaf_prob) {
    flat = Flatten <axis = 1> (images)
    score = MatMul (flat, weight)
    leaf_prob = Softmax <axis = -1> (score)
}
"""
STEP = """
<ir_version: 10, opset_import: ["": 18]>
step (float[B, 1, 8, 8] x, float[B, 6] cond, int64[S] timesteps, float[S, 5] coef, int64[B] step,
      float[B, 1, 8, 8] noise) => (float[B, 1, 8, 8] x_next, float[B, 1, 8, 8] x0)
<int64[3] inner = {1, 2, 3}, int64[1] last = {1}, float scale = {0.005},
 float low = {-1.0}, float high = {1.0}> {
    time = Gather <axis = 0> (timesteps, step)
    seconds = Cast <to = 1> (time)
    pull = Mul (seconds, scale)
    tall = Unsqueeze (pull, inner)
    told = ReduceMean <keepdims = 0> (cond, last)
    shift = Unsqueeze (told, inner)
    moved = Add (x, shift)
    bent = Tanh (moved)
    found = Mul (bent, tall)
    row = Gather <axis = 0> (coef, step)
    a2, b2, c2, e2, tau2 = Split <axis = 1, num_outputs = 5> (row)
    two = Constant <value_ints = [2, 3]> ()
    a = Unsqueeze (a2, two)
    b = Unsqueeze (b2, two)
    c = Unsqueeze (c2, two)
    e = Unsqueeze (e2, two)
    tau = Unsqueeze (tau2, two)
    ax = Mul (a, x)
    bf = Mul (b, found)
    free = Sub (ax, bf)
    x0 = Clip (free, low, high)
    cx = Mul (c, x0)
    ef = Mul (e, found)
    clean = Add (cx, ef)
    added = Mul (tau, noise)
    x_next = Add (clean, added)
}
"""


def toy_graphs(folder: Path) -> Mapping[str, GraphSpec]:
    """Writes both, and describes them as a bundle does."""
    weight = np.random.default_rng(0).standard_normal((64, LEAVES), np.float32)
    found = {}
    for role, text in (("assign", ASSIGN), ("step", STEP)):
        model = onnx.parser.parse_model(text)
        if role == "assign":
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        onnx.checker.check_model(model)
        file = folder / f"{role}.onnx"
        file.write_bytes(model.SerializeToString())
        found[role] = GraphSpec(
            file, tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))
        )
    return found


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(side.dim_param or side.dim_value for side in kind.shape.dim)
    return TensorSpec(value.name, {1: "float32", 7: "int64"}[kind.elem_type], shape)
