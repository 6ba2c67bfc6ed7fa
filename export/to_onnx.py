"""A graph as the bytes of an ONNX model, the same bytes every time.

The exporter notes the source line of every node, with the absolute paths of the machine it ran on.
All metadata and documentation is removed, so that equal models give equal files.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript import optimizer
from torch import Tensor

from .graphs import Graph

# One would be taken for a constant, and two sizes must differ to stay apart.
EXAMPLE_SIZES = {"B": 2, "S": 3}
LARGE = 1 << 24
"""Elements of a constant that is worked out beforehand: no layer's weights have more."""
NOTES = ("metadata_props", "doc_string")


def to_onnx(graph: Graph, *, opset: int) -> bytes:
    """Exports a graph.

    Args:
        graph: a module in eval mode on the CPU.
        opset: version of the operators; see `sets`.

    Returns:
        The ONNX model, with its symbolic sizes named as in the graph's specs.
    """
    feeds = {spec.name: _example(spec.dtype, spec.shape) for spec in graph.inputs}
    graph.run(feeds)  # fills caches of constants with real tensors before tracing
    sizes = {name: torch.export.Dim(name, min=1) for name in EXAMPLE_SIZES}
    shapes = tuple(
        {axis: sizes[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in graph.inputs
    )
    with _quiet(), _without_gc(), torch.no_grad():
        # Traced apart: given a module, the exporter would fix a size that it cannot keep open.
        traced = torch.export.export(
            graph.module, tuple(feeds.values()), dynamic_shapes=shapes, strict=False
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            optimize=False,
            opset_version=opset,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
        )
        assert program is not None
        _simplify(program.model)
    proto = program.model_proto
    _strip(proto)
    _strip_graph(proto.graph)
    _name_sizes(proto.graph, graph)
    for found, specs in ((proto.graph.input, graph.inputs), (proto.graph.output, graph.outputs)):
        assert [_signature(value) for value in found] == [(s.name, s.shape) for s in specs], (
            list(map(_signature, found)),
            specs,
        )
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _simplify(model: Any) -> None:
    """What the exporter would do, in an order that spares time.

    First without the rules, whose cost grows as a graph's square; then the rules once and not
    twice, as all that they leave are identities.
    """
    optimizer.inline(model)
    optimizer.fold_constants(model, input_size_limit=LARGE, output_size_limit=LARGE)
    optimizer.remove_unused_nodes(model)
    optimizer.optimize(model, num_iterations=1)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _example(dtype: str, shape: tuple[int | str, ...]) -> Tensor:
    sides = [EXAMPLE_SIZES[side] if isinstance(side, str) else side for side in shape]
    return torch.zeros(sides, dtype=getattr(torch, dtype))


def _name_sizes(proto: onnx.GraphProto, graph: Graph) -> None:
    """Gives the symbols of tracing, such as s77, the names they have in the specs."""
    names = {
        side.dim_param: size
        for value, spec in zip(proto.input, graph.inputs, strict=True)
        for side, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True)
        if side.dim_param
    }
    for value in (*proto.input, *proto.output, *proto.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in names:
                side.dim_param = str(names[side.dim_param])


def _signature(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    sides = value.type.tensor_type.shape.dim
    return value.name, tuple(side.dim_param or side.dim_value for side in sides)


def _strip(part: object) -> None:
    for field in NOTES:
        if hasattr(part, field):
            part.ClearField(field)  # type: ignore[attr-defined]


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip(graph)
    for part in _parts(graph):
        _strip(part)
    for node in graph.node:
        for attribute in node.attribute:
            _strip(attribute)
            for below in (attribute.g, *attribute.graphs):
                if below.ByteSize():
                    _strip_graph(below)


def _parts(graph: onnx.GraphProto) -> Iterator[object]:
    yield from graph.node
    yield from graph.input
    yield from graph.output
    yield from graph.value_info
    yield from graph.initializer


@contextmanager
def _without_gc() -> Iterator[None]:
    """Tracing makes millions of objects that all stay; looking through them is a tenth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own internals as warnings; what matters is checked by parity."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
