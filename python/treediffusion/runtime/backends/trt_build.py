"""From an ONNX graph to the plan of an engine, for one number of images.

Every size is fixed: B is the bucket, and S the length of the tables of steps, `TABLE_ROWS` or more.
So the fastest kernels of that size are taken, memory is known beforehand, and an engine can be
captured in a CUDA graph. Float32 is computed as float32, not as TF32, and in one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...bundle import GraphSpec, TensorSpec
from ...errors import BackendUnavailableError, BundleFormatError
from .trt_library import Library

TABLE_ROWS = 2048
"""Evaluations that a sampler's table can have: enough for Heun's along 1000 timesteps."""
BUILD = 1
"""Raised whenever other settings would give another engine."""


@dataclass(frozen=True)
class Built:
    """What a build gives.

    Attributes:
        plan: the serialized engine.
        timing: the timing cache after it, to be given to the next build; empty where there is none.
        said: the library's own account, with the engine's layers if they were asked for.
    """

    plan: bytes
    timing: bytes
    said: tuple[str, ...]


def fixed_shape(tensor: TensorSpec, bucket: int) -> tuple[int, ...]:
    """A tensor's shape in an engine."""
    sizes = {"B": bucket, "S": max(TABLE_ROWS, bucket)}
    return tuple(sizes[side] if isinstance(side, str) else side for side in tensor.shape)


def build_engine(
    library: Library,
    spec: GraphSpec,
    *,
    bucket: int,
    timing: bytes = b"",
    detailed: bool = False,
) -> Built:
    """Builds an engine.

    Args:
        library: for TensorRT, on a machine with the GPU that it is for; for TensorRT-RTX, anywhere.
        spec: the graph.
        bucket: images in a call.
        timing: an older timing cache.
        detailed: list the engine's layers, from which `trt_layers` tells what was fused.

    Raises:
        BundleFormatError: the library cannot read the graph, or it is not as its spec says.
        BackendUnavailableError: the library cannot build it here.
    """
    trt = library.module
    with library.recording() as said:
        builder = trt.Builder(library.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, library.logger)
        if not parser.parse(spec.file.read_bytes()):
            faults = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise _unreadable(library, spec, "; ".join(faults) or library.complaint())
        _check_tensors(library, network, spec)
        config = builder.create_builder_config()
        _configure(library, config, detailed=detailed)
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shape = fixed_shape(tensor, bucket)
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        kept = None
        if not library.portable:
            kept = config.create_timing_cache(timing)
            config.set_timing_cache(kept, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendUnavailableError(
                f"{spec.file.name} for {bucket} images", got=library.complaint(),
                expected=f"an engine of {library}",
            )  # fmt: skip
        after = b"" if kept is None else bytes(memoryview(kept.serialize()))
        return Built(bytes(memoryview(plan)), after, tuple(said))


def _configure(library: Library, config: Any, *, detailed: bool) -> None:
    trt = library.module
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if library.portable:
        # Without it an engine may allocate when it runs, which a captured stream forbids.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _check_tensors(library: Library, network: Any, spec: GraphSpec) -> None:
    """The network has the tensors that the bundle promises, in the types it promises."""
    trt = library.module
    dtypes = {trt.float32: "float32", trt.float16: "float16", trt.int64: "int64"}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for found, specs in ((inputs, spec.inputs), (outputs, spec.outputs)):
        got: Mapping[str, Any] = {t.name: (dtypes.get(t.dtype), len(t.shape)) for t in found}
        expected = {tensor.name: (tensor.dtype, len(tensor.shape)) for tensor in specs}
        if got != expected:
            raise _unreadable(library, spec, f"the tensors {got}", f"the tensors {expected}")


def _unreadable(
    library: Library, spec: GraphSpec, got: str, expected: str = ""
) -> BundleFormatError:
    return BundleFormatError(
        str(spec.file),
        got=got,
        expected=expected or f"a graph that {library} can read",
        hint=f"export the model again, with the target {library.name}",
    )
