"""Where a tree's training stands: what its checkpoint keeps, and what those who look on see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..topology import TreeTopology

PhaseKind = Literal["initial", "subtree", "intermediate", "final", "done"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of weights; `leaf` is the one a subtree grows under."""

    kind: PhaseKind
    leaf: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} of {self.leaf}" if self.leaf else self.kind


@dataclass
class TreeState:
    """Where training stands, besides the networks.

    Attributes:
        phase: what is being trained.
        epoch: epochs of the phase that are done.
        step: steps of the epoch that are done.
        order: seed of the epoch's order of images; None before its first step.
        splits: leaves split so far.
        history: a row per finished phase, with the ELBO's terms on the training images.
        node_share: [N] share of the images that reach each node; empty until done.
    """

    phase: Phase = Phase("initial")
    epoch: int = 0
    step: int = 0
    order: int | None = None
    splits: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    node_share: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class PhaseEnd:
    """What those who look on see when a phase has ended.

    Attributes:
        phase: what was trained.
        topology: the tree as it stands.
        share: [L] of the images, by leaf.
        leaf: [n] the most probable leaf of each image.
        elbo: in nats per image.
        number: of the tree, where several grow side by side.
    """

    phase: Phase
    topology: TreeTopology
    share: NDArray[np.float64]
    leaf: NDArray[np.int64]
    elbo: float
    number: int | None = None

    def __str__(self) -> str:
        shares = " ".join(f"{100 * share:.0f}" for share in self.share)
        leaves = f"{self.topology.num_leaves} leaves with {shares} % of the images"
        who = "" if self.number is None else f"tree {self.number} "
        return f"{who}after {self.phase}: {leaves}, ELBO {self.elbo:.2f}"
