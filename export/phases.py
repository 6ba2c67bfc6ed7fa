"""A step for ONNX Runtime and OpenVINO on a CPU: no map is enlarged before it is convolved."""

from __future__ import annotations

from dataclasses import replace

from ..nn.enlarge import Enlarge, InPhases
from ..nn.twin import twin
from .graphs import Graph


def in_phases(graph: Graph) -> Graph:
    """The graph with every enlarging convolution in phases; the weights are shared."""
    return replace(graph, module=twin(graph.module, {Enlarge: InPhases}))
