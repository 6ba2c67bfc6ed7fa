"""One thread that draws for everybody: requests share calls of the network, step by step.

A job is a request's images, cut into parts of at most a bucket. In each round the thread fills one
bucket with rows of the jobs that have been served least, makes one call, and moves each of these
parts on by one evaluation of its own solver. So parts join and leave at every step, and a small
request is not held up by a big one. A row of a call does not depend on the others: a request's
bytes are those it would have alone.

    cost of a job = sum of rows x evaluations, in image-steps       wait = image-steps ahead / rate

Knows nothing of HTTP; what happens to a job is told to its listener, in this thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BackendUnavailableError, CallTimeoutError, TreeDiffusionError
from ..runtime import Engine, Preview
from ..runtime.tasks import Task

MEMORY_S = 10.0
"""Time constant of the rate's running mean."""


class QueueFullError(TreeDiffusionError, RuntimeError):
    """More work than the queue may hold.

    Attributes:
        retry_after: seconds until there is likely to be room.
    """

    retry_after: float = 1.0


@dataclass(frozen=True)
class Previewed:
    """A part has come closer."""

    part: int
    preview: Preview


@dataclass(frozen=True)
class Finished:
    """A part is done."""

    part: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """The job has ended without its images."""

    error: Exception


@dataclass(frozen=True)
class Done:
    """Every part is done.

    Attributes:
        queue_s: seconds until the first evaluation.
        run_s: seconds from there.
    """

    queue_s: float
    run_s: float


Event = Previewed | Finished | Failed | Done


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        parts: each begins a part of the images, in the engine's thread; it may raise.
        cost: image-steps of all parts.
        listen: told every event; must return at once.
        timeout: seconds it may take, waiting included.
        preview_every: evaluations between previews; 0 for none.
    """

    parts: Sequence[Callable[[], Task[Any]]]
    cost: int
    listen: Callable[[Event], None]
    timeout: float | None = None
    preview_every: int = 0
    submitted: float = field(default_factory=time.monotonic)
    _engine: Engine | None = None
    _cancelled: bool = False
    _began: float | None = None
    _next: int = 0
    _running: dict[int, Task[Any]] = field(default_factory=dict)
    _served: int = 0
    _left: int = 0

    def cancel(self) -> None:
        """Drops the job at the next step; from any thread."""
        self._cancelled = True


@dataclass(frozen=True)
class _Call:
    """Something short between two steps, and its image-steps in the queue."""

    work: Callable[[], None]
    cost: int = 0


class Scheduler:
    """Draws jobs until it is stopped.

    Args:
        engine: of the bundle; the scheduler closes it when it is replaced or the work is over.
        max_queue: image-steps that may wait; a job that finds the queue empty is always taken.
        on_step: told rows and seconds of every call.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue: int = 100_000,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        self._engine, self._max_queue, self._on_step = engine, max_queue, on_step
        self._changed = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._calls: deque[_Call] = deque()
        self._jobs: list[Job] = []
        self._waiting = 0
        self._rate = 0.0
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._work, name="treediffusion-engine", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> Engine:
        """That draws what is submitted next."""
        return self._engine

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether jobs are taken."""
        return self.alive and not self._draining

    @property
    def waiting(self) -> int:
        """Image-steps that are still to do."""
        return self._waiting

    @property
    def wait(self) -> float:
        """Seconds that what is waiting is likely to take; 0 before anything was measured."""
        return self._waiting / self._rate if self._rate else 0.0

    def submit(self, job: Job) -> None:
        """Takes a job.

        Raises:
            QueueFullError: there is no room.
            BackendUnavailableError: the scheduler is stopping, or its thread has died.
        """
        with self._changed:
            self._check(job.cost)
            job._engine, job._left = self._engine, job.cost
            self._waiting += job.cost
            self._inbox.append(job)
            self._changed.notify()

    def call(self, work: Callable[[], None], cost: int = 0) -> None:
        """Runs something short between two steps, once, whatever happens; it must not raise.

        Args:
            work: told nothing; finds the engine closed where its thread has ended first.
            cost: image-steps that it takes the place of in the queue.

        Raises:
            QueueFullError: as for `submit`.
            BackendUnavailableError: as for `submit`.
        """
        with self._changed:
            self._check(cost)
            self._waiting += cost
            self._calls.append(_Call(work, cost))
            self._changed.notify()

    def replace(self, engine: Engine) -> None:
        """Draws what is submitted from here on with another engine; jobs underway keep theirs."""
        with self._changed:
            old, self._engine = self._engine, engine
            self._calls.append(_Call(lambda: self._retire(old)))
            self._changed.notify()

    def drain(self, timeout: float) -> bool:
        """Takes no more jobs, finishes those it has, and stops.

        Returns:
            Whether all were finished in time; the others have failed.
        """
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._thread.join(timeout)
        finished = not self._thread.is_alive()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        return finished

    def _check(self, cost: int) -> None:
        """Whether there is somebody to do this, and room."""
        if not self.ready:
            raise BackendUnavailableError(
                "server", got="a request while it stops" if self.alive else "a dead engine thread",
                expected="a running server", hint="ask another replica",
            )  # fmt: skip
        if cost and self._waiting and self._waiting + cost > self._max_queue:
            full = QueueFullError(
                "queue", got=f"{cost} image-steps on top of {self._waiting}",
                expected=f"at most {self._max_queue}", hint="try again later",
            )  # fmt: skip
            full.retry_after = max(1.0, self.wait)
            raise full

    def _work(self) -> None:
        fault: BaseException | None = None
        try:
            while self._receive():
                self._drop()
                self._round()
        except BaseException as error:
            fault = error
            raise
        finally:
            self._end(fault)

    def _receive(self) -> bool:
        """Takes what has arrived; waits where there is nothing to do. False at the end."""
        with self._changed:
            while not (self._busy or self._draining or self._closing):
                self._changed.wait()
            if self._closing or (self._draining and not self._busy):
                return False
            arrived, self._inbox = list(self._inbox), deque()
            # One at a time: a crowd of calls may not keep the images from their steps.
            call = self._calls.popleft() if self._calls else None
        for job in arrived:
            # It begins level with the job that was served least: neither ahead nor behind.
            job._served = min((each._served for each in self._jobs), default=0)
            self._jobs.append(job)
        if call is not None:
            self._answer(call)
        return True

    @property
    def _busy(self) -> bool:
        return bool(self._inbox or self._calls or self._jobs)

    def _answer(self, call: _Call) -> None:
        with self._changed:
            self._waiting -= call.cost
        call.work()

    def _drop(self) -> None:
        """Ends the jobs that nobody waits for any more."""
        now = time.monotonic()
        for job in list(self._jobs):
            took = now - job.submitted
            if job._cancelled:
                self._leave(job)
            elif job.timeout is not None and took > job.timeout:
                late = CallTimeoutError(
                    "request", got=f"no end after {took:.2f} s",
                    expected=f"one within {job.timeout:g} s", hint="take fewer images or steps",
                )  # fmt: skip
                self._fail(job, late)

    def _round(self) -> None:
        """One call of the network for the parts whose turn it is."""
        chosen: list[tuple[Job, int, Task[Any]]] = []
        engine, room = None, 0
        for job in sorted(self._jobs, key=lambda job: job._served):
            if engine is None:
                engine = job._engine
                room = 0 if engine is None else engine.bucket
            if job._engine is not engine:
                continue
            for part, task in self._ready(job, room):
                chosen.append((job, part, task))
                room -= task.drawing.rows
            if room <= 0:
                break
        if engine is None or not chosen:
            return
        began = time.monotonic()
        try:
            engine.tasks.advance([task for *_, task in chosen])
        except Exception as error:  # of a back end: whoever shared the call is told
            for job in {id(job): job for job, *_ in chosen}.values():
                self._fail(job, error)
            return
        rows = sum(task.drawing.rows for *_, task in chosen)
        self._measure(rows, time.monotonic() - began)
        for job, part, task in chosen:
            self._moved(job, part, task)

    def _ready(self, job: Job, room: int) -> list[tuple[int, Task[Any]]]:
        """Parts of a job that fill the room, at least one: those underway, then new ones."""
        found: list[tuple[int, Task[Any]]] = []
        for part, task in job._running.items():
            if room <= 0:
                return found
            found.append((part, task))
            room -= task.drawing.rows
        while room > 0 and job._next < len(job.parts):
            if job._began is None:
                job._began = time.monotonic()
            part = job._next
            job._next += 1
            try:
                task = job.parts[part]()
            except Exception as error:  # of a back end, or of a mistake only seen here
                self._fail(job, error)
                return []
            job._running[part] = task
            found.append((part, task))
            room -= task.drawing.rows
        return found

    def _moved(self, job: Job, part: int, task: Task[Any]) -> None:
        """What follows from an evaluation."""
        drawing = task.drawing
        job._served += drawing.rows
        self._spend(job, drawing.rows)
        if drawing.done:
            del job._running[part]
            job.listen(Finished(part, task.result()))
            if not job._running and job._next == len(job.parts):
                self._finish(job)
        elif job.preview_every and drawing.evaluation % job.preview_every == 0:
            job.listen(Previewed(part, task.preview(slice(part, part + 1))))

    def _finish(self, job: Job) -> None:
        now, began = time.monotonic(), job._began or job.submitted
        self._leave(job)
        job.listen(Done(began - job.submitted, now - began))

    def _fail(self, job: Job, error: Exception) -> None:
        self._leave(job)
        job.listen(Failed(error))

    def _leave(self, job: Job) -> None:
        self._spend(job, job._left)
        job._running.clear()
        if job in self._jobs:
            self._jobs.remove(job)

    def _spend(self, job: Job, rows: int) -> None:
        with self._changed:
            spent = min(rows, job._left)
            job._left -= spent
            self._waiting -= spent

    def _measure(self, rows: int, seconds: float) -> None:
        share = min(1.0, seconds / MEMORY_S) if self._rate else 1.0
        self._rate += share * (rows / max(seconds, 1e-9) - self._rate)
        if self._on_step is not None:
            self._on_step(rows, seconds)

    def _retire(self, old: Engine) -> None:
        """Closes an engine once no job needs it."""
        if any(job._engine is old for job in self._jobs):
            self._calls.append(_Call(lambda: self._retire(old)))
        else:
            old.close()

    def _end(self, fault: BaseException | None) -> None:
        """Whatever happened, nobody is left waiting."""
        with self._changed:
            self._draining = True
            left, calls = [*self._jobs, *self._inbox], [*self._calls]
        for job in left:
            self._fail(job, BackendUnavailableError(
                "server", got="its end" if fault is None else f"{type(fault).__name__}: {fault}",
                expected="a running engine", hint="ask again, or another replica",
            ))  # fmt: skip
        self._engine.close()
        for call in calls:
            self._answer(call)
