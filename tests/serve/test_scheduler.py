"""What the scheduler promises: a request's own bytes, fairness, bounds, no one left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_bundle
from treediffusion.errors import BackendUnavailableError, CallTimeoutError
from treediffusion.runtime import Engine
from treediffusion.serve import work
from treediffusion.serve.limits import Limits
from treediffusion.serve.scheduler import (
    Done,
    Event,
    Failed,
    Finished,
    Job,
    Previewed,
    QueueFullError,
    Scheduler,
)
from treediffusion.serve.schemas import GenerateRequest

LIMITS = Limits()


class Heard:
    """A listener, and the end of its job."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.times: list[float] = []
        self._end = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(time.monotonic())
        if isinstance(event, Done | Failed):
            self._end.set()

    def wait(self) -> list[Event]:
        assert self._end.wait(30), self.events
        return self.events

    def error(self) -> Exception:
        last = self.wait()[-1]
        assert isinstance(last, Failed), last
        return last.error


class StandIn:
    """An engine whose drawings only count; each call may wait, or fail."""

    def __init__(self, bucket: int = 1, on_call: Callable[[list[Any]], None] | None = None) -> None:
        self.bucket, self.calls, self.closed = bucket, [], False
        self._on_call = on_call
        self.tasks = SimpleNamespace(advance=self._advance)

    def _advance(self, tasks: list[Any]) -> None:
        assert not self.closed
        if self._on_call is not None:
            self._on_call(tasks)
        self.calls.append([task.name for task in tasks])
        for task in tasks:
            task.drawing.evaluation += 1
            task.drawing.done = task.drawing.evaluation == task.drawing.evaluations

    def close(self) -> None:
        self.closed = True


def part(name: str, steps: int, rows: int = 1) -> Callable[[], Any]:
    def begin() -> Any:
        drawing = SimpleNamespace(rows=rows, evaluation=0, evaluations=steps, done=False)
        return SimpleNamespace(
            name=name, drawing=drawing, result=lambda: name, preview=lambda rows: name
        )

    return begin


def job(name: str, parts: int = 1, steps: int = 3, **options: Any) -> tuple[Job, Heard]:
    heard = Heard()
    return Job([part(name, steps) for _ in range(parts)], parts * steps, heard, **options), heard


@pytest.fixture
def schedulers() -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers, and stops them."""
    made: list[Scheduler] = []

    def make(engine: Any, **options: Any) -> Scheduler:
        made.append(Scheduler(engine, **options))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.drain(10)


def gated() -> tuple[StandIn, threading.Event]:
    """An engine that waits before its first call, until everything is submitted."""
    gate = threading.Event()
    return StandIn(on_call=lambda tasks: gate.wait(10) and None), gate


def test_a_job_gets_its_parts_in_any_order_and_then_its_end(schedulers: Any) -> None:
    wanted, heard = job("a", parts=3, preview_every=1)
    schedulers(StandIn(bucket=2)).submit(wanted)
    events = heard.wait()
    assert sorted(e.part for e in events if isinstance(e, Finished)) == [0, 1, 2]
    assert len([e for e in events if isinstance(e, Previewed)]) == 3 * 2
    assert isinstance(events[-1], Done)


def test_small_requests_are_not_held_up_by_big_ones(schedulers: Any) -> None:
    """A request of 3 steps behind one of 3,000 is done after 6 calls, not 3,003."""
    engine, gate = gated()
    scheduler = schedulers(engine)
    big, _ = job("big", parts=100, steps=30)
    small, heard = job("small")
    scheduler.submit(big)
    scheduler.submit(small)
    gate.set()
    heard.wait()
    served = [name for call in engine.calls for name in call]
    assert [i for i, name in enumerate(served) if name == "small"][-1] <= 6
    big.cancel()


def test_equal_requests_share_equally(schedulers: Any) -> None:
    """Whatever the number of images: over 30 calls, two jobs differ by a step."""
    engine, gate = gated()
    scheduler = schedulers(engine)
    jobs = [job(name, parts=parts, steps=10) for name, parts in (("a", 3), ("b", 30))]
    for wanted, _ in jobs:
        scheduler.submit(wanted)
    gate.set()
    jobs[0][1].wait()
    served = [name for call in engine.calls[:60] for name in call]
    assert abs(served.count("a") - served.count("b")) <= 2
    jobs[1][0].cancel()


def test_a_bucket_is_filled_from_several_requests(schedulers: Any) -> None:
    gate = threading.Event()
    engine = StandIn(bucket=4, on_call=lambda tasks: gate.wait(10) and None)
    scheduler = schedulers(engine)
    first, _ = job("first")
    scheduler.submit(first)
    others = [job(name) for name in "abc"]
    for wanted, _ in others:
        scheduler.submit(wanted)
    gate.set()
    for _, heard in others:
        heard.wait()
    assert sorted(engine.calls[1]) == ["a", "b", "c", "first"]


def test_a_full_queue_says_when_to_come_back(schedulers: Any) -> None:
    engine, gate = gated()
    scheduler = schedulers(engine, max_queue=10)
    scheduler.submit(job("a", steps=8)[0])
    assert scheduler.waiting == 8
    with pytest.raises(QueueFullError, match="at most 10") as refused:
        scheduler.submit(job("b", steps=3)[0])
    assert refused.value.retry_after >= 1
    scheduler.submit(job("c", steps=2)[0])
    gate.set()


def test_a_job_larger_than_the_queue_is_taken_when_it_is_empty(schedulers: Any) -> None:
    scheduler = schedulers(StandIn(), max_queue=2)
    wanted, heard = job("a", steps=5)
    scheduler.submit(wanted)
    heard.wait()
    assert scheduler.waiting == 0


def test_a_cancelled_job_leaves_at_the_next_step(schedulers: Any) -> None:
    engine, gate = gated()
    scheduler = schedulers(engine)
    wanted, heard = job("a", parts=5, steps=100)
    scheduler.submit(wanted)
    wanted.cancel()
    after, done = job("b")
    scheduler.submit(after)
    gate.set()
    done.wait()
    assert [name for call in engine.calls for name in call].count("a") <= 1
    assert scheduler.waiting == 0
    assert not heard.events


def test_a_late_job_fails_and_makes_room(schedulers: Any) -> None:
    slow = StandIn(on_call=lambda tasks: time.sleep(0.02))
    scheduler = schedulers(slow)
    wanted, heard = job("a", steps=1000, timeout=0.1)
    scheduler.submit(wanted)
    assert isinstance(heard.error(), CallTimeoutError)
    assert scheduler.waiting == 0


def test_a_fault_reaches_who_shared_the_call_and_nobody_else(schedulers: Any) -> None:
    def fail(tasks: list[Any]) -> None:
        if any(task.name == "bad" for task in tasks):
            raise RuntimeError("out of memory")

    scheduler = schedulers(StandIn(on_call=fail))
    bad, bad_heard = job("bad")
    good, good_heard = job("good")
    scheduler.submit(bad)
    scheduler.submit(good)
    assert "out of memory" in str(bad_heard.error())
    assert isinstance(good_heard.wait()[-1], Done)
    assert scheduler.alive


def test_a_part_that_cannot_begin_fails_its_job_alone(schedulers: Any) -> None:
    def refuse() -> Any:
        raise RuntimeError("no latents")

    heard = Heard()
    scheduler = schedulers(StandIn())
    scheduler.submit(Job([part("a", 2), refuse], 4, heard))
    assert "no latents" in str(heard.error())
    wanted, done = job("b")
    scheduler.submit(wanted)
    assert isinstance(done.wait()[-1], Done)
    assert scheduler.waiting == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_dead_thread(schedulers: Any) -> None:
    def die(tasks: list[Any]) -> None:
        raise SystemExit

    engine = StandIn(on_call=die)
    scheduler = schedulers(engine)
    wanted, heard = job("a")
    scheduler.submit(wanted)
    assert isinstance(heard.error(), BackendUnavailableError)
    scheduler._thread.join(5)
    assert not scheduler.alive
    assert not scheduler.ready
    assert engine.closed
    with pytest.raises(BackendUnavailableError, match="dead engine thread"):
        scheduler.submit(job("b")[0])


def test_draining_finishes_what_was_taken(schedulers: Any) -> None:
    engine = StandIn(on_call=lambda tasks: time.sleep(0.001))
    scheduler = schedulers(engine)
    jobs = [job(name, steps=20) for name in "abc"]
    for wanted, _ in jobs:
        scheduler.submit(wanted)
    assert scheduler.drain(10)
    assert all(isinstance(heard.wait()[-1], Done) for _, heard in jobs)
    assert engine.closed
    with pytest.raises(BackendUnavailableError):
        scheduler.submit(job("d")[0])


def test_draining_has_an_end(schedulers: Any) -> None:
    scheduler = schedulers(StandIn(on_call=lambda tasks: time.sleep(0.01)))
    wanted, heard = job("a", steps=10_000)
    scheduler.submit(wanted)
    assert not scheduler.drain(0.1)
    assert isinstance(heard.error(), BackendUnavailableError)


def test_another_engine_takes_over_between_requests(schedulers: Any) -> None:
    """What is underway ends with the engine it began with, which is then closed."""
    old, gate = gated()
    new = StandIn()
    scheduler = schedulers(old)
    before, first = job("before", parts=2, steps=5)
    scheduler.submit(before)
    scheduler.replace(new)
    after, second = job("after")
    scheduler.submit(after)
    gate.set()
    first.wait()
    second.wait()
    assert {name for call in old.calls for name in call} == {"before"}
    assert {name for call in new.calls for name in call} == {"after"}
    scheduler.drain(5)
    assert old.closed
    assert new.closed


def test_something_short_runs_between_steps(schedulers: Any) -> None:
    done = threading.Event()
    scheduler = schedulers(StandIn())
    scheduler.call(done.set)
    assert done.wait(5)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from(["ddim", "unipc", "heun"]),
            st.sampled_from(["r", "r0"]),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_bytes_do_not_depend_on_company(requests: list[tuple[int, str, str]]) -> None:
    """Requests with their own seeds, solvers, steps and nodes, all at once: each as it is alone."""
    scheduler, alone = _running()
    waiting = []
    for seed, (n, solver, node) in enumerate(requests):
        body = GenerateRequest(
            n=n,
            seed=seed,
            node=node,
            solver=solver,
            num_inference_steps=2 + seed,  # type: ignore[arg-type]
        )
        wanted, heard = work.generate(scheduler.engine, body, LIMITS), Heard()
        scheduler.submit(Job(wanted.parts, wanted.cost, heard))
        waiting.append((seed, body, wanted, heard))
    for seed, body, wanted, heard in waiting:
        found = {
            e.part: wanted.read(e.part, e.result) for e in heard.wait() if isinstance(e, Finished)
        }
        images = np.stack([image.pixels for part in sorted(found) for image in found[part]])
        expected = alone.generate(
            body.n, seed=seed, node=body.node, solver=body.solver,
            num_inference_steps=body.num_inference_steps,
        )  # fmt: skip
        assert np.array_equal(images, expected.images)


_RUNNING: list[tuple[Scheduler, Engine]] = []


def _running() -> tuple[Scheduler, Engine]:
    if not _RUNNING:
        engines = [Engine.load(tiny_bundle(), threads=1) for _ in range(2)]
        _RUNNING.append((Scheduler(engines[0]), engines[1]))
    return _RUNNING[0]
