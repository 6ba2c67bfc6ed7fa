"""What of the tree conditions an image: which nodes' latents, and which ids beside them.

A *slot* is a node whose latent, and id, the condition sums over. Of the published signals the path
has a slot for every node from the root to the leaf; the others have one, the leaf's. A path cut
after k slots is a condition, too: guidance compares paths of all lengths. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .topology import TreeTopology

Signal = Literal["path", "leaf_id", "leaf_embedding", "leaf_id_embedding", "none"]
Reconstruction = Literal["none", "concat", "shift"]
"""How TreeVAE's image of the leaf is seen: not, as further channels, or as the noise's mean."""


class Slots(NamedTuple):
    """The slots of every leaf's condition.

    Attributes:
        rows: [L, P] int64, nodes whose latents are read; -1 for none.
        ids: [L, P] int64, the numbers they go by; -1 for none.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]


def leaf_slots(topology: TreeTopology, signal: Signal) -> Slots:
    """The slots for a signal: a node's id is its row, a leaf's its position among the leaves."""
    paths = topology.paths.astype(np.int64)
    if signal == "path":
        return Slots(paths, paths)
    if signal == "none":
        return Slots(np.full_like(paths[:, :1], -1), np.full_like(paths[:, :1], -1))
    leaves = topology.leaves.astype(np.int64)[:, None]
    return Slots(leaves, np.arange(len(leaves), dtype=np.int64)[:, None])


def reads_latents(signal: Signal) -> bool:
    """Whether latents are part of the condition."""
    return signal in ("path", "leaf_embedding", "leaf_id_embedding")


def reads_ids(signal: Signal) -> bool:
    """Whether ids are."""
    return signal in ("path", "leaf_id", "leaf_id_embedding")


def guidance_weights(scale: float | Sequence[float], slots: int) -> NDArray[np.float64]:
    """How much the network's output counts for paths cut after 0, 1, .. P slots.

    With output F_k for the first k slots, one number is classifier-free guidance,
    ``F_0 + w (F_P - F_0)``, and several weigh what each depth adds,
    ``F_0 + sum_k w_k (F_k - F_(k-1))``; the last of them holds for all depths below.

    Args:
        scale: w, or w_1, w_2, ..
        slots: P.

    Returns:
        [P + 1] float64, which sum to 1.

    Raises:
        ConfigError: no number, or one that is not finite.
    """
    scales = np.atleast_1d(np.asarray(scale, np.float64))
    if scales.ndim != 1 or not scales.size or not np.isfinite(scales).all():
        raise ConfigError(
            "guidance_scale", got=repr(scale), expected="a number, or one for each depth"
        )
    steps = scales[np.minimum(np.arange(slots), len(scales) - 1)]
    weights: NDArray[np.float64] = np.append(1.0, steps) - np.append(steps, 0.0)
    return weights
