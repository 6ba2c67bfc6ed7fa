"""Measures the goals of `goals_list` and says which are met.

    python bench/goals.py [--only WORD] [--list] [--threads N] [--json FILE]

Exit status: 0 all that was measured is met, 1 something falls short, 2 nothing has that name.
With one thread the clock is the process's CPU time: it is the time on an idle machine, and what
other programs do in between is not in it. With more it is the clock on the wall, and the machine
has to be idle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the baselines' home

from cases.pair import use_threads
from goals_list import GOALS, Goal
from interleave import Comparison, compare
from machine import describe
from treediffusion.files import write_json

UNMEASURED = "not measured here"
FORMAT = 1


@dataclass(frozen=True)
class Effort:
    """How long to measure; see `compare`."""

    rounds: int = 9
    min_time: float = 0.1


@dataclass(frozen=True)
class Row:
    """A goal and what was found; None where it was not measured."""

    goal: Goal
    found: Comparison | None

    @property
    def short(self) -> bool:
        """Whether it was measured and falls short."""
        return self.found is not None and self.found.ratio < self.goal.goal

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        found = {
            key: round(value, 4) for key, value in asdict(self.found).items()
        } if self.found else None  # fmt: skip
        goal = self.goal
        return {
            "name": goal.name, "goal": goal.goal, "unit": goal.unit, "threads": goal.threads,
            "found": found,
        }  # fmt: skip


def main(arguments: Sequence[str], goals: Sequence[Goal] = GOALS, effort: Effort = Effort()) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(arguments)
    chosen = [goal for goal in goals if options.only in goal.name]
    if not chosen:
        names = ", ".join(goal.name for goal in goals)
        print(f"--only: got '{options.only}', expected a part of: {names}", file=sys.stderr)
        return 2
    width = max(len(goal.name) for goal in chosen)
    if options.list:
        for goal in chosen:
            print(f"{goal.name:{width}}  {_number(goal.goal, goal.unit):>10}  {goal.why}")
        return 0
    rows = []
    for goal in chosen:
        if options.threads is not None:
            goal = replace(goal, threads=options.threads)
        rows.append(_measure(goal, effort))
        print(_line(rows[-1], width), flush=True)
    if options.json is not None:
        document = {"format": FORMAT} | describe(threads=max(goal.threads for goal in chosen))
        write_json(options.json, document | {"rows": [row.to_dict() for row in rows]})
    return 1 if any(row.short for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the project's goals.")
    parser.add_argument("--only", default="", metavar="WORD", help="goals whose name has this part")
    parser.add_argument("--list", action="store_true", help="the goals and their reasons")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="of a side, in place of the goals' own"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    return parser


def _measure(goal: Goal, effort: Effort) -> Row:
    if goal.measure is None:
        return Row(goal, None)
    use_threads(goal.threads)
    ours, baseline = goal.measure()
    return Row(
        goal,
        compare(
            ours,
            baseline,
            rounds=effort.rounds,
            min_time=effort.min_time,
            clock=time.process_time if goal.threads == 1 else time.perf_counter,
        ),
    )


def _line(row: Row, width: int) -> str:
    goal = row.goal
    found = UNMEASURED if row.found is None else _number(row.found.ratio, goal.unit)
    aim = _number(goal.goal, goal.unit)
    verdict = "  falls short" if row.short else ""
    return f"{goal.name:{width}}  {found:>{len(UNMEASURED)}}  {aim:>10}{verdict}"


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{value:g} {unit}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
