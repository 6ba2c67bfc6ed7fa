"""How calls run: watched, cut short, side by side, from threads, event loops and forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_bundle
from treediffusion.errors import (
    BackendUnavailableError,
    CallCancelledError,
    CallTimeoutError,
    ConfigError,
)
from treediffusion.runtime import Engine, Generation, Preview
from treediffusion.runtime.batches import Names, cut, name_images

STEPS = 4
LARGEST = 2**64 - 1


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        yield engine


def in_a_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs it in a thread of its own: the tests' may have a loop already, of a browser's driver."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()


def test_seeds_name_images(engine: Engine) -> None:
    """Image 0 of seed s is what a call with that seed alone draws first."""
    seeds = [5, LARGEST, 0, 5]
    drawn = engine.generate(4, seeds=seeds, num_inference_steps=STEPS)
    assert drawn.seed.tolist() == seeds
    assert drawn.index.tolist() == [0] * 4
    for row, seed in enumerate(seeds):
        alone = engine.generate(1, seed=seed, num_inference_steps=STEPS)
        assert np.array_equal(alone.images[0], drawn.images[row])
        assert alone.leaf[0] == drawn.leaf[row]


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], [1, -1], [1, LARGEST + 1], [1, 0.5], "ab"])
def test_seeds_that_name_no_images(engine: Engine, seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        engine.generate(2, seeds=seeds)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_batches_are_a_partition(total: int, size: int, offset: int) -> None:
    names = name_images(total, 3, offset=offset)
    parts = [(rows, batch) for rows, batch in cut(names, size)]
    assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == list(range(total))
    assert [i for _, batch in parts for i in batch.index] == [*range(offset, offset + total)]
    assert all(len(batch) <= size for _, batch in parts)


def test_a_stream_ends_in_what_generate_draws(engine: Engine) -> None:
    """Previews count evaluations, and the last one is the image itself."""
    *previews, drawn = engine.stream(3, seed=2, num_inference_steps=STEPS)
    assert [p.evaluation for p in previews if isinstance(p, Preview)] == [1, 2, 3, 4]
    assert isinstance(drawn, Generation)
    whole = engine.generate(3, seed=2, num_inference_steps=STEPS)
    assert np.array_equal(drawn.images, whole.images)
    last = previews[-1]
    assert isinstance(last, Preview)
    assert last.done
    assert np.array_equal(last.images, whole.images)


def test_previews_come_closer_to_the_image(engine: Engine) -> None:
    """An estimate of x0 is nearer the end than the noise was; it does not become one by chance."""
    events = list(engine.stream(8, seed=2, num_inference_steps=10))
    images = [event.images.astype(float) for event in events]
    away = [np.abs(seen - images[-1]).mean() for seen in images[:-1]]
    assert away[-1] == 0
    assert away[0] > away[5] > away[-1]


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "ipndm"])
def test_a_callback_sees_every_evaluation_of_every_batch(engine: Engine, solver: str) -> None:
    seen: list[Preview] = []
    how: dict[str, Any] = {"num_inference_steps": STEPS, "solver": solver}
    drawn = engine.generate(5, seed=1, batch_size=2, callback=seen.append, **how)
    ends = [preview for preview in seen if preview.done]
    assert [preview.rows for preview in ends] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert len(seen) == 3 * ends[0].evaluations
    assert np.array_equal(np.concatenate([preview.images for preview in ends]), drawn.images)


def test_a_callback_can_end_a_call(engine: Engine) -> None:
    class Enough(Exception): ...

    def refuse(preview: Preview) -> None:
        raise Enough

    with pytest.raises(Enough):
        engine.generate(2, num_inference_steps=STEPS, callback=refuse)
    assert len(engine.generate(2, num_inference_steps=STEPS).images) == 2


def test_a_cancelled_call_stops_at_its_next_evaluation(engine: Engine) -> None:
    cancel, seen = threading.Event(), []

    def twice(preview: Preview) -> None:
        seen.append(preview)
        if len(seen) == 2:
            cancel.set()

    with pytest.raises(CallCancelledError):
        engine.generate(1, num_inference_steps=50, callback=twice, cancel=cancel)
    assert len(seen) == 2


def test_a_call_that_takes_too_long_says_so(engine: Engine) -> None:
    with pytest.raises(CallTimeoutError, match=r"within 0\.001 s"):
        engine.generate(500, num_inference_steps=100, timeout=0.001)
    assert len(engine.generate(1, num_inference_steps=1, timeout=60).images) == 1


@pytest.mark.parametrize("timeout", [0, -1.0, "1", float("nan"), True])
def test_no_time(engine: Engine, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        engine.generate(1, timeout=timeout)


def test_threads_share_an_engine(engine: Engine) -> None:
    """32 at once, each with a seed, a node and a solver of its own."""
    nodes = engine.topology.names

    def one(seed: int) -> bytes:
        solver = ("ddim", "dpmpp_2m", "unipc")[seed % 3]
        node = nodes[seed % len(nodes)]
        how: dict[str, Any] = {"num_inference_steps": 2, "solver": solver}
        return engine.generate(2, seed=seed, node=node, **how).images.tobytes()

    alone = [one(seed) for seed in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(one, range(32))) == alone


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(["ddim", "unipc", "heun", "ipndm"]), min_size=2, max_size=4))
def test_drawings_share_calls_at_different_steps(solvers: list[str]) -> None:
    """They join one after the other, and each gets the bytes that it gets alone."""
    engine = _engine()
    waiting, running, done = [], [], {}
    for seed, solver in enumerate(solvers):
        how = {"num_inference_steps": 2 + seed, "solver": solver}
        plan, _, names = engine._read(1 + seed % 2, seed, how)  # type: ignore[arg-type]
        waiting.append((seed, how, engine.tasks.generate(names, plan, node="r")))
    while waiting or running:
        running += waiting[:1]
        waiting = waiting[1:]
        engine.tasks.advance([task for *_, task in running])
        done |= {seed: (how, task) for seed, how, task in running if task.drawing.done}
        running = [each for each in running if not each[-1].drawing.done]
    for seed, (how, task) in done.items():
        alone = engine.generate(1 + seed % 2, seed=seed, **how)
        assert np.array_equal(task.result().images, alone.images)


def test_reconstruction_in_a_named_leaf(engine: Engine) -> None:
    """It is that leaf's part of all leaves."""
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), np.uint8)
    sheet = engine.reconstruct_leaves(images, num_inference_steps=2)
    for column, leaf in enumerate(engine.topology.leaf_names):
        drawn = engine.reconstruct(images, leaf=leaf, num_inference_steps=2)
        assert np.array_equal(drawn.images, sheet.images[:, column])
        assert (drawn.leaf == column).all()


def test_an_event_loop_is_not_blocked(engine: Engine) -> None:
    """A stream and a call run while the loop counts; they draw what they draw elsewhere."""

    async def main() -> tuple[Any, Any, int]:
        ticks = 0

        async def count() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        counting = asyncio.create_task(count())
        events = [event async for event in engine.astream(2, seed=4, num_inference_steps=STEPS)]
        drawn = await engine.agenerate(2, seed=4, num_inference_steps=STEPS)
        counting.cancel()
        return events, drawn, ticks

    events, drawn, ticks = in_a_loop(main)
    whole = engine.generate(2, seed=4, num_inference_steps=STEPS)
    assert len(events) == STEPS + 1
    assert np.array_equal(events[-1].images, whole.images)
    assert np.array_equal(drawn.images, whole.images)
    assert ticks > STEPS


def test_a_cancelled_coroutine_ends_its_call(engine: Engine) -> None:
    seen: list[Preview] = []

    async def main() -> None:
        call = engine.agenerate(1, num_inference_steps=100, solver="ddpm", callback=seen.append)
        await asyncio.wait_for(call, timeout=0.05)

    with pytest.raises(TimeoutError):
        in_a_loop(main)
    assert len(seen) < 100


def test_a_fork_is_refused_before_it_hangs(engine: Engine) -> None:
    def child(pipe: Any) -> None:
        try:
            engine.generate(1, num_inference_steps=1)
        except BackendUnavailableError as fault:
            pipe.send(str(fault))
        else:
            pipe.send("drawn")

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(30)
    assert "forked" in ours.recv()
    process.join(10)


def test_warming_up_loads_every_graph() -> None:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        engine.warmup()
        assert set(engine._backend._sessions._made) == set(engine._bundle.graphs)  # type: ignore[attr-defined]


def test_names_repeat_in_order() -> None:
    assert Names([7, 8], [0, 1]).repeated(2) == Names([7, 7, 8, 8], [0, 0, 1, 1])


def test_an_unknown_option_is_a_mistake(engine: Engine) -> None:
    with pytest.raises(TypeError, match="steps"):
        engine.generate(1, steps=3)  # type: ignore[call-arg]


_OPEN: list[Engine] = []


def _engine() -> Engine:
    if not _OPEN:
        _OPEN.append(Engine.load(tiny_bundle(), threads=1))
    return _OPEN[0]
