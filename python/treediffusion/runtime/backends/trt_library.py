"""TensorRT and TensorRT-RTX behind one face.

Their Python interfaces are nearly the same; what differs is here and nowhere else:

                      TensorRT 11                     TensorRT-RTX
    module            tensorrt                        tensorrt_rtx
    builds            on the GPU it is for            anywhere, for every GPU it knows
    kernels           timed when built, the times     compiled when first loaded, the code
                      kept in a timing cache          kept in a runtime cache
    before loading    nothing                         the plan says whether the GPU will do

Networks are strongly typed in both: a graph is computed in the types that it is written in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ...errors import BackendUnavailableError
from ...optional import require

LIBRARIES = ("tensorrt", "tensorrt-rtx")
OLDEST = {"tensorrt": "11.0", "tensorrt-rtx": "1.3"}
REMEMBERED = 8
"""Complaints that are kept for the next error's reason."""


class Library:
    """One of `LIBRARIES`. Of one there is one per process, as the library keeps its first logger.

    Attributes:
        name: of the back end.
        module: the Python module.
        version: of it.
        portable: an engine is for every GPU, and need not be built where it runs.
        logger: for every object of the module that takes one.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module, self.version = name, module, str(module.__version__)
        self.portable = name == "tensorrt-rtx"
        self._complaints: deque[str] = deque(maxlen=REMEMBERED)
        self._recorded: list[str] | None = None
        self.logger = _logger(module, self._heard)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """Collects everything that is said within a block, the layers of engines included."""
        before, self._recorded = self._recorded, []
        try:
            yield self._recorded
        finally:
            self._recorded = before

    def complaint(self) -> str:
        """What was wrong of late, newest first; it is then forgotten."""
        said = "; ".join(reversed(self._complaints))
        self._complaints.clear()
        return said or "no reason"

    def _heard(self, severity: Any, message: str) -> None:
        if self._recorded is not None:
            self._recorded.append(message)
        if severity <= self.module.ILogger.Severity.ERROR:
            self._complaints.append(message.strip())


@cache
def load_library(name: str) -> Library:
    """The library.

    Raises:
        DependencyError: it is not installed.
        BackendUnavailableError: its version is too old.
    """
    assert name in LIBRARIES, name
    if name == "tensorrt":
        module = require("tensorrt", extra="tensorrt")
    else:
        module = require("tensorrt_rtx", extra="tensorrt-rtx")
    if not hasattr(module.ICudaEngine, "create_runtime_config"):
        raise BackendUnavailableError(
            name, got=f"version {module.__version__}", expected=f"{OLDEST[name]} or later",
            hint=f'run: pip install --upgrade "treediffusion[{name}]"',
        )  # fmt: skip
    return Library(name, module)


def _logger(module: Any, heard: Any) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Hands on what the library says; an error in here must not reach its C++."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            heard(severity, message)

    return Logger()
