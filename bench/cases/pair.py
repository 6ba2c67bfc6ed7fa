"""What a case is: the same work done in two ways, ready to be called again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from interleave import Side

THREADS = 1
"""Of PyTorch and of ONNX Runtime. With one, CPU time is what an idle machine would take; pools of
threads wait for one another, and on a busy machine that is most of what they do."""


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


def prepare() -> None:
    """Equal conditions for every case: the threads, and the same weights and inputs each time."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
