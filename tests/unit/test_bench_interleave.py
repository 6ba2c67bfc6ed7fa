"""Interleaved timing: exact ratios from a clock that only the sides move."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from interleave import Comparison, compare

WARM_UP = 4  # with min_time 0: a call that is not timed and one that is counted, on each side


class Machine:
    """Two sides of known cost, and the clock they move; `load(n)` slows the n-th call down."""

    def __init__(
        self, ours: float, baseline: float, load: Callable[[int], float] = lambda call: 1.0
    ) -> None:
        self.cost = {"ours": ours, "baseline": baseline}
        self.load = load
        self.now = 0.0
        self.calls: list[str] = []
        self.collecting: list[bool] = []

    def run(self, name: str) -> None:
        self.now += self.cost[name] * self.load(len(self.calls))
        self.calls.append(name)
        self.collecting.append(gc.isenabled())

    def compare(self, *, rounds: int, min_time: float = 0.0) -> Comparison:
        return compare(
            lambda: self.run("ours"),
            lambda: self.run("baseline"),
            rounds=rounds,
            min_time=min_time,
            clock=lambda: self.now,
        )


def test_steady_costs_give_their_ratio_and_milliseconds() -> None:
    found = Machine(ours=0.25, baseline=1.0).compare(rounds=3)
    assert found == Comparison(ratio=4.0, p20=4.0, p80=4.0, ours_ms=250.0, baseline_ms=1000.0)


def test_warm_up_comes_first_and_rounds_are_mirrored() -> None:
    """One call that is not timed, one that is counted, then ours, baseline, baseline, ours."""
    machine = Machine(1.0, 1.0)
    machine.compare(rounds=2)
    warm_up = ["ours", "ours", "baseline", "baseline"]
    assert machine.calls == warm_up + 2 * ["ours", "baseline", "baseline", "ours"]


def test_a_slow_first_call_is_in_no_time() -> None:
    found = Machine(1.0, 2.0, load=lambda call: 1000.0 if call in (0, 2) else 1.0).compare(rounds=1)
    assert (found.ratio, found.ours_ms) == (2.0, 1000.0)


def test_a_load_that_grows_evenly_cancels() -> None:
    found = Machine(1.0, 3.0, load=lambda call: 1.0 + call).compare(rounds=4)
    assert found.ratio == pytest.approx(3.0, rel=1e-12)
    assert found.p80 - found.p20 == pytest.approx(0.0, abs=1e-12)


def test_a_burst_in_one_round_does_not_move_the_median() -> None:
    found = Machine(1.0, 2.0, load=lambda call: 50.0 if call == WARM_UP + 1 else 1.0).compare(
        rounds=5
    )
    assert found.ratio == 2.0
    assert (found.ours_ms, found.baseline_ms) == (1000.0, 2000.0)


def test_quantiles_are_those_of_the_rounds() -> None:
    """Rounds of ratio 1, 2, 3, 4, 5 and 6: the quintile points are rounds themselves."""
    machine = Machine(1.0, 1.0)

    def baseline_load(call: int) -> float:
        timed = call - WARM_UP
        return 1.0 + timed // 4 if timed >= 0 and timed % 4 in (1, 2) else 1.0

    machine.load = baseline_load
    found = machine.compare(rounds=6)
    assert (found.p20, found.ratio, found.p80) == pytest.approx((2.0, 3.5, 5.0))


def test_turns_last_at_least_min_time() -> None:
    """The fast side is called more often, and the times stay those of one call."""
    machine = Machine(ours=0.25, baseline=1.5)
    found = machine.compare(rounds=1, min_time=1.0)
    turns = machine.calls[-10:]
    assert turns == 4 * ["ours"] + 2 * ["baseline"] + 4 * ["ours"]
    assert found.ratio == 6.0


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_while_timing_and_as_before_afterwards(enabled: bool) -> None:
    before = gc.isenabled()
    machine = Machine(1.0, 1.0)
    try:
        (gc.enable if enabled else gc.disable)()
        machine.compare(rounds=2)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert not any(machine.collecting)


def test_garbage_collection_comes_back_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        compare(broken, broken, rounds=1, min_time=0.0)
    assert gc.isenabled()
