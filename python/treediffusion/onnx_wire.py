"""An ONNX file's interface, read from its bytes without the library that would load it.

A protocol buffer is a list of fields, each a number with a varint or with bytes; a message in it is
such bytes again. That suffices to see what a graph takes and gives, and to refuse what a graph of
ours never has: weights in other files, operators of other domains, functions of its own. The file
is mapped and weights are skipped, so that nothing large is read. Operators are not checked: a
back end does that when it loads the graph.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleFormatError

# Field numbers of onnx.proto, by message.
MODEL_GRAPH, MODEL_OPSET, MODEL_FUNCTIONS = 7, 8, 25
OPSET_DOMAIN, OPSET_VERSION = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_SPARSE = 1, 5, 11, 12, 15
NODE_ATTRIBUTE, NODE_DOMAIN = 5, 7
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE = 1, 2, 1, 1, 2
SHAPE_SIDE, SIDE_SIZE, SIDE_NAME = 1, 1, 2

DTYPES = {1: "float32", 7: "int64"}
OWN_DOMAINS = (b"", b"ai.onnx")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEPTH = 8
"""Of graphs within graphs."""

Value = tuple[str, str, tuple[int | str, ...]]
"""Name, NumPy's name of the type, and sizes."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Interface:
    """What a graph takes and gives.

    Attributes:
        opset: version of the operators.
        inputs: in order.
        outputs: in order.
    """

    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_interface(file: Path) -> Interface:
    """The interface of an ONNX file.

    Raises:
        BundleFormatError: it is no ONNX file, cut, or has what a graph of ours never has.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as m:
            return _Reader(m).model()
    except (OSError, ValueError, IndexError, KeyError) as fault:
        raise BundleFormatError(
            str(file),
            got=f"{fault}" or type(fault).__name__,
            expected="an ONNX graph by itself, of ONNX's own operators",
            hint="export the model again",
        ) from fault


class _Reader:
    """Walks the messages of a buffer; every method raises ValueError, IndexError or KeyError."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer

    def model(self) -> Interface:
        graphs, opsets = [], {}
        for field, value in self.fields((0, len(self.buffer))):
            if field == MODEL_GRAPH:
                graphs.append(_span(value))
            elif field == MODEL_OPSET:
                domain, version = self.opset(_span(value))
                opsets[domain] = version
            elif field == MODEL_FUNCTIONS:
                raise ValueError("functions beside the graph")
        if len(graphs) != 1 or not 0 < opsets.get(b"", 0) < 1 << 16 or len(opsets) != 1:
            raise ValueError(f"{len(graphs)} graphs, of the domains {sorted(opsets)!r:.200}")
        values: dict[int, list[Value]] = {GRAPH_INPUT: [], GRAPH_OUTPUT: []}
        self.graph(graphs[0], values, DEPTH)
        return Interface(opsets[b""], tuple(values[GRAPH_INPUT]), tuple(values[GRAPH_OUTPUT]))

    def opset(self, span: Span) -> tuple[bytes, int]:
        domain, version = b"", 0
        for field, value in self.fields(span):
            if field == OPSET_DOMAIN:
                domain = self.bytes(_span(value))
            elif field == OPSET_VERSION:
                version = _int(value)
        return (b"" if domain in OWN_DOMAINS else domain), version

    def graph(self, span: Span, values: dict[int, list[Value]] | None, depth: int) -> None:
        """Checks a graph; collects the outermost one's values."""
        if not depth:
            raise ValueError("graphs within graphs")
        for field, value in self.fields(span):
            if field == GRAPH_INITIALIZER:
                self.tensor(_span(value))
            elif field == GRAPH_NODE:
                self.node(_span(value), depth)
            elif field == GRAPH_SPARSE:
                raise ValueError("sparse weights")
            elif values is not None and field in values:
                values[field].append(self.value(_span(value)))

    def node(self, span: Span, depth: int) -> None:
        for field, value in self.fields(span):
            if field == NODE_DOMAIN and self.bytes(_span(value)) not in OWN_DOMAINS:
                raise ValueError("an operator of another domain")
            if field == NODE_ATTRIBUTE:
                for kind, part in self.fields(_span(value)):
                    if kind in ATTRIBUTE_TENSORS:
                        self.tensor(_span(part))
                    elif kind in ATTRIBUTE_GRAPHS:
                        self.graph(_span(part), None, depth - 1)
                    elif kind in ATTRIBUTE_SPARSE:
                        raise ValueError("sparse weights")

    def tensor(self, span: Span) -> None:
        for field, value in self.fields(span):
            if field == TENSOR_EXTERNAL or (field == TENSOR_LOCATION and value != 0):
                raise ValueError("weights in another file")

    def value(self, span: Span) -> Value:
        """A value that is a tensor, with its last name and type, as the format asks."""
        name, dtype, shape = b"", 0, None
        for field, value in self.fields(span):
            if field == VALUE_NAME:
                name = self.bytes(_span(value))
            elif field == VALUE_TYPE:
                for kind, tensor in self.fields(_span(value)):
                    if kind != TYPE_TENSOR:
                        continue
                    for part, found in self.fields(_span(tensor)):
                        if part == TENSOR_ELEMENT:
                            dtype = _int(found)
                        elif part == TENSOR_SHAPE:
                            shape = tuple(
                                self.side(_span(side))
                                for each, side in self.fields(_span(found))
                                if each == SHAPE_SIDE
                            )
        if dtype not in DTYPES or shape is None:
            raise ValueError(f"{name!r:.100} of type {dtype}, which no value of ours has")
        return name.decode(), DTYPES[dtype], shape

    def side(self, span: Span) -> int | str:
        found: int | str = ""
        for field, value in self.fields(span):
            if field == SIDE_SIZE:
                found = _int(value)
            elif field == SIDE_NAME:
                found = self.bytes(_span(value)).decode()
        return found

    def bytes(self, span: Span) -> bytes:
        start, end = span
        if end - start > 1000:
            raise ValueError("a name of more than 1000 bytes")
        return self.buffer[start:end]

    def fields(self, span: Span) -> Iterator[tuple[int, int | Span]]:
        """Each field's number, with its varint or the place of its bytes; others have none."""
        place, end = span
        while place < end:
            key, place = self.varint(place)
            kind, value = key & 7, (place, place)
            if kind == VARINT:
                number, place = self.varint(place)
                yield key >> 3, number
                continue
            if kind == BYTES:
                length, place = self.varint(place)
                value = (place, place + length)
                place = value[1]
            elif kind in (FIXED64, FIXED32):
                place += 8 if kind == FIXED64 else 4
            else:
                raise ValueError("bytes that are no protocol buffer")
            if place > end:
                raise ValueError("a cut file")
            yield key >> 3, value

    def varint(self, place: int) -> tuple[int, int]:
        number = shift = 0
        while True:
            byte = self.buffer[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, place
            shift += 7
            if shift > 63:
                raise ValueError("bytes that are no protocol buffer")


def _span(value: int | Span) -> Span:
    if isinstance(value, int):
        raise ValueError("a number in the place of a message")
    return value


def _int(value: int | Span) -> int:
    if not isinstance(value, int):
        raise ValueError("a message in the place of a number")
    return value
