"""The optimiser of both stages: Adam, all tensors in one operation."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Adam


def make_adam(
    parameters: Iterable[nn.Parameter], learning_rate: float, *, weight_decay: float = 0.0
) -> Adam:
    """Adam with the framework's defaults; the decay is L2 inside it, as published.

    Fused: a tree has hundreds of small tensors, and one after another they take as long to update
    as a tenth of the whole step.
    """
    return Adam(parameters, learning_rate, weight_decay=weight_decay, fused=True)
