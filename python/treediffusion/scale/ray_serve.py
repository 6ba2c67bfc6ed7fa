"""The server's own application as a Ray Serve deployment: replicas, autoscaling, rolling update.

Routes, errors and bytes are those of `serve.app`: each replica is that application with an engine
of its own, behind Ray's proxy. A request that its replica's death cut off is answered 500 by the
proxy, which does not ask another replica itself; `client.Client` does.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle
from ..errors import BackendUnavailableError, ConfigError
from ..optional import require
from .ray_session import check_backend, first_line, share

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..runtime.backends import BackendOptions
    from ..serve.limits import Limits

NAME = "treediffusion"
AHEAD_S = 5.0
"""Seconds that a replica's image-steps should take: beyond, there should be more replicas."""
LOOK_BACK_S, PATIENCE_S = 15.0, 5.0
"""Over which the queue is averaged, and for which it must be long: both well below the seconds that
a request may take, since a replica that comes later helps nobody."""
ONGOING = 1024
"""Requests of a replica. The bound that matters is that of image-steps, which answers 429."""


@dataclass(frozen=True)
class Application:
    """What every replica serves.

    Attributes:
        bundle: its folder, the same on every machine.
        limits: of requests.
        backend: what runs the graphs.
        threads: of a CPU's back end; one if None.
        keys: of those who may ask.
        explorer: the page behind /explore.
        drain: seconds that requests underway get when a replica ends.
    """

    bundle: Path
    limits: Limits
    backend: str = "auto"
    threads: int | None = None
    keys: tuple[str, ...] = field(default=(), repr=False)
    explorer: Path | None = None
    drain: float = 30.0


class Replica:
    """What Ray asks of a replica besides its application."""

    app: Any

    async def check_health(self) -> None:
        """What /health/ready tells; a replica that fails is replaced.

        Raises:
            BackendUnavailableError: its engine's thread has died.
        """
        if not self.app.state.service.ready:
            raise BackendUnavailableError(
                "replica", got="a dead engine thread", expected="a running engine"
            )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The gauge of image-steps, and the seconds that they are likely to take."""
        scheduler = self.app.state.service.scheduler
        return {"image_steps": float(scheduler.waiting), "wait_s": float(scheduler.wait)}


def by_image_steps(context: Any) -> tuple[int, dict[str, Any]]:
    """Autoscaling policy: as many replicas as do all waiting image-steps in `AHEAD_S`.

    Args:
        context: Ray's AutoscalingContext.

    Returns:
        The number of replicas, which Ray keeps within its bounds, and no state.
    """
    waits = (context.aggregated_metrics or {}).get("wait_s", {})
    return max(1, math.ceil(sum(waits.values()) / AHEAD_S)), {}


def deploy(
    ray: Any,
    application: Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    max_replicas: int | None = None,
) -> None:
    """Serves an application, or replaces the one that is served, one replica after the other.

    Args:
        ray: the module, connected.
        application: what is served.
        host: address of the proxies; the first call of a cluster decides.
        port: of the proxies; the first call decides.
        replicas: how many, at least.
        max_replicas: how many at most; more than `replicas` come and go with the queue.

    Raises:
        ConfigError: numbers of replicas that cannot be.
        BundleError: not a bundle, or one that is damaged.
        BackendUnavailableError: no such back end, or the replicas cannot run.
    """
    if replicas < 1:
        raise ConfigError("replicas", got=replicas, expected="at least 1")
    if max_replicas is not None and max_replicas < replicas:
        raise ConfigError("max_replicas", got=max_replicas, expected=f"at least {replicas}")
    check_backend(application.backend)
    serve = require("ray.serve", extra="ray")
    bundle = Bundle.open(application.bundle)
    each = share(ray, bundle, application.backend, application.threads)
    settings: dict[str, Any] = {
        "name": NAME,
        "ray_actor_options": each.asked,
        "max_ongoing_requests": ONGOING,
        "graceful_shutdown_timeout_s": application.drain + 5.0,
        "max_constructor_retry_count": 3,
    }
    if max_replicas is None:
        settings["num_replicas"] = replicas
    else:
        settings["autoscaling_config"] = _autoscaling(replicas, max_replicas)

    def build() -> FastAPI:
        return build_app(application, each.engine)

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    deployment = serve.deployment(serve.ingress(build)(Replica), **settings)
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
    except RuntimeError as fault:
        raise BackendUnavailableError(
            "ray", got=_why(serve) or first_line(fault), expected="replicas that run"
        ) from fault


def build_app(application: Application, options: BackendOptions) -> FastAPI:
    """The application of a replica, in its process: warm before it gets a request."""
    from ..runtime import Engine
    from ..serve.app import make_app

    engine = Engine.load(application.bundle, backend=application.backend, **options)
    engine.warmup()
    app = make_app(
        engine, keys=application.keys, limits=application.limits, explorer=application.explorer,
        drain=application.drain,
    )  # fmt: skip
    app.state.service.warm = True
    return app


def _why(serve: Any) -> str:
    """What the last replica died of: the last line of its traceback."""
    running = serve.status().applications.get(NAME)
    told = [each.message for each in running.deployments.values()] if running else []
    lines = [line.strip() for text in told for line in text.splitlines() if ": " in line]
    return lines[-1] if lines else ""


def _autoscaling(least: int, most: int) -> dict[str, Any]:
    return {
        "min_replicas": least,
        "max_replicas": most,
        "look_back_period_s": LOOK_BACK_S,
        "upscale_delay_s": PATIENCE_S,
        "policy": {"policy_function": f"{__name__}:{by_image_steps.__name__}"},
    }
