"""From a back end's name and the options of a call to one that runs.

Only ONNX Runtime's module is loaded beforehand: a process that needs no other starts sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

from ...bundle import Bundle, GraphSet
from ...errors import BackendUnavailableError, ConfigError, DependencyError
from .onnx_runtime import CUDA, OnnxRuntimeBackend
from .protocol import Backend, choose_bucket

if TYPE_CHECKING:
    from .engine_cache import EngineCache

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx")
FASTEST_FIRST = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime", "openvino")
PREFERRED = ("fp16", "bf16", "fp32")
"""Precisions of a GPU, if the caller has no wish: half has eight times bfloat16's digits."""


class BackendOptions(TypedDict, total=False):
    """How a back end runs; what is left out, or None, is its own choice.

    Attributes:
        threads: of a CPU's back end.
        precision: of the denoiser: fp32, fp16 or bf16, of which a bundle and a back end have some.
        bucket: images in a call of a GPU's back end, one of the bundle's numbers.
        device: through which package TensorRT reaches the GPU, one of `runtime.device.DEVICES`.
        engines: where TensorRT's engines are kept, and whether they may be built.
    """

    threads: int | None
    precision: str | None
    bucket: int | None
    device: str | None
    engines: EngineCache | None


def open_backend(name: str, bundle: Bundle, **options: Unpack[BackendOptions]) -> Backend:
    """A back end by name; that one, or an error.

    Args:
        name: one of `BACKENDS`.
        bundle: whose graphs.
        **options: see `BackendOptions`.

    Raises:
        BackendUnavailableError: no such back end, it cannot run here, or the bundle has no graphs
            for it.
        DependencyError: its package is not installed.
        ConfigError: an option out of its range, or one that this back end does not have.
    """
    if name not in BACKENDS:
        raise BackendUnavailableError(
            "backend", got=repr(name), expected=f"one of {', '.join(BACKENDS)}"
        )
    open_, known = _OPENERS[name]
    given: BackendOptions = {k: v for k, v in options.items() if v is not None}  # type: ignore[assignment]
    for option in given:
        if option not in known:
            has = f"an option of {name}, {' or '.join(sorted(known))}"
            raise ConfigError(option, got=repr(options.get(option)), expected=has)
    return open_(name, bundle, given)


def open_any(bundle: Bundle, **options: Unpack[BackendOptions]) -> Backend:
    """The fastest back end that can run here: a GPU's, if the bundle was exported for one.

    Args:
        bundle: whose graphs.
        **options: only back ends that have all of them are tried.

    Raises:
        BackendUnavailableError: none can, with every reason.
    """
    given = {option for option, value in options.items() if value is not None}
    reasons = []
    for name in FASTEST_FIRST:
        if not given <= _OPENERS[name][1]:
            continue
        try:
            return open_backend(name, bundle, **options)
        except (BackendUnavailableError, DependencyError) as fault:
            reasons.append(f"{name}: {fault.got}")
    raise BackendUnavailableError(
        "backend", got="; ".join(reasons) or f"the options {', '.join(sorted(given))}",
        expected="one that can run", hint='run: pip install "treediffusion[cpu]"',
    )  # fmt: skip


def _onnxruntime(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    return OnnxRuntimeBackend(bundle, threads=options.get("threads"))


def _cuda(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    graphs = _graphs(name, bundle, "onnx-gpu", options)
    bucket = choose_bucket(graphs.batches, options.get("bucket"))
    return OnnxRuntimeBackend(
        bundle, provider=CUDA, graphs=graphs.graphs, sizes=(bucket,), precision=graphs.precision
    )


def _openvino(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    from .open_vino import OpenVinoBackend

    precision = options.get("precision") or "fp32"
    return OpenVinoBackend(bundle.graphs, threads=options.get("threads"), precision=precision)


def _tensorrt(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    graphs = _graphs(name, bundle, name, options)
    from .trt_backend import TensorRtBackend

    return TensorRtBackend(
        graphs.graphs,
        library=name,
        bucket=choose_bucket(graphs.batches, options.get("bucket")),
        precision=graphs.precision,
        device=options.get("device") or "bindings",
        cache=options.get("engines"),
    )


_Opener = Callable[[str, Bundle, BackendOptions], Backend]
_OPENERS: Mapping[str, tuple[_Opener, frozenset[str]]] = {
    "onnxruntime": (_onnxruntime, frozenset({"threads"})),
    "onnxruntime-cuda": (_cuda, frozenset({"precision", "bucket"})),
    "openvino": (_openvino, frozenset({"threads", "precision"})),
    "tensorrt": (_tensorrt, frozenset({"precision", "bucket", "device", "engines"})),
    "tensorrt-rtx": (_tensorrt, frozenset({"precision", "bucket", "device", "engines"})),
}


def _graphs(name: str, bundle: Bundle, target: str, options: BackendOptions) -> GraphSet:
    """The bundle's set for a target at the wished precision."""
    wished = options.get("precision")
    has = {each.precision: each for each in bundle.sets.values() if each.target == target}
    for precision in PREFERRED if wished is None else (wished,):
        if precision in has:
            return has[precision]
    raise BackendUnavailableError(
        name, got=f"a bundle with {', '.join(bundle.sets)}",
        expected=f"one with {target}-{wished or 'fp16'}",
        hint=f"export it with --targets {target} --precision {wished or 'fp16'}",
    )  # fmt: skip
