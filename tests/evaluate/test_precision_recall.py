"""Precision and recall against sets whose answers are known, loops, and torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate import precision_recall as module
from treediffusion.evaluate.precision_recall import precision_recall


def features(count: int, size: int = 4, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, size)) * spread)


def by_loops(generated: Tensor, real: Tensor, k: int) -> tuple[float, float]:
    def share(x: Tensor, y: Tensor) -> float:
        radius = [sorted(float((a - b).norm()) for b in y)[k] for a in y]
        inside = [
            any(float((a - b).norm()) <= r for b, r in zip(y, radius, strict=True)) for a in x
        ]
        return float(np.mean(inside))

    return share(generated, real), share(real, generated)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_it_is_the_share_within_the_nearest_neighbours_balls(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 7)
    generated, real = features(25, spread=1.5), features(19, seed=1)
    assert precision_recall(generated, real, neighbours=k) == pytest.approx(
        by_loops(generated, real, k)
    )


def test_a_set_and_itself_have_both_and_sets_far_apart_neither() -> None:
    x = features(50)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)


def test_one_mode_of_two_is_precise_but_does_not_recall_the_other() -> None:
    left, right = features(60, spread=0.1), features(60, seed=1, spread=0.1) + 50
    found = precision_recall(features(60, seed=2, spread=0.05), torch.cat([left, right]))
    assert found.precision > 0.9
    assert found.recall <= 0.5
    turned = precision_recall(torch.cat([left, right]), features(60, seed=2, spread=0.05))
    assert (turned.precision, turned.recall) == (found.recall, found.precision)


def test_points_on_a_line_by_hand() -> None:
    """With one neighbour, real ones at 0, 1, 3 have the radii 1, 1, 2."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    generated = torch.tensor([[-0.5], [-1.5], [4.9], [5.1]])
    found = precision_recall(generated, real, neighbours=1)
    assert found.precision == 0.5
    # Radii of the generated: 1, 1, 0.2, 0.2; only 0 is within one of them.
    assert found.recall == pytest.approx(1 / 3)


def test_it_is_torch_fidelitys() -> None:
    library = pytest.importorskip("torch_fidelity.metric_prc")
    generated, real = features(80, spread=1.2), features(70, seed=1)
    theirs = library.prc_features_to_metric(generated, real, verbose=False)
    assert precision_recall(generated, real) == pytest.approx(
        (theirs["precision"], theirs["recall"])
    )


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbours: got 3, expected 1 to 2"):
        precision_recall(features(3), features(9))
    with pytest.raises(ConfigError, match="neighbours"):
        precision_recall(features(9), features(9), neighbours=0)
    with pytest.raises(ShapeError, match="other"):
        precision_recall(features(9), features(9, 3))
