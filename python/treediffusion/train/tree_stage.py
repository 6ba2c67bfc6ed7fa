"""Training and growing a TreeVAE: a state machine that can stop and go on anywhere.

    initial -> [subtree of the next leaf -> attach -> every third time: intermediate]* -> prune
            -> final -> done

What comes next depends only on what has been trained, so the state is small: the networks, the
optimiser's moments, the random numbers, the phase, its epoch and step. It is written after every
phase, every few seconds in between, and when a call's time is over; a killed run continues from
there, bit for bit on the CPU. Nothing is written that is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..config import TreeConfig
from ..errors import DataError, TrainingError
from ..files import write_text
from ..nn.node_stack import NodeStack
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from ..topology import TreeTopology
from . import checkpoint
from .annealing import kl_weight, learning_rate
from .budget import OutOfTime
from .growth import choose_pruned, choose_split, effective_leaves, members
from .losses import Objective, SubtreeObjective, TreeObjective
from .measure import leaf_prob, mean_elbo, split_score
from .optimizer import make_adam
from .plan import phase_cost
from .step import make_step
from .tree_state import Phase, PhaseEnd, TreeState


class TreeStage:
    """Trains and grows a TreeVAE on images.

    Args:
        images: [n, C, H, W] float in 0..1, on the device to train on.
        config: the tree's settings.
        path: the checkpoint; an existing one is continued. The tree as it stands lies beside it,
            as readable JSON.
        progress: told about every step, in the unit of `tree_cost`.
        look: shown how each phase ended.

    Raises:
        DataError: images that cannot be trained on.
    """

    def __init__(
        self,
        images: Tensor,
        config: TreeConfig,
        path: Path,
        progress: Progress | None = None,
        *,
        look: Callable[[PhaseEnd], None] | None = None,
    ) -> None:
        check_images(images)
        self.images, self.config, self.path, self.look = images, config, path, look
        self.progress = progress or Progress(1, "", quiet=True)
        self.state = TreeState()
        self.tree = self._tree(TreeTopology.initial())
        self.children: NodeStack | None = None
        self._spent = 0.0
        self._losses: list[Tensor] = []
        if path.exists():
            self._resume()
        else:
            self._optimizer = self._new_optimizer()

    def run(self) -> TreeVAE:
        """Trains until done; returns the tree in eval mode.

        Raises:
            OutOfTime: the progress ended the call; a checkpoint is saved.
            TrainingError: a loss or a weight is not finite; the last checkpoint stays.
        """
        while self.state.phase.kind != "done":
            try:
                self._train_phase()
            except OutOfTime:
                self._save()
                raise
            self._enter_next_phase()
            self._save()
        return self.tree.eval()

    def leaf_prob(self) -> Tensor:
        """[n, L] probabilities of the leaves for all images, without randomness."""
        return leaf_prob(self.tree, self.images)

    def phase_end(self, finished: Phase, prob: Tensor) -> PhaseEnd:
        """What to show of the phase that ended last; prob: [n, L] of the leaves."""
        share, leaf = prob.double().mean(0).cpu().numpy(), prob.argmax(1).cpu().numpy()
        elbo = float(self.state.history[-1]["elbo"])
        return PhaseEnd(finished, self.tree.topology, share, leaf, elbo)

    # Phases

    def _train_phase(self) -> None:
        state, epochs = self.state, self._epochs(self.state.phase)
        step = make_step(self._objective(), self._optimizer) if epochs else None
        saved = time.monotonic()
        while step is not None and state.epoch < epochs:
            place = self.config, state.phase.kind, state.epoch, epochs
            step.set(kl_weight=kl_weight(*place), learning_rate=learning_rate(*place))
            step.objective.trained.train()
            for rows in self._batches(step.objective.count):
                self._losses.append(step(rows))
                self.state.step += 1
                self._report(len(rows), epochs)
            self._check_finite()
            state.epoch, state.step, state.order = state.epoch + 1, 0, None
            if time.monotonic() - saved > checkpoint.INTERVAL_S:
                self._save()
                saved = time.monotonic()

    def _objective(self) -> Objective:
        if self.children is None:
            return TreeObjective(self.tree, self.images)
        leaf = self.state.phase.leaf
        assert leaf is not None
        # The tree above has not changed since the leaf was chosen, so its images have not either.
        column = self.tree.topology.leaf_names.index(leaf)
        rows = members(self.leaf_prob(), self.config)[:, column].nonzero()[:, 0]
        return SubtreeObjective(self.tree, leaf, self.children, self.images, rows)

    def _batches(self, count: int) -> Iterator[Tensor]:
        """The epoch's batches that are left; the last part of one is dropped, as published."""
        state, size = self.state, min(self.config.batch_size, count)
        if state.order is None:
            state.order = int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(state.order)
        order = torch.randperm(count, generator=generator).to(self.images.device)
        for start in range(state.step * size, count - size + 1, size):
            yield order[start : start + size]

    def _check_finite(self) -> None:
        """Refuses to go on from what is not finite; asks the device once, not in every step."""
        state, losses = self.state, self._losses
        self._losses = []
        bad = [number for number, ok in enumerate(_finite(losses)) if not ok] if losses else []
        if bad:
            step = state.step - len(losses) + bad[0] + 1
            raise self._diverged(f"step {step}", f"a loss of {float(losses[bad[0]])}")
        if not all(_finite(list(self._trained.state_dict().values()))):
            raise self._diverged(f"step {state.step}", "weights that are not finite")

    def _diverged(self, place: str, got: str) -> TrainingError:
        """What to say of numbers that no training recovers from."""
        kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
        return TrainingError(
            f"{self.state.phase}, epoch {self.state.epoch + 1}, {place}",
            got=got,
            expected="finite numbers",
            hint=f"train into another folder with a lower tree.learning_rate{kept}",
        )

    def _enter_next_phase(self) -> None:
        """Attaches what was trained, and decides from the leaf probabilities what comes next."""
        finished = self.state.phase
        if self.children is not None:
            assert finished.leaf is not None
            self.tree = self.tree.grow(finished.leaf, self.children)
            self.children = None
            self.state.splits += 1
        prob = self.leaf_prob()
        self._remember(finished, prob)
        self.state.phase, self.state.epoch = self._next_phase(finished, prob), 0
        if self.state.phase.leaf is not None:
            self.children = self._new_leaves(self.state.phase.leaf)
        if self.state.phase.kind == "done":
            below = [prob[:, self.tree.topology.leaves_below(name)].double().sum(1).mean()
                     for name in self.tree.topology.names]  # fmt: skip
            self.state.node_share = [float(share) for share in below]
        self._optimizer = self._new_optimizer()

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

    def _epochs(self, phase: Phase) -> int:
        return 0 if phase.kind == "done" else cast(int, getattr(self.config.phases, phase.kind))

    # What others see

    def _remember(self, finished: Phase, prob: Tensor) -> None:
        """Writes down how a phase ended, for the history and for whoever looks on."""
        tree, terms = self.tree.topology, mean_elbo(self.tree, self.images)
        if not math.isfinite(terms["elbo"]):
            raise self._diverged("at its end", f"an ELBO of {terms['elbo']}")
        row = {"phase": finished.kind, "leaf": finished.leaf, "epochs": self._epochs(finished)}
        self.state.history.append(row | {"leaves": tree.num_leaves} | terms)
        write_text(self.path.with_suffix(".json"), tree.to_json())
        if self.look is not None:
            self.look(self.phase_end(finished, prob))

    def _report(self, count: int, epochs: int) -> None:
        phase, leaves = self.state.phase, self.tree.topology.num_leaves
        cost = phase_cost(phase.kind, 1, count, leaves)
        self._spent += cost
        where = f"tree of {leaves} leaves, {phase} {self.state.epoch + 1}/{epochs}"
        self.progress.advance(cost, where)

    # State

    @property
    def _trained(self) -> nn.Module:
        return self.tree if self.children is None else self.children

    @property
    def _all(self) -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"tree": self.tree}
        if self.children is not None:
            parts["leaves"] = self.children
        return nn.ModuleDict(parts)

    def _tree(self, topology: TreeTopology) -> TreeVAE:
        _, channels, size, _ = self.images.shape
        tree = TreeVAE(self.config, topology, image_channels=channels, image_size=size)
        return tree.to(self.images.device)

    def _new_leaves(self, leaf: str) -> NodeStack:
        return self.tree.new_leaves(leaf).to(self.images.device)

    def _new_optimizer(self) -> torch.optim.Adam:
        config = self.config
        return make_adam(
            self._trained.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )

    def _save(self) -> None:
        self._check_finite()
        tensors = checkpoint.training_state(self._all, self._optimizer)
        state = asdict(self.state) | {"topology": list(self.tree.topology.names)}
        checkpoint.save(self.path, tensors, {"spent": self._spent} | state)

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        self._spent = state.pop("spent")
        self.tree = self._tree(TreeTopology(tuple(state.pop("topology"))))
        self.state = TreeState(**state | {"phase": Phase(**state["phase"])})
        if self.state.phase.leaf is not None:
            self.children = self._new_leaves(self.state.phase.leaf)
        self._optimizer = self._new_optimizer()
        checkpoint.restore(self._all, self._optimizer, tensors)
        self.progress.skip(self._spent)


def _finite(tensors: list[Tensor]) -> list[bool]:
    """Whether each tensor is finite, in one answer of the device."""
    found: list[bool] = torch.stack([t.detach().isfinite().all() for t in tensors]).tolist()
    return found


def check_images(images: Tensor) -> None:
    """Refuses images that training could not end well with: [n, C, H, W].

    Raises:
        DataError: fewer than two, or pixels that are not finite or beyond 0..1.
    """
    if len(images) < 2:
        raise DataError(
            "images",
            got=len(images),
            expected="at least 2, since batch normalisation compares images",
            hint="add images",
        )
    low, high = (float(value) for value in images.aminmax())
    if not (low >= 0 and high <= 1):  # also where they are not a number
        raise DataError(
            "images",
            got=f"pixels from {low:g} to {high:g}",
            expected="finite numbers from 0 to 1",
            hint="scale the pixels, and replace those that are missing",
        )
