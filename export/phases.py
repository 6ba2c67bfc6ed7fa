"""A step for ONNX Runtime and OpenVINO on a CPU: no map is enlarged before it is convolved."""

from __future__ import annotations

import copy
from dataclasses import replace

from ..nn.enlarge import Enlarge, InPhases
from .graphs import Graph


def in_phases(graph: Graph) -> Graph:
    """The graph with every enlarging convolution in phases; the weights are shared."""
    shared: dict[int, object] = {id(weight): weight for weight in graph.module.parameters()}
    module = copy.deepcopy(graph.module, shared)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Enlarge):
                setattr(parent, name, InPhases(child))
    return replace(graph, module=module)
