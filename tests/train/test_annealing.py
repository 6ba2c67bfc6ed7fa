"""The schedules of the published configurations, epoch by epoch."""

from __future__ import annotations

import pytest
from treediffusion.config import TreeConfig
from treediffusion.train.annealing import kl_weight, learning_rate
from treediffusion.train.plan import phase_cost, tree_cost


@pytest.mark.parametrize(
    ("start", "step", "epoch", "expected"),
    [
        (0.0, 0.001, 0, 0.0),
        (0.0, 0.001, 149, 0.149),  # MNIST never gets further before its last phase
        (0.5, 0.001, 149, 0.649),  # Fashion
        (0.01, 0.01, 98, 0.99),  # CIFAR
        (0.01, 0.01, 99, 1.0),
        (0.01, 0.01, 140, 1.0),
        (0.01, 0.01, 34, 0.35),  # CelebA's last epoch
    ],
)
@pytest.mark.parametrize("kind", ["initial", "subtree", "intermediate"])
def test_divergences_weigh_as_published(
    kind: str, start: float, step: float, epoch: int, expected: float
) -> None:
    config = TreeConfig(kl_start=start, kl_step=step)
    assert kl_weight(config, kind, epoch, 150) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "epochs", "epoch", "expected"),
    [
        (0.0, 200, 100, 1.0),  # MNIST: steps of 0.01
        (0.0, 200, 99, 0.99),
        (0.5, 200, 50, 1.0),  # Fashion
        (0.0, 11, 5, 0.5),  # a short phase still gets there: steps of 1 / (epochs - 1)
        (0.0, 11, 10, 1.0),
        (0.0, 1, 0, 0.0),
    ],
)
def test_the_final_phase_reaches_the_whole_weight(
    start: float, epochs: int, epoch: int, expected: float
) -> None:
    config = TreeConfig(kl_start=start, kl_step=0.001)
    assert kl_weight(config, "final", epoch, epochs) == pytest.approx(expected)


def test_a_limit_holds_in_every_phase() -> None:
    config = TreeConfig(kl_start=0.1, kl_step=0.5, kl_limit=0.2)
    assert {kl_weight(config, kind, 9, 10) for kind in ("initial", "final")} == {0.2}


def test_the_learning_rate_falls_to_a_tenth_every_hundred_epochs() -> None:
    config = TreeConfig()
    rates = [learning_rate(config, "initial", epoch, 250) for epoch in (0, 99, 100, 199, 200)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_a_cosine_ends_at_nothing_and_a_gentle_final_phase_begins_lower() -> None:
    config = TreeConfig(learning_rate_schedule="cosine", final_rate=0.1)
    assert learning_rate(config, "subtree", 0, 40) == pytest.approx(1e-3)
    assert learning_rate(config, "subtree", 20, 40) == pytest.approx(5e-4)
    assert learning_rate(config, "subtree", 40, 40) == pytest.approx(0.0)
    assert learning_rate(config, "final", 0, 40) == pytest.approx(1e-4)


def test_the_plan_has_no_intermediate_phase_after_the_last_split() -> None:
    """Of ten leaves after splits 3 and 6; of eight leaves the sixth split is the last."""
    phases = {"initial": 0, "subtree": 0, "intermediate": 1, "final": 0}
    costs = {
        leaves: tree_cost(TreeConfig(max_leaves=leaves, phases=phases), 100) for leaves in (8, 10)
    }
    at_five, at_eight = (phase_cost("intermediate", 1, 100, leaves) for leaves in (5, 8))
    assert costs == pytest.approx({8: at_five, 10: at_five + at_eight})
