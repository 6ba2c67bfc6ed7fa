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
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .errors import ConfigError, TreeDiffusionError
from .optional import require

if TYPE_CHECKING:
    from .runtime import Engine
    from .serve.limits import Limits
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
    ray: bool = False
    """As replicas of Ray Serve: on this machine until the command ends; or in the cluster of the
    variable RAY_ADDRESS, which goes on serving. There the command once more, with another bundle,
    replaces it replica by replica."""
    replicas: int = 1
    """Of --ray, at least."""
    max_replicas: int | None = None
    """Of --ray, while images have to wait; --replicas if left out."""

    def run(self) -> int:
        """Serves until it is told to stop."""
        if not self.ray and (self.replicas != 1 or self.max_replicas is not None):
            raise ConfigError(
                "replicas", got="a number of them without --ray", expected="it together with --ray"
            )
        keys = read_keys(self.key_file)
        if not keys and not self.no_auth and not _is_loopback(self.host):
            raise ConfigError(
                "host", got=f"{self.host}, which others can reach, and no key", expected="a key",
                hint="give --key-file, or --no-auth if whoever reaches it may draw",
            )  # fmt: skip
        require("fastapi", extra="serve")
        require("uvicorn", extra="serve")
        from .runtime import Engine
        from .serve.app import make_app
        from .serve.limits import Limits
        from .serve.listen import listen

        limits = Limits(max_images=self.max_images, max_queue=self.max_queue, timeout=self.timeout)
        if self.ray:
            return self._replicate(limits, keys)

        def load() -> Engine:
            return Engine.load(self.bundle, backend=self.backend, threads=self.threads)

        engine = load()
        app = make_app(engine, keys=keys, limits=limits, explorer=self._page(), drain=self.drain)
        _reload_on_hangup(app.state.service.scheduler, load)
        print(f"http://{self.host}:{self.port}  tree: /v1/tree  requests: /openapi.json")
        listen(app, host=self.host, port=self.port, drain=self.drain)
        return 0

    def _replicate(self, limits: Limits, keys: list[str]) -> int:
        """As replicas; returns once they serve where the cluster is not this command's own."""
        from .scale.ray_serve import Application, deploy
        from .scale.ray_session import session

        page = self._page()
        application = Application(
            self.bundle.absolute(), limits, backend=self.backend, threads=self.threads,
            keys=tuple(keys), explorer=page and page.absolute(), drain=self.drain,
        )  # fmt: skip

        def serve(ray: Any) -> None:
            deploy(
                ray, application, host=self.host, port=self.port, replicas=self.replicas,
                max_replicas=self.max_replicas,
            )  # fmt: skip

        with session() as ray:
            serve(ray)
            where = f"http://{self.host}:{self.port}"
            print(f"{where}  tree: /v1/tree  requests: /openapi.json", flush=True)
            if os.environ.get("RAY_ADDRESS"):
                return 0
            _until_stopped(lambda: serve(ray))
            ray.serve.shutdown()
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


def _until_stopped(again: Callable[[], None]) -> None:
    """Waits for SIGTERM or Ctrl-C; SIGHUP replaces the replicas, which read the bundle again."""
    told: SimpleQueue[int] = SimpleQueue()
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # there is no SIGHUP on Windows
            signal.signal(getattr(signal, name), lambda number, _: told.put(number))
    while told.get() == getattr(signal, "SIGHUP", None):
        try:
            again()
        except TreeDiffusionError as fault:
            print(f"treediffusion: {fault}", file=sys.stderr)
        else:
            print("treediffusion: the bundle was read again", file=sys.stderr)


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
