"""Ray for the length of a command: the cluster that RAY_ADDRESS names, or this machine alone.

`ray` is imported here and in the two modules beside this one, inside functions: only those who ask
for Ray need it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..bundle import Bundle
from ..errors import BackendUnavailableError
from ..optional import require
from ..runtime.backends import BACKENDS, BackendOptions

CPU_BACKENDS = {"onnxruntime", "openvino"}
STORE_BYTES = 2**28
"""Of Ray's shared memory on one machine: what passes through it are requests and numbers."""


class Share(NamedTuple):
    """What each worker gets.

    Attributes:
        asked: of Ray.
        engine: options of its engine.
        fit: workers that the cluster has room for now.
    """

    asked: dict[str, float]
    engine: BackendOptions
    fit: int


@contextmanager
def session() -> Iterator[Any]:
    """Connects, unless this process is connected, and leaves again.

    Without RAY_ADDRESS it is a Ray of this command's own, without a dashboard; it never joins
    another that happens to run on this machine. It listens on the loopback interface, which Ray
    does of itself only on Windows and macOS, since whoever may use it can run code; a replica of
    Ray Serve opens one more port on every interface, which no setting moves. Ray's report of its
    use to its makers is off unless the user has turned it on.

    Yields:
        The module `ray`.

    Raises:
        DependencyError: Ray is not installed.
        BackendUnavailableError: no cluster at the address.
    """
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:  # read when Ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    alone = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    told: dict[str, Any] = {"address": address} if address else {"address": "local", **alone}
    try:
        ray.init(**told, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise BackendUnavailableError(
            "ray", got=first_line(fault), expected="a cluster that can be reached",
            hint="RAY_ADDRESS names it; unset, Ray runs on this machine",
        ) from fault  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


def share(ray: Any, bundle: Bundle, backend: str, threads: int | None = None) -> Share:
    """A worker's share: a GPU where the cluster, the bundle and the back end have them, else cores.

    Without a wish each worker has one thread, and there are as many workers as cores: images do
    not wait for each other.
    """
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    for_gpus = any(each.target != "onnx-cpu" for each in bundle.sets.values())
    if gpus and for_gpus and backend not in CPU_BACKENDS and threads is None:
        return Share({"num_cpus": 1, "num_gpus": 1}, {}, gpus)
    cores = threads or 1
    options: BackendOptions = {"threads": cores}
    if backend not in CPU_BACKENDS | {"auto"}:
        options = {}  # it has no threads; that it cannot run here, it says itself
    return Share({"num_cpus": cores}, options, max(1, int(has.get("CPU", 1)) // cores))


def check_backend(backend: str) -> None:
    """Before anything is started for it.

    Raises:
        BackendUnavailableError: no such back end.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(
            "backend", got=repr(backend), expected=f"auto, or one of {', '.join(BACKENDS)}"
        )


def first_line(fault: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return (lines or [type(fault).__name__])[0].strip()
