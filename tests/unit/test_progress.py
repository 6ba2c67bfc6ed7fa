from __future__ import annotations

import io
import re

import pytest
from treediffusion.progress import MEMORY_S, Progress, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TQDM_DISABLE", "TERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(progress: Progress, clock: Clock, *, steps: int, seconds: float, amount: float) -> None:
    for _ in range(steps):
        clock.now += seconds
        progress.advance(amount, "grow 4/10")


def test_line_has_the_documented_form(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=1, seconds=61, amount=61)
    assert stream.getvalue() == "train: grow 4/10, 61 %, ETA 0:39\n"


def test_constant_speed_gives_the_exact_remaining_time(clock: Clock) -> None:
    """The fading mean is unbiased: work and time fade alike."""
    progress = Progress(1000, "train", quiet=True, clock=clock)
    work(progress, clock, steps=90, seconds=3, amount=2)
    assert progress.eta == pytest.approx((1000 - 180) * 1.5)


def test_rate_forgets_an_earlier_phase(clock: Clock) -> None:
    progress = Progress(10_000, "train", quiet=True, clock=clock)
    work(progress, clock, steps=100, seconds=1, amount=10)
    work(progress, clock, steps=int(10 * MEMORY_S), seconds=1, amount=1)
    assert progress.eta == pytest.approx(10_000 - 1000 - 600, rel=1e-3)


def test_at_most_one_line_in_ten_seconds_and_always_the_last(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(35, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=35, seconds=1, amount=1)
    percents = [line.split(", ")[1] for line in stream.getvalue().splitlines()]
    assert percents == ["2 %", "31 %", "60 %", "88 %", "100 %"]
    assert stream.getvalue().endswith("100 %, ETA 0:00\n")


def test_last_state_is_written_once_even_if_the_work_fails(clock: Clock) -> None:
    stream = io.StringIO()

    def fail() -> None:
        with Progress(4, "train", stream=stream, clock=clock) as progress:
            work(progress, clock, steps=3, seconds=1, amount=1)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert [line.split(", ")[1] for line in stream.getvalue().splitlines()] == ["25 %", "75 %"]


def test_extend_replaces_the_total(clock: Clock) -> None:
    progress = Progress(10, "train", quiet=True, clock=clock)
    work(progress, clock, steps=5, seconds=2, amount=1)
    progress.extend(20)
    assert progress.fraction == 0.25
    assert progress.eta == pytest.approx(30)


def test_fraction_stays_between_zero_and_one(clock: Clock) -> None:
    progress = Progress(2, "train", quiet=True, clock=clock)
    work(progress, clock, steps=3, seconds=1, amount=1)
    assert (progress.fraction, progress.eta) == (1.0, 0.0)
    assert Progress(0, "nothing to do", quiet=True, clock=clock).fraction == 1.0


def test_hundred_percent_is_said_of_the_whole_only(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(1000, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=1, seconds=1, amount=999)
    assert ", 99 %," in stream.getvalue()


def test_resumed_work_counts_as_done_but_not_as_speed(clock: Clock) -> None:
    progress = Progress(100, "train", done=50, quiet=True, clock=clock)
    assert (progress.fraction, progress.eta) == (0.5, None)
    work(progress, clock, steps=1, seconds=10, amount=1)
    assert progress.eta == pytest.approx(490)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_quiet_writes_nothing(clock: Clock, stream: io.StringIO) -> None:
    with Progress(2, "train", stream=stream, quiet=True, clock=clock) as progress:
        work(progress, clock, steps=2, seconds=20, amount=1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("value", "silent"), [("1", True), ("true", True), ("0", False)])
def test_tqdm_disable(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, value: str, silent: bool
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", value)
    stream = io.StringIO()
    with Progress(2, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=2, seconds=20, amount=1)
    assert (stream.getvalue() == "") is silent


def test_terminal_gets_a_bar_with_the_same_facts(clock: Clock) -> None:
    stream = Terminal()
    with Progress(4, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=1, seconds=30, amount=1)
    assert "train: grow 4/10" in stream.getvalue()
    assert "25 % · ETA 1:30" in stream.getvalue()


def test_brackets_in_a_description_are_text(clock: Clock) -> None:
    stream = Terminal()
    with Progress(4, "train", stream=stream, clock=clock) as progress:
        progress.advance(1, "leaf [red]")
    assert "leaf [red]" in stream.getvalue()


@pytest.mark.parametrize("no_color", [True, False])
def test_no_color(clock: Clock, monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Progress(4, "train", stream=stream, clock=clock) as progress:
        work(progress, clock, steps=2, seconds=1, amount=1)
    colours = re.findall(r"\x1b\[[0-9;]*\b(?:3[0-8]|9[0-7])[;m]", stream.getvalue())
    assert bool(colours) is not no_color


def test_dumb_terminal_gets_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(1, "train", stream=stream, clock=clock) as progress:
        progress.advance(1, "done")
    assert stream.getvalue() == "train: done, 100 %, ETA 0:00\n"


def test_standard_output_stays_clean(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "train", clock=clock) as progress:
        progress.advance(1, "done")
    captured = capsys.readouterr()
    assert (captured.out, captured.err != "") == ("", True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1:00:00")),
        *((100 * 3600 - 1, "99:59:59"), (100 * 3600, "4 days"), (28e6, "324 days")),
        (float("inf"), "-:--"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
