"""Engines on disk, each under what it was built from and for.

    folder/step-3f9c21d07be4a156.engine     a line of JSON (format, key, hash), and the plan
    folder/tensorrt-11.4.0-....timing       what the library keeps for itself between runs

An engine is machine code for one kind of GPU and one version of a library, so it is a cache and
never a product: the graph is. One that does not fit is built again, and a warning says why; or, for
a machine that must not build, it is refused with the reason. Files are whole or absent. They are
trusted as far as the folder is: a hash tells damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import BackendUnavailableError
from ...files import write_atomic

FORMAT = 1
SUFFIX = ".engine"
HEADER_LIMIT = 65536

log = logging.getLogger("treediffusion.runtime")


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        graph: SHA-256 of the ONNX file.
        library: name and version.
        device: name and compute capability of the GPU, or 'any'.
        bucket: images in a call.
        table_rows: length of its tables of steps.
        build: number of the settings.
    """

    graph: str
    library: str
    device: str
    bucket: int
    table_rows: int
    build: int

    @property
    def digest(self) -> str:
        """Names it, in 16 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.library} on {self.device}, {self.bucket} images"


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines.

    Attributes:
        folder: where; made when an engine is written.
        build: whether what is not there may be built.
    """

    folder: Path
    build: bool = True

    def path(self, role: str, key: EngineKey) -> Path:
        """The file of an engine."""
        return self.folder / f"{role}-{key.digest}{SUFFIX}"

    def get(self, role: str, key: EngineKey, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        """An engine, from the folder or made.

        Args:
            role: of the graph.
            key: what it must be.
            make: builds it.

        Returns:
            The plan, and whether it is a new one.

        Raises:
            BackendUnavailableError: it is not there and may not be built.
            CheckpointError: the folder cannot be written.
        """
        found = read_engine(self.path(role, key), key)
        if isinstance(found, bytes):
            return found, False
        return self.renew(role, key, make, reason=found), True

    def renew(self, role: str, key: EngineKey, make: Callable[[], bytes], *, reason: str) -> bytes:
        """Makes an engine and puts it into the folder.

        Args:
            role: of the graph.
            key: what it will be.
            make: builds it.
            reason: why the one in the folder is of no use.

        Raises:
            BackendUnavailableError: none may be built.
            CheckpointError: the folder cannot be written.
        """
        path = self.path(role, key)
        if not self.build:
            others = self._others(role, key)
            raise BackendUnavailableError(
                str(path), got=reason + others, expected=f"an engine for {key}",
                hint="let engines be built, or bring the folder of a machine like this one",
            )  # fmt: skip
        if path.exists():
            log.warning("%s: %s; building it again", path, reason)
        else:
            log.info("building %s for %s", path.name, key)
        plan = make()
        write_engine(path, key, plan)
        return plan

    def _others(self, role: str, key: EngineKey) -> str:
        """What engines of the same graph there are, for a refusal's reason."""
        found = []
        for path in sorted(self.folder.glob(f"{role}-*{SUFFIX}")):
            header = _read_header(path)
            if not isinstance(header, str) and header[0].graph == key.graph:
                found.append(str(header[0]))
        return f"; there are engines for {'; '.join(found)}" if found else ""


def write_engine(path: Path, key: EngineKey, plan: bytes) -> None:
    """Writes an engine.

    Raises:
        CheckpointError: the system refused; an old file is untouched.
    """
    header = {
        "treediffusion_engine": FORMAT,
        "key": asdict(key),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size": len(plan),
    }
    line = json.dumps(header, sort_keys=True).encode() + b"\n"
    write_atomic(path, lambda stream: (stream.write(line), stream.write(plan)))


def read_engine(path: Path, key: EngineKey) -> bytes | str:
    """The plan in a file, or the reason why it is of no use."""
    header = _read_header(path)
    if isinstance(header, str):
        return header
    built, digest, start = header
    if built != key:
        return f"an engine for {built}"
    plan = path.read_bytes()[start:]
    if hashlib.sha256(plan).hexdigest() != digest:
        return "a damaged file"
    return plan


def _read_header(path: Path) -> tuple[EngineKey, str, int] | str:
    """Key, hash and place of the plan, or what is wrong."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(HEADER_LIMIT)
            header = json.loads(line)
            size = path.stat().st_size - len(line)
        if header["treediffusion_engine"] != FORMAT:
            return f"a file of format {header['treediffusion_engine']!r}"
        if header["size"] != size:
            return f"a damaged file: {size} bytes of {header['size']}"
        return EngineKey(**header["key"]), str(header["sha256"]), len(line)
    except FileNotFoundError:
        return "no such file"
    except OSError as fault:
        return f"an unreadable file ({fault.strerror})"
    except (ValueError, KeyError, TypeError):
        return "a file that is no engine"
