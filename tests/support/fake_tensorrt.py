"""TensorRT's module, as far as it is used: engines are ONNX Runtime sessions on a fake driver.

A plan is the graph and its shapes in JSON. Contexts read and write the device's memory at the
addresses they were given, when the stream comes to them, and not before.
"""

from __future__ import annotations

import base64
import ctypes
import json
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from support.fake_cuda import FakeCuda

DTYPES = {1: "float32", 7: "int64", 10: "float16"}
HEADER = b"plan"


class FakeTensorRt:
    """The module.

    Args:
        cuda: the driver of the device that it finds.
        portable: whether it is TensorRT-RTX.

    Attributes:
        builds: graphs that were built.
        loads: plans that were deserialized.
        misfits: reasons for the next plans not to be loaded, one for each.
        capturable: what contexts answer.
        version: what the module says of itself.
    """

    float32, float16, int64 = "float32", "float16", "int64"

    def __init__(self, cuda: FakeCuda, *, portable: bool = False, version: str = "11.4.0") -> None:
        self.cuda, self.portable, self.__version__ = cuda, portable, version
        name = "tensorrt_rtx" if portable else "tensorrt"
        self.__file__, self.__spec__ = f"{name}.py", ModuleSpec(name, None)  # others look for it
        self.builds: list[bytes] = []
        self.loads: list[bytes] = []
        self.misfits: list[str] = []
        self.capturable = True
        self.timings: list[bytes] = []
        self.jits: list[bytes] = []
        fake = self
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="USER")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
        self.EngineValidity = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
        self.ICudaEngine = SimpleNamespace(create_runtime_config=None)

        class ILogger:
            Severity = SimpleNamespace(ERROR=1)

        self.ILogger = ILogger

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Network:
                assert flags == 1 << 1
                return Network()

            def create_builder_config(self) -> Config:
                return Config(fake)

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                if fake.misfits and fake.misfits[0] == "build":
                    self.logger.log(1, f"cannot build: {fake.misfits.pop(0)}")
                    return None
                assert config.flags == ({"USER"} if fake.portable else set())
                assert config.max_aux_streams == 0
                fake.builds.append(network.graph)
                shapes = config.profile.shapes
                assert set(shapes) == {tensor.name for tensor in network.inputs}
                graph = base64.b64encode(network.graph).decode()
                return HEADER + json.dumps({"graph": graph, "shapes": shapes}).encode()

        class Runtime:
            engine_header_size = len(HEADER)

            def __init__(self, logger: Any) -> None:
                assert fake.cuda.contexts, "a runtime without a context"
                self.logger = logger

            def get_engine_validity(self, header: bytes) -> tuple[int, int]:
                assert fake.portable
                assert header == HEADER
                if fake.misfits and fake.misfits[0] == "validity":
                    fake.misfits.pop(0)
                    return fake.EngineValidity.INVALID, 3
                return fake.EngineValidity.VALID, 0

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                if fake.misfits:
                    self.logger.log(1, fake.misfits.pop(0))
                    return None
                fake.loads.append(plan)
                return Engine(fake, json.loads(plan[len(HEADER) :]))

        self.Builder, self.Runtime = Builder, Runtime
        self.OnnxParser = OnnxParser


class Network:
    graph: bytes
    inputs: list[Any]
    outputs: list[Any]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, i: int) -> Any:
        return self.inputs[i]

    def get_output(self, i: int) -> Any:
        return self.outputs[i]


class OnnxParser:
    def __init__(self, network: Network, logger: Any) -> None:
        self.network, self.errors = network, ["assertion failed: not ONNX"]

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, i: int) -> Any:
        return SimpleNamespace(desc=lambda: self.errors[i])

    def parse(self, graph: bytes) -> bool:
        try:
            proto = onnx.load_from_string(graph).graph
        except Exception:
            return False
        self.network.graph = graph
        self.network.inputs = [_tensor(value) for value in proto.input]
        self.network.outputs = [_tensor(value) for value in proto.output]
        return True


def _tensor(value: Any) -> Any:
    kind = value.type.tensor_type
    dims = [side.dim_value or -1 for side in kind.shape.dim]
    return SimpleNamespace(name=value.name, dtype=DTYPES[kind.elem_type], shape=dims)


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[int]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        assert len(set(shapes)) == 1
        self.shapes[name] = list(shapes[0])


class Config:
    def __init__(self, fake: FakeTensorRt) -> None:
        self._fake, self.flags, self.max_aux_streams = fake, {"TF32"}, None
        self.profile = Profile()

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profile = profile

    def create_timing_cache(self, before: bytes) -> Any:
        assert not self._fake.portable, "TensorRT-RTX has none"
        self._fake.timings.append(before)
        return SimpleNamespace(serialize=lambda: before + b"t")

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, fake: FakeTensorRt, plan: dict[str, Any]) -> None:
        self.fake, self.shapes = fake, plan["shapes"]
        self.session = onnxruntime.InferenceSession(
            base64.b64decode(plan["graph"]), providers=["CPUExecutionProvider"]
        )

    def create_runtime_config(self) -> Any:
        jits = self.fake.jits
        cache = SimpleNamespace(
            deserialize=lambda blob: not jits.append(blob), serialize=lambda: b"compiled"
        )
        config = SimpleNamespace(strategy=None, create_runtime_cache=lambda: cache)
        config.set_execution_context_allocation_strategy = lambda how: setattr(
            config, "strategy", how
        )
        config.set_runtime_cache = lambda given: True
        return config

    def create_execution_context(self, config: Any) -> Context:
        assert config.strategy == "user"
        if self.fake.portable:
            assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
            assert config.cuda_graph_strategy == "disabled"
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._fake = engine, engine.fake
        self._at: dict[str, int] = {}
        self._memory = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= Engine.device_memory_size_v2
        self._memory = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return bool(self._engine.shapes[name] == list(shape))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._at[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._fake.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self._memory in self._fake.cuda.memory
        assert self._fake.cuda.contexts
        if self._fake.misfits:
            return False
        self._fake.cuda.put(stream, self._run)
        return True

    def _run(self) -> None:
        session = self._engine.session
        feeds = {
            value.name: self._view(value, self._engine.shapes[value.name])
            for value in session.get_inputs()
        }
        outputs = session.get_outputs()
        found = session.run([value.name for value in outputs], feeds)
        for value, result in zip(outputs, found, strict=True):
            self._view(value, result.shape)[...] = result

    def _view(self, value: Any, shape: Any) -> np.ndarray:
        kind = np.dtype({"tensor(float)": "float32", "tensor(int64)": "int64"}[value.type])
        nbytes = int(np.prod(shape)) * kind.itemsize
        memory = (ctypes.c_char * nbytes).from_address(self._at[value.name])
        return np.ndarray(shape, kind, buffer=memory)
