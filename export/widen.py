"""A half-precision ONNX graph with its numbers as float32, so that any back end can compute it.

Weights keep the values that they were rounded to, casts to half become casts to float32, and
nothing else changes. What such a graph computes is what a module with rounded weights computes in
float32, to float32's own rounding: a proof of weights and structure where no kernels are.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widen(data: bytes) -> bytes:
    """The same graph in float32, as the bytes of a model."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
    for value in graph.value_info:
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    widened: bytes = model.SerializeToString()
    return widened


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in HALVES:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
