"""Between a route and the scheduler: a job's events on the event loop, and when to drop it."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import TreeDiffusionError
from ..runtime import Engine
from ..runtime.results import Preview
from .limits import Limits
from .metrics import Metrics
from .pictures import encode_png
from .scheduler import Done, Event, Failed, Finished, Job, Previewed, QueueFullError, Scheduler
from .tracing import record
from .work import Drawn, Work, described

HELD_PREVIEWS = 64
"""Previews that a slow reader may be behind; further ones are left out."""

Given = TypeVar("Given")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Service:
    """One engine for all requests.

    Args:
        engine: draws; closed at the end.
        limits: of requests.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.limits, self.warm = limits, False
        built = {
            name: str(engine.info().get(name, "")) for name in ("backend", "device", "precision")
        }
        self.metrics = Metrics(lambda: self.scheduler.waiting, built)
        self.scheduler = Scheduler(engine, max_queue=limits.max_queue, on_step=self.metrics.step)

    @property
    def ready(self) -> bool:
        """Whether requests are taken: warmed up, and neither stopping nor dead."""
        return self.warm and self.scheduler.ready

    async def warm_up(self) -> None:
        """Loads every graph, so that no request pays for it."""
        await self.between_steps(lambda engine: engine.warmup())
        self.warm = True

    async def between_steps(self, work: Callable[[Engine], Given], cost: int = 0) -> Given:
        """Something short, in the engine's thread; it waits as `cost` image-steps do."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Given] = loop.create_future()

        def settle(set_it: Callable[[Any], None], value: Any) -> None:
            if not found.done():
                set_it(value)

        def call() -> None:
            try:
                result = work(self.scheduler.engine)
            except Exception as error:  # it belongs to the request
                loop.call_soon_threadsafe(settle, found.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, found.set_result, result)

        with self._counted():
            self.scheduler.call(call, cost)
        return await found

    async def drawn(
        self, request: Request, work: Work, timeout: float | None
    ) -> tuple[list[Drawn], Done]:
        """All images of a request, in order, and where its time went.

        Raises:
            ClientGoneError: the client has left; the job is dropped.
        """
        loop = asyncio.get_running_loop()
        found: dict[int, Any] = {}
        end: asyncio.Future[Event] = loop.create_future()

        def listen(event: Event) -> None:
            # The loop is woken once: each time costs both threads a turn.
            if isinstance(event, Finished):
                found[event.part] = event.result
            else:
                loop.call_soon_threadsafe(end.set_result, event)

        with self._job(work, timeout, listen):
            gone = asyncio.create_task(_left(request))
            try:
                await asyncio.wait((end, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
            if not end.done():
                raise ClientGoneError
        event = end.result()
        if not isinstance(event, Done):
            assert isinstance(event, Failed)
            raise event.error
        images = [image for part in sorted(found) for image in work.read(part, found[part])]
        self._count(request, images, event)
        return images, event

    async def streamed(
        self, request: Request, work: Work, timeout: float | None, preview_every: int
    ) -> AsyncIterator[bytes]:
        """Server-sent events: `preview`, `image`, `done`, `error`.

        The first is empty: it comes when the job is taken, before which it may be refused.
        """
        loop, events, images = asyncio.get_running_loop(), asyncio.Queue[Event](), list[Drawn]()

        def listen(event: Event) -> None:
            if isinstance(event, Previewed) and events.qsize() >= HELD_PREVIEWS:
                return
            loop.call_soon_threadsafe(events.put_nowait, event)

        with self._job(work, timeout, listen, preview_every):
            yield b""
            while True:
                event = await events.get()
                if isinstance(event, Previewed):
                    told = await asyncio.to_thread(
                        _previews, event.preview, work.places[event.part]
                    )
                    for each in told:
                        yield _sse("preview", each)
                elif isinstance(event, Finished):
                    part = work.read(event.part, event.result)
                    images += part
                    for i, image in enumerate(part):
                        shown = await asyncio.to_thread(
                            described, image, work.places[event.part] + i
                        )
                        yield _sse("image", shown.model_dump())
                elif isinstance(event, Failed):
                    yield _sse("error", {"message": _told(event.error)})
                    return
                else:
                    self._count(request, images, event)
                    yield _sse("done", {"queue_s": event.queue_s, "run_s": event.run_s})
                    return

    @contextmanager
    def _job(
        self,
        work: Work,
        timeout: float | None,
        listen: Callable[[Event], None],
        preview_every: int = 0,
    ) -> Iterator[None]:
        """A job that is underway, and dropped when nobody listens any more."""
        limit = self.limits.timeout if timeout is None else min(timeout, self.limits.timeout)
        job = Job(work.parts, work.cost, listen, limit, preview_every)
        with self._counted():
            self.scheduler.submit(job)
        try:
            yield
        finally:
            job.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Refusals are."""
        try:
            yield
        except QueueFullError:
            self.metrics.rejected.labels("queue").inc()
            raise

    def _count(self, request: Request, images: list[Drawn], done: Done) -> None:
        self.metrics.queue_wait.observe(done.queue_s)
        for image in images:
            self.metrics.images.labels(image.leaf).inc()
        record(request.headers, request.url.path, done)


async def _left(request: Request) -> None:
    """Ends when the client has gone; polling would miss one that waits for its whole answer."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _previews(preview: Preview, place: int) -> list[dict[str, Any]]:
    images = preview.images.reshape(-1, *preview.images.shape[-3:])
    return [
        {
            "index": place + i,
            "image": b64encode(encode_png(image)).decode("ascii"),
            "step": preview.evaluation - 1,
            "steps": preview.evaluations,
        }
        for i, image in enumerate(images)
    ]


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, TreeDiffusionError) else "an internal error"


def _sse(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
