"""The routes.

    POST /v1/generate /v1/sheet /v1/interpolate /v1/assign /v1/reconstruct     GET /v1/tree
    GET  /health/live /health/ready /metrics /explore /openapi.json

Images come as JSON with base64, or as one raw PNG where the request accepts nothing but that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import (
    BackendUnavailableError,
    CallTimeoutError,
    ConfigError,
    ShapeError,
    TopologyError,
    TreeDiffusionError,
)
from ..runtime import Engine
from ..topology import TreeTopology
from . import work
from .guard import Guard, Refusal
from .limits import Limits
from .pictures import Bytes, decode, decode_all, encode_png
from .scheduler import QueueFullError
from .schemas import (
    Assigned,
    AssignRequest,
    ErrorAnswer,
    GenerateRequest,
    Images,
    InterpolateRequest,
    Node,
    ReconstructRequest,
    SheetRequest,
    Timings,
    Tree,
)
from .service import ClientGoneError, Service
from .work import Drawn

PNG = "image/png"
EVENTS = "text/event-stream"
SMALL = 2**14
"""Bytes of pixels that are encoded at once; a millisecond at most."""
KINDS = {
    400: "invalid_request", 404: "invalid_request", 405: "invalid_request", 422: "invalid_request",
}  # fmt: skip
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "not JSON"), (401, "no key"), (408, "too slow a body"), (413, "too large a body"),
        (422, "a value that cannot be used"), (429, "no room; ask again after Retry-After"),
        (503, "starting, stopping or broken"), (504, "not done in time"),
    )
}  # fmt: skip
DRAWN: dict[int | str, dict[str, Any]] = {
    **FAULTS, 200: {"content": {PNG: {}}, "description": "Images, or one PNG of them all."}
}  # fmt: skip
STREAMED: dict[int | str, dict[str, Any]] = {
    **FAULTS, 200: {
        "content": {PNG: {}, EVENTS: {}}, "description": "Images, one PNG of them all, or events.",
    },
}  # fmt: skip


def make_app(
    engine: Engine,
    *,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    explorer: Path | None = None,
    drain: float = 30.0,
) -> FastAPI:
    """The application.

    Args:
        engine: what draws; the application closes it when it ends.
        keys: of those who may ask; none asks for none.
        limits: of requests.
        explorer: the page behind /explore.
        drain: seconds that requests underway get when it ends.
    """
    service = Service(engine, limits or Limits())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()
        await asyncio.to_thread(service.scheduler.drain, drain)

    app = FastAPI(
        title="treediffusion", version=__version__, lifespan=life, docs_url=None, redoc_url=None
    )
    app.state.service = service
    _add_images(app, service)
    _add_tree(app, service)
    _add_state(app, service, explorer)
    _add_faults(app)
    app.add_middleware(Guard, keys=keys, limits=service.limits, metrics=service.metrics)
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post("/v1/generate", response_model=Images, responses=STREAMED)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """New images of a node."""
        wanted = work.generate(_engine(service), body, service.limits)
        if body.stream:
            events = service.streamed(request, wanted, body.timeout, body.preview_every)
            await anext(events)  # a refusal has a status as long as the answer has not begun
            return _Events(events, media_type=EVENTS)
        columns = math.ceil(math.sqrt(max(1, len(body.seeds or ()), body.n)))
        return await _answer(service, request, wanted, body.timeout, columns)

    @app.post("/v1/sheet", response_model=Images, responses=DRAWN)
    async def sheet(body: SheetRequest, request: Request) -> Response:
        """The same latents and noise in every leaf."""
        engine = _engine(service)
        wanted = work.sheet(engine, body, service.limits)
        return await _answer(service, request, wanted, body.timeout, engine.topology.num_leaves)

    @app.post("/v1/interpolate", response_model=Images, responses=DRAWN)
    async def interpolate(body: InterpolateRequest, request: Request) -> Response:
        """The way from one leaf to another."""
        wanted = work.interpolate(_engine(service), body, service.limits)
        return await _answer(service, request, wanted, body.timeout, body.frames)

    @app.post("/v1/reconstruct", response_model=Images, responses=DRAWN)
    async def reconstruct(body: ReconstructRequest, request: Request) -> Response:
        """An image drawn again, in its leaf or in another."""
        engine, limits = _engine(service), service.limits

        def prepared() -> work.Work:
            pixels = decode(
                body.image, engine.image_shape, name="image", max_pixels=limits.max_pixels
            )
            return work.reconstruct(engine, body, pixels[None], limits)

        wanted = await asyncio.to_thread(prepared)
        return await _answer(service, request, wanted, body.timeout, engine.topology.num_leaves)


def _add_tree(app: FastAPI, service: Service) -> None:
    @app.post("/v1/assign", response_model=Assigned, responses=FAULTS)
    async def assign(body: AssignRequest) -> Assigned:
        """Where images go."""
        engine, largest = _engine(service), service.limits.max_pixels

        def decoded() -> Bytes:
            names = [f"images: {i}" for i in range(len(body.images))]
            return decode_all(body.images, engine.image_shape, names=names, max_pixels=largest)

        pixels = await asyncio.to_thread(decoded)
        leaf_prob = await service.between_steps(lambda engine: engine.assign(pixels), len(pixels))
        return Assigned(leaf_names=list(engine.topology.leaf_names), leaf_prob=leaf_prob.tolist())

    @app.get("/v1/tree", response_model=Tree, responses=FAULTS)
    async def tree() -> Tree:
        """The tree, and what can be asked of it."""
        engine = _engine(service)
        default = engine.manifest["sampling"]
        return Tree(
            leaf_names=list(engine.topology.leaf_names),
            image_shape=list(engine.image_shape),
            root=_node(engine, TreeTopology.ROOT),
            num_inference_steps=default["num_inference_steps"],
            solver=default["solver"],
            backend=str(engine.info()["backend"]),
        )


def _add_state(app: FastAPI, service: Service, explorer: Path | None) -> None:
    @app.get("/health/live", include_in_schema=False)
    @app.get("/v2/health/live", include_in_schema=False)
    async def live() -> Response:
        alive = service.scheduler.alive
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @app.get("/health/ready", include_in_schema=False)
    @app.get("/v2/health/ready", include_in_schema=False)
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    if explorer is not None:

        @app.get("/explore", include_in_schema=False)
        async def explore() -> Response:
            # The page has a policy of its own inside; this one only keeps it out of frames.
            policy = {"content-security-policy": "frame-ancestors 'none'"}
            return FileResponse(explorer, media_type="text/html", headers=policy)


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(TreeDiffusionError)
    async def ours(request: Request, error: TreeDiffusionError) -> Response:
        status, kind = 500, "internal"
        headers = {}
        if isinstance(error, ConfigError | TopologyError | ShapeError):
            status, kind = 422, "invalid_request"
        elif isinstance(error, QueueFullError):
            status, kind = 429, "busy"
            headers["retry-after"] = str(math.ceil(error.retry_after))
        elif isinstance(error, CallTimeoutError):
            status, kind = 504, "timeout"
        elif isinstance(error, BackendUnavailableError):
            status, kind = 503, "unavailable"
        return _fault(status, kind, str(error), error.name, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        status = 400 if first["type"] == "json_invalid" else 422
        return _fault(status, "invalid_request", f"{name}: {first['msg']}", name)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kind = (
            error.kind if isinstance(error, Refusal) else KINDS.get(error.status_code, "internal")
        )
        return _fault(error.status_code, kind, str(error.detail), None, dict(error.headers or {}))

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=499)  # as nginx logs it; nobody reads it

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return _fault(500, "internal", "an internal error", None)


class _Events(StreamingResponse):
    """A stream whose job is dropped as soon as its reader has gone, however that was noticed."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As of ASGI."""
        async with aclosing(self.body_iterator):  # type: ignore[type-var]  # it is a generator
            await super().__call__(scope, receive, send)


def _engine(service: Service) -> Engine:
    if not service.ready:
        raise BackendUnavailableError(
            "server", got="a request while it starts or stops", expected="one that is ready",
            hint="ask again in a moment; /health/ready tells",
        )  # fmt: skip
    return service.scheduler.engine


async def _answer(
    service: Service, request: Request, wanted: work.Work, timeout: float | None, columns: int
) -> Response:
    images, done = await service.drawn(request, wanted, timeout)
    if request.headers.get("accept", "").split(";")[0].strip() == PNG:
        picture = await asyncio.to_thread(_sheet, images, columns)
        first = images[0]
        headers = {
            "x-treediffusion-seed": str(first.seed),
            "x-treediffusion-offset": str(first.offset),
            "x-treediffusion-leaf": first.leaf,
        }
        return Response(picture, media_type=PNG, headers=headers)

    def text() -> str:
        data = [work.described(image, place) for place, image in enumerate(images)]
        timings = Timings(queue_s=done.queue_s, run_s=done.run_s)
        return Images(id=request.scope["request_id"], data=data, timings=timings).model_dump_json()

    # A thread's turn costs more than a small picture.
    small = len(images) <= 2 and sum(image.pixels.nbytes for image in images) <= SMALL
    encoded = text() if small else await asyncio.to_thread(text)
    return Response(encoded, media_type="application/json")


def _sheet(images: Sequence[Drawn], columns: int) -> bytes:
    """One PNG: the image, or all in rows; places without one are white."""
    pixels = np.stack([image.pixels for image in images])
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    _, channels, height, width = pixels.shape
    grid = np.full((rows * columns, channels, height, width), 255, np.uint8)
    grid[: len(pixels)] = pixels
    grid = grid.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return encode_png(grid.reshape(channels, rows * height, columns * width))


def _node(engine: Engine, row: int) -> Node:
    tree = engine.topology
    below = [int(child) for child in (tree.left[row], tree.right[row]) if child >= 0]
    return Node(
        name=tree.names[row],
        share=float(engine.node_share[row]),
        children=[_node(engine, child) for child in below],
    )


def _fault(
    status: int, kind: str, message: str, name: str | None, headers: dict[str, str] | None = None
) -> Response:
    body = {"error": {"type": kind, "message": message, "name": name}}
    return JSONResponse(body, status, headers)
