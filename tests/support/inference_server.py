"""NVIDIA Triton Inference Server without it: the schema of its settings, its module for models.

The schema is written down from the public `model_config.proto` of the server's version 2.5x: names,
numbers and types of the fields that a model of one Python file may have. Other fields do not parse.
The module has the names, arguments and refusals of `triton_python_backend_utils`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

Field = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "string": Field.TYPE_STRING, "bool": Field.TYPE_BOOL, "int32": Field.TYPE_INT32,
    "int64": Field.TYPE_INT64, "uint64": Field.TYPE_UINT64,
}  # fmt: skip
ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64",
        "TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32",
        "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip
MESSAGES = {
    "ModelTensorReshape": "1 repeated int64 shape",
    "ModelInput": """
        1 string name; 2 DataType data_type; 3 Format format; 4 repeated int64 dims;
        5 ModelTensorReshape reshape; 6 bool is_shape_tensor; 7 bool allow_ragged_batch;
        8 bool optional; 9 bool is_non_linear_format_io""",
    "ModelOutput": """
        1 string name; 2 DataType data_type; 3 repeated int64 dims; 4 string label_filename;
        5 ModelTensorReshape reshape; 6 bool is_shape_tensor; 7 bool is_non_linear_format_io""",
    "ModelInstanceGroup": """
        1 string name; 2 int32 count; 3 repeated int32 gpus; 4 Kind kind; 5 repeated string profile;
        7 bool passive; 9 string host_policy""",
    "ModelDynamicBatching": """
        1 repeated int32 preferred_batch_size; 2 uint64 max_queue_delay_microseconds;
        3 bool preserve_ordering; 4 uint64 priority_levels; 5 uint64 default_priority_level""",
    "ModelConfig": """
        1 string name; 2 string platform; 4 int32 max_batch_size; 5 repeated ModelInput input;
        6 repeated ModelOutput output; 7 repeated ModelInstanceGroup instance_group;
        8 string default_model_filename; 11 ModelDynamicBatching dynamic_batching;
        17 string backend; 25 string runtime""",
}


@cache
def _model_config() -> Any:
    """The class of the message."""
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in fields.split(";"):
            number, *repeated, kind, word = line.split()
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            added = message.field.add(name=word, number=int(number), label=label)
            if kind in TYPES:
                added.type = TYPES[kind]
            else:
                added.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
                added.type_name = f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("inference.ModelConfig")
    return message_factory.GetMessageClass(found)


def read_config(text: str) -> Any:
    """A ModelConfig, as the server reads it: by its schema, and then by what it refuses at load.

    Raises:
        text_format.ParseError: what the schema does not have.
        AssertionError: what the server does not load.
    """
    config = text_format.Parse(text, _model_config()())
    assert config.name
    assert config.backend
    assert config.input
    assert config.output
    tensors = [*config.input, *config.output]
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    for tensor in tensors:
        assert tensor.name
        assert tensor.data_type != 0, f"{tensor.name} has no type"
        assert tensor.dims, f"{tensor.name} has no dims"
        assert all(size == -1 or size > 0 for size in tensor.dims), tensor.name
    if config.HasField("dynamic_batching"):
        assert config.max_batch_size > 0
    for group in config.instance_group:
        assert not (group.gpus and group.kind in (2, 3))
    return config


class TritonError:
    """An error with its code, of the server's module."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = range(4)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array; the server refuses NumPy's own strings."""

    def __init__(self, name: str, numpy_array: np.ndarray) -> None:
        assert numpy_array.dtype.kind != "U", "strings are objects"
        self._name, self._array = name, numpy_array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


@dataclass(frozen=True)
class InferenceRequest:
    """A request's tensors."""

    tensors: list[Tensor] = field(default_factory=list)

    def inputs(self) -> list[Tensor]:
        return self.tensors


class InferenceResponse:
    """An answer: tensors, or an error."""

    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        assert type(output_tensors) is list
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """None where the request leaves it out."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def server_module() -> ModuleType:
    """What a model imports as `triton_python_backend_utils`."""
    module = ModuleType("triton_python_backend_utils")
    names = (TritonError, Tensor, InferenceRequest, InferenceResponse, get_input_tensor_by_name)
    for each in names:
        setattr(module, each.__name__, each)
    return module
