"""A tree that grows: what is trained now, and what comes next.

    initial -> [subtree of the next leaf -> attach -> every third time: intermediate]* -> prune
            -> final -> done

What comes next depends only on what has been trained. `TreeStage` does the training, of one grower
or of several at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..config import TreeConfig
from ..errors import TrainingError
from ..files import write_text
from ..nn.node_stack import NodeStack
from ..nn.tree_vae import TreeVAE
from ..topology import TreeTopology
from .growth import choose_pruned, choose_split, effective_leaves, members
from .images import TrainingImages
from .measure import leaf_prob, mean_elbo, split_score
from .tree_state import Phase, PhaseEnd, TreeState


class Grower:
    """A tree, the leaves that grow under it, and its state.

    Args:
        images: to train on.
        config: the tree's settings.
        path: where the tree as it stands is written after each phase, as readable JSON.
        number: among the trees that grow side by side; None if it is alone.
    """

    def __init__(
        self,
        images: TrainingImages,
        config: TreeConfig,
        path: Path,
        *,
        number: int | None = None,
    ) -> None:
        self.images, self.config, self.path, self.number = images, config, path, number
        self.state = TreeState()
        self.tree = self._tree(TreeTopology.initial())
        self.children: NodeStack | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.state.phase.kind == "done"

    @property
    def epochs(self) -> int:
        """Epochs of the phase."""
        return 0 if self.done else cast(int, getattr(self.config.phases, self.state.phase.kind))

    @property
    def trained(self) -> TreeVAE | NodeStack:
        """The networks that the phase trains."""
        return self.tree if self.children is None else self.children

    @property
    def networks(self) -> nn.ModuleDict:
        """All networks, those which rest too."""
        parts: dict[str, nn.Module] = {"tree": self.tree}
        if self.children is not None:
            parts["leaves"] = self.children
        return nn.ModuleDict(parts)

    def leaf_prob(self) -> Tensor:
        """[n, L] probabilities of the leaves for all images, without randomness."""
        return leaf_prob(self.tree, self.images)

    def members(self) -> Tensor:
        """[m] int64, the images that train the leaves which grow."""
        leaf = self.state.phase.leaf
        assert leaf is not None
        # The tree above has not changed since the leaf was chosen, so its images have not either.
        column = self.tree.topology.leaf_names.index(leaf)
        return members(self.leaf_prob(), self.config)[:, column].nonzero()[:, 0]

    def enter_next_phase(self) -> PhaseEnd:
        """Attaches what was trained, and decides from the leaf probabilities what comes next.

        Raises:
            TrainingError: the ELBO is not finite.
        """
        finished = self.state.phase
        if self.children is not None:
            assert finished.leaf is not None
            self.tree = self.tree.grow(finished.leaf, self.children)
            self.children = None
            self.state.splits += 1
        prob = self.leaf_prob()
        self._remember(finished)
        end = self.phase_end(finished, prob)
        self.state.phase, self.state.epoch = self._next_phase(finished, prob), 0
        if self.state.phase.leaf is not None:
            self.children = self.tree.new_leaves(self.state.phase.leaf)
        if self.done:
            below = [prob[:, self.tree.topology.leaves_below(name)].double().sum(1).mean()
                     for name in self.tree.topology.names]  # fmt: skip
            self.state.node_share = [float(share) for share in below]
        return end

    def phase_end(self, finished: Phase, prob: Tensor) -> PhaseEnd:
        """What to show of the phase that ended last; prob: [n, L] of the leaves."""
        share, leaf = prob.double().mean(0).cpu().numpy(), prob.argmax(1).cpu().numpy()
        elbo = float(self.state.history[-1]["elbo"])
        return PhaseEnd(finished, self.tree.topology, share, leaf, elbo, self.number)

    def to_state(self) -> dict[str, Any]:
        """Everything but the networks, for a checkpoint."""
        return asdict(self.state) | {"topology": list(self.tree.topology.names)}

    def adopt(self, state: dict[str, Any]) -> None:
        """Becomes what `to_state` described, with fresh networks of the right shapes."""
        state = dict(state)
        self.tree = self._tree(TreeTopology(tuple(state.pop("topology"))))
        self.state = TreeState(**state | {"phase": Phase(**state["phase"])})
        leaf = self.state.phase.leaf
        self.children = None if leaf is None else self.tree.new_leaves(leaf)

    def _next_phase(self, finished: Phase, prob: Tensor) -> Phase:
        if finished.kind == "final":
            return Phase("done")
        due = self.state.splits % self.config.phases.intermediate_every == 0
        full = effective_leaves(prob, self.config) >= self.config.max_leaves
        if finished.kind == "subtree" and due and not full:
            return Phase("intermediate")
        score = None if full else split_score(self.tree, self.images)
        leaf = choose_split(prob, self.tree.topology, self.config, score=score)
        if leaf is not None:
            return Phase("subtree", leaf)
        self._prune()
        return Phase("final")

    def _prune(self) -> None:
        """Removes leaves that are too small, the smallest first."""
        while True:
            leaf = choose_pruned(self.leaf_prob(), self.tree.topology, self.config)
            if leaf is None:
                return
            self.tree = self.tree.prune(leaf)

    def _remember(self, finished: Phase) -> None:
        """Writes down how a phase ended."""
        tree, terms = self.tree.topology, mean_elbo(self.tree, self.images)
        if not math.isfinite(terms["elbo"]):
            raise TrainingError(
                f"{finished}, at its end",
                got=f"an ELBO of {terms['elbo']}",
                expected="a finite number",
                hint="train into another folder with a lower tree.learning_rate",
            )
        row = {"phase": finished.kind, "leaf": finished.leaf, "epochs": self.epochs}
        self.state.history.append(row | {"leaves": tree.num_leaves} | terms)
        write_text(self.path, tree.to_json())

    def _tree(self, topology: TreeTopology) -> TreeVAE:
        _, channels, size, _ = self.images.shape
        tree = TreeVAE(self.config, topology, image_channels=channels, image_size=size)
        return tree.to(self.images.device)
