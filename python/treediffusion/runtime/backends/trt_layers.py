"""What a build fused: read from its own account of the ONNX nodes and the engine's layers.

A layer of an engine names the ONNX nodes that it computes. Two nodes in one layer are fused; what
lies between them never reaches memory. That, and not the names of kernels, is counted here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NORMS = frozenset({"GroupNormalization", "InstanceNormalization"})
_NODE = re.compile(r"^Parsing node: (\S+) \[(\w+)\]")
_LAYER = re.compile(r"^Name: ([^,]+), LayerType: (\w+)")
_PREPARES = "_myl_Move_"
_COMPUTES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: a kernel or a call of a library.

    Attributes:
        name: the engine's.
        kind: the engine's word for who runs it.
        operators: [(node, operator)] of the ONNX nodes in it.
    """

    name: str
    kind: str
    operators: tuple[tuple[str, str], ...]

    def count(self, operator: str) -> int:
        """Nodes of an operator in it."""
        return sum(found == operator for _, found in self.operators)


@dataclass(frozen=True)
class Fusions:
    """Counts of an engine.

    Attributes:
        layers: of the engine.
        convolutions: ONNX nodes.
        norms: ONNX nodes.
        norms_whole: of these, computed by one layer.
        norms_with_silu: of these, by a layer that also computes a sigmoid.
        attentions: softmax nodes.
        attentions_fused: of these, in one layer with both matrix products.
    """

    layers: int
    convolutions: int
    norms: int
    norms_whole: int
    norms_with_silu: int
    attentions: int
    attentions_fused: int


def read_operators(said: Iterable[str]) -> dict[str, str]:
    """Operators of the ONNX nodes by their names.

    Args:
        said: of a build with `detailed`.
    """
    found = (_NODE.match(line) for line in _lines(said))
    return {node[1]: node[2] for node in found if node}


def read_layers(said: Iterable[str]) -> tuple[Layer, ...]:
    """The engine's layers.

    Args:
        said: of a build with `detailed`.
    """
    said = tuple(said)
    operators = read_operators(said)
    layers = []
    for line in _lines(said):
        if layer := _LAYER.match(line):
            nodes = dict.fromkeys(_COMPUTES.findall(line))
            known = tuple((name, operators[name]) for name in nodes if name in operators)
            layers.append(Layer(layer[1], layer[2], known))
    return tuple(layers)


def count_fusions(said: Iterable[str]) -> Fusions:
    """What was fused in an engine.

    Args:
        said: of a build with `detailed`.
    """
    said = tuple(said)
    operators, layers = read_operators(said), read_layers(said)
    homes: dict[str, list[Layer]] = {name: [] for name in operators}
    for layer in layers:
        # Clears the counters of a norm's kernel; it computes nothing.
        if _PREPARES not in layer.name:
            for name, _ in layer.operators:
                homes[name].append(layer)
    norms = [homes[name] for name, operator in operators.items() if operator in NORMS]
    whole = [where[0] for where in norms if len(where) == 1]
    softmaxes = [homes[name] for name, operator in operators.items() if operator == "Softmax"]
    return Fusions(
        layers=len(layers),
        convolutions=sum(operator == "Conv" for operator in operators.values()),
        norms=len(norms),
        norms_whole=len(whole),
        norms_with_silu=sum(layer.count("Sigmoid") > 0 for layer in whole),
        attentions=len(softmaxes),
        attentions_fused=sum(
            any(layer.count("MatMul") >= 2 for layer in where) for where in softmaxes
        ),
    )


def _lines(said: Iterable[str]) -> Iterator[str]:
    for message in said:
        yield from message.splitlines()
