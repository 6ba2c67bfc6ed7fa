"""The optimiser of both stages: Adam, all tensors in one operation."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Adam


def make_adam(
    parameters: Iterable[nn.Parameter], learning_rate: float, *, weight_decay: float = 0.0
) -> Adam:
    """Adam with the framework's defaults; the decay is L2 inside it, as published.

    Fused: a network has hundreds of small tensors, and updating them one after another can take a
    tenth of the whole step. On a CUDA device it can be part of a CUDA graph.
    """
    weights = list(parameters)
    on_gpu = bool(weights) and weights[0].is_cuda
    return Adam(weights, learning_rate, weight_decay=weight_decay, fused=True, capturable=on_gpu)
