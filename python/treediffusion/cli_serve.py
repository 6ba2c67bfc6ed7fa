"""`treediffusion serve`: a bundle behind HTTP."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .errors import ConfigError, TreeDiffusionError
from .optional import require

if TYPE_CHECKING:
    from .runtime import Engine
    from .serve.scheduler import Scheduler


@dataclass
class Serve:
    """Serve a bundle over HTTP: images of any node, leaf sheets, assignments, reconstructions.

    Binds to this machine alone unless told otherwise; others need a key.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """An exported bundle."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every address of the machine."""
    port: int = 8000
    """Port to listen at."""
    backend: str = "auto"
    """What runs the networks."""
    threads: int | None = None
    """Of the back end; left out, it chooses."""
    key_file: Path | None = None
    """File with the keys of those who may ask, one on each line; or the variable
    TREEDIFFUSION_API_KEY_FILE."""
    no_auth: bool = False
    """Serve other machines without a key. Whoever reaches the port can draw."""
    explorer: Path | None = None
    """Page behind /explore; left out, explorer.html in the bundle or beside it."""
    max_images: int = 64
    """Images of a request."""
    max_queue: int = 100_000
    """Image-steps that may wait; beyond, the answer is 429."""
    timeout: float = 60.0
    """Seconds of a request, waiting included; beyond, 504."""
    drain: float = 30.0
    """Seconds that requests underway get after SIGTERM."""

    def run(self) -> int:
        """Serves until it is told to stop."""
        keys = read_keys(self.key_file)
        if not keys and not self.no_auth and not _is_loopback(self.host):
            raise ConfigError(
                "host", got=f"{self.host}, which others can reach, and no key", expected="a key",
                hint="give --key-file, or --no-auth if whoever reaches it may draw",
            )  # fmt: skip
        require("fastapi", extra="serve")
        uvicorn = require("uvicorn", extra="serve")
        from .runtime import Engine
        from .serve.app import make_app
        from .serve.limits import Limits

        limits = Limits(max_images=self.max_images, max_queue=self.max_queue, timeout=self.timeout)

        def load() -> Engine:
            return Engine.load(self.bundle, backend=self.backend, threads=self.threads)

        engine = load()
        app = make_app(engine, keys=keys, limits=limits, explorer=self._page(), drain=self.drain)
        _reload_on_hangup(app.state.service.scheduler, load)
        print(f"http://{self.host}:{self.port}  tree: /v1/tree  requests: /openapi.json")
        uvicorn.run(
            app, host=self.host, port=self.port, log_level="warning", server_header=False,
            timeout_graceful_shutdown=int(self.drain) + 1, limit_concurrency=1024,
        )  # fmt: skip
        return 0

    def _page(self) -> Path | None:
        beside = (self.bundle / "explorer.html", self.bundle.parent / "explorer.html")
        page = self.explorer or next(filter(Path.is_file, beside), None)
        if page is not None and not page.is_file():
            raise ConfigError("explorer", got=f"{page}, which is no file", expected="an HTML page")
        return page


def _reload_on_hangup(scheduler: Scheduler, load: Callable[[], Engine]) -> None:
    """SIGHUP reads the bundle again; requests underway end with the one that they began with."""

    def reload() -> None:
        try:
            engine = load()
            engine.warmup()
        except TreeDiffusionError as fault:
            print(f"treediffusion: kept the old bundle: {fault}", file=sys.stderr)
            return
        scheduler.replace(engine)
        print("treediffusion: the bundle was read again", file=sys.stderr)

    if hasattr(signal, "SIGHUP"):  # there is none on Windows
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=reload).start())


def read_keys(file: Path | None) -> list[str]:
    """The keys in a file, or in the one that the environment names.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    named = os.environ.get("TREEDIFFUSION_API_KEY_FILE")
    file = file or (Path(named) if named else None)
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError("key_file", got=str(fault), expected="a text file") from fault
    keys = [line for line in lines if line and not line.startswith("#")]
    weak = [key for key in keys if len(key) < 16]
    if not keys or weak:
        raise ConfigError(
            "key_file", got=f"{len(keys)} keys, {len(weak)} of them shorter than 16 characters",
            expected="a key of at least 16 characters on each line",
        )  # fmt: skip
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
