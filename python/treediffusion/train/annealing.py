"""How the weight of the divergences and the learning rate change within a phase.

    alpha(e) = min(limit, start + e step)     lr(e) = rate 0.1^floor(e / 100)

Both begin anew in every phase, with e = 0, and so does the optimiser.
"""

from __future__ import annotations

import math

from ..config import TreeConfig


def kl_weight(config: TreeConfig, kind: str, epoch: int, epochs: int) -> float:
    """Weight of the KL terms in an epoch, counted from 0, of a phase of so many epochs."""
    step = config.kl_step
    if kind == "final":
        # As published: the last phase reaches the full weight, however short it is.
        step = max(step, 0.01, 1 / max(1, epochs - 1))
    return min(config.kl_limit, config.kl_start + epoch * step)


def learning_rate(config: TreeConfig, kind: str, epoch: int, epochs: int) -> float:
    """Adam's learning rate in an epoch, counted from 0, of a phase of so many epochs."""
    rate = config.learning_rate * (config.final_rate if kind == "final" else 1.0)
    if config.learning_rate_schedule == "step":
        return rate * 0.1 ** (epoch // 100)
    return rate * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
