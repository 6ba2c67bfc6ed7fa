"""Signals as slots, and guidance as weights of cut paths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from treediffusion.errors import ConfigError
from treediffusion.signals import guidance_weights, leaf_slots, reads_ids, reads_latents
from treediffusion.topology import TreeTopology

TREE = TreeTopology.initial().grow("r1").prune("r10").grow("r0")


def test_a_path_is_every_node_from_the_root_to_the_leaf() -> None:
    slots = leaf_slots(TREE, "path")
    for leaf, rows, ids in zip(
        TREE.leaf_names, slots.rows.tolist(), slots.ids.tolist(), strict=True
    ):
        names = [TREE.names[row] for row in rows if row >= 0]
        assert names == [leaf[:k] for k in range(1, len(leaf) + 1)]
        assert ids == rows


@pytest.mark.parametrize("signal", ["leaf_id", "leaf_embedding", "leaf_id_embedding"])
def test_a_leafs_signal_is_its_own_latent_and_its_position(signal: str) -> None:
    rows, ids = leaf_slots(TREE, signal)  # type: ignore[arg-type]
    assert [TREE.names[row] for row in rows[:, 0]] == list(TREE.leaf_names)
    assert ids[:, 0].tolist() == list(range(TREE.num_leaves))


def test_no_signal_has_no_slot() -> None:
    assert (leaf_slots(TREE, "none").ids == -1).all()
    assert not reads_latents("none")
    assert not reads_ids("none")


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, (2.0,), (3.0, 1.5), (1.0, 2.0, 0.5, 4.0)])
@pytest.mark.parametrize("slots", [1, 3, 4])
def test_weights_are_the_sum_of_what_each_depth_adds(
    scale: float | tuple[float, ...], slots: int
) -> None:
    """Against the definition, term by term; they sum to 1, and 1 is no guidance."""
    outputs = np.random.default_rng(0).standard_normal(slots + 1)
    scales = list(scale) if isinstance(scale, tuple) else [scale]
    scales = (scales + [scales[-1]] * slots)[:slots]
    expected = outputs[0] + sum(
        w * (after - before) for w, (before, after) in zip(scales, pairwise(outputs), strict=True)
    )
    weights = guidance_weights(scale, slots)
    np.testing.assert_allclose(weights @ outputs, expected, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)


def test_one_number_is_classifier_free_guidance() -> None:
    np.testing.assert_allclose(guidance_weights(3.0, 4), [-2, 0, 0, 0, 3])
    np.testing.assert_allclose(guidance_weights(1.0, 4), [0, 0, 0, 0, 1])


@pytest.mark.parametrize("scale", [(), float("nan"), (1.0, float("inf")), ((1.0, 2.0), (1.0, 2.0))])
def test_what_is_no_scale_is_refused(scale: object) -> None:
    with pytest.raises(ConfigError, match="guidance_scale"):
        guidance_weights(scale, 3)  # type: ignore[arg-type]
