"""What a case is: the same work done in two ways, ready to be called again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from interleave import Side
from treediffusion.memory import keep_freed_memory

USUAL_THREADS = 1
"""Of PyTorch and of ONNX Runtime. With one, CPU time is what an idle machine would take; pools of
threads wait for one another, and on a busy machine that is most of what they do."""

_threads = USUAL_THREADS


class Pair(NamedTuple):
    """Both sides of a comparison.

    Attributes:
        ours: the project's way.
        baseline: the other way.
    """

    ours: Side
    baseline: Side


Case = Callable[[], Pair]
"""Builds models and inputs, which is not timed, and gives the two sides."""


def use_threads(count: int) -> None:
    """Sets what `threads` gives to the cases that are made from here on."""
    global _threads
    _threads = count


def threads() -> int:
    """How many threads each side has."""
    return _threads


def prepare() -> None:
    """Equal conditions for every case: the threads, and the same weights and inputs each time."""
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(threads())
    torch.manual_seed(0)
