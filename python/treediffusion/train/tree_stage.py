"""Training and growing a TreeVAE: a state machine that can stop and go on anywhere.

    initial -> [subtree of the fullest leaf -> attach -> every third time: intermediate]* -> prune
            -> final -> done

What comes next depends only on what has been trained, so the state is small: the networks, the
optimiser's moments, the random numbers, the phase and its epoch. It is written after every phase
and every few seconds in between; a killed run continues from there, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..config import TreeConfig
from ..data.views import random_view
from ..nn.node_stack import NodeStack, TreePass
from ..nn.tree_objective import Elbo, contrastive_loss, subtree_elbo, tree_elbo
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from ..topology import TreeTopology
from . import checkpoint
from .growth import choose_pruned, choose_split
from .plan import phase_cost

PhaseKind = Literal["initial", "subtree", "intermediate", "final", "done"]

CHECKPOINT_INTERVAL_S = 10.0
CHUNK = 1000
"""Images in a pass without gradients."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of weights; `leaf` is the one a subtree grows under."""

    kind: PhaseKind
    leaf: str | None = None


@dataclass
class TreeState:
    """Where training stands, besides the networks.

    Attributes:
        phase: what is being trained.
        epoch: epochs of the phase that are done.
        splits: leaves split so far.
        history: a row per finished phase, with the ELBO's terms on the training images.
        node_share: [N] share of the images that reach each node; empty until done.
    """

    phase: Phase = Phase("initial")
    epoch: int = 0
    splits: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    node_share: list[float] = field(default_factory=list)


class TreeStage:
    """Trains and grows a TreeVAE on images.

    Args:
        images: [n, C, H, W] float in 0..1, on the device to train on.
        config: the tree's settings.
        path: the checkpoint; an existing one is continued.
        progress: told about every epoch, in the unit of `tree_cost`.
    """

    def __init__(
        self, images: Tensor, config: TreeConfig, path: Path, progress: Progress | None = None
    ) -> None:
        self.images, self.config, self.path, self.progress = images, config, path, progress
        self.state = TreeState()
        self.tree = self._tree(TreeTopology.initial())
        self.children: NodeStack | None = None
        self._spent = 0.0
        if path.exists():
            self._resume()
        else:
            self._optimizer = self._new_optimizer()

    def run(self) -> TreeVAE:
        """Trains until done; returns the tree in eval mode."""
        while self.state.phase.kind != "done":
            self._train_phase()
            self._enter_next_phase()
            self._save()
        return self.tree.eval()

    def leaf_prob(self) -> Tensor:
        """[n, L] probabilities of the leaves for all images, without randomness."""
        self.tree.eval()
        with torch.no_grad():
            return torch.cat([self.tree.assign(x) for x in torch.split(self.images, CHUNK)]).exp()

    def elbo(self) -> dict[str, float]:
        """The ELBO's terms in nats per image, over all images, with one sample of each latent."""
        self.tree.eval()
        totals: dict[str, float] = {}
        with torch.no_grad():
            for x in torch.split(self.images, CHUNK):
                terms = self._tree_elbo(x)
                for name in Elbo.__dataclass_fields__:
                    share = float(getattr(terms, name)) * len(x) / len(self.images)
                    totals[name] = totals.get(name, 0.0) + share
        return totals | {"elbo": -sum(totals.values())}

    # Phases

    def _train_phase(self) -> None:
        epochs = self._epochs(self.state.phase)
        batches = self._subtree_losses if self.children is not None else self._tree_losses
        data = self._phase_data()
        saved = time.monotonic()
        while self.state.epoch < epochs:
            self._set_learning_rate(epochs)
            self._trained.train()
            for loss in batches(data, self._kl_weight(epochs)):
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                self._report(min(self.config.batch_size, len(data)))
            self.state.epoch += 1
            if time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
                self._save()
                saved = time.monotonic()

    def _enter_next_phase(self) -> None:
        """Attaches what was trained, and decides from the leaf probabilities what comes next."""
        finished = self.state.phase
        if self.children is not None:
            assert finished.leaf is not None
            self.tree = self.tree.grow(finished.leaf, self.children)
            self.children = None
            self.state.splits += 1
        self._remember(finished)
        self.state.phase, self.state.epoch = self._next_phase(finished), 0
        if self.state.phase.kind == "subtree":
            self.children = self.tree.new_leaves().to(self.images.device)
        if self.state.phase.kind == "done":
            prob = self.leaf_prob().double()
            below = [prob[:, self.tree.topology.leaves_below(n)].sum(1).mean()
                     for n in self.tree.topology.names]  # fmt: skip
            self.state.node_share = [float(share) for share in below]
        self._optimizer = self._new_optimizer()

    def _next_phase(self, finished: Phase) -> Phase:
        if finished.kind == "final":
            return Phase("done")
        every = self.config.phases.intermediate_every
        if finished.kind == "subtree" and self.state.splits % every == 0:
            return Phase("intermediate")
        split = choose_split(self.leaf_prob(), self.tree.topology, self.config)
        if split is not None:
            return Phase("subtree", split.leaf)
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

    def _kl_weight(self, epochs: int) -> float:
        config = self.config
        step = config.kl_step
        if self.state.phase.kind == "final":
            # As published: the last phase reaches the full weight, however short it is.
            step = max(step, 0.01, 1 / max(1, epochs - 1))
        return min(config.kl_limit, config.kl_start + self.state.epoch * step)

    def _set_learning_rate(self, epochs: int) -> None:
        epoch, rate = self.state.epoch, self.config.learning_rate
        if self.state.phase.kind == "final":
            rate *= self.config.final_rate
        if self.config.learning_rate_schedule == "step":
            rate *= 0.1 ** (epoch // 100)
        else:
            rate *= 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    # Losses

    def _tree_losses(self, data: Tensor, kl_weight: float) -> Iterator[Tensor]:
        contrastive = self.config.contrastive
        for index in self._batches(data):
            images = self._views(self.images[index])
            found = self.tree.infer(images)
            terms = tree_elbo(self.tree.nodes, found, images, likelihood=self.config.likelihood)
            loss = terms.loss(kl_weight)
            if self.tree.projections is not None:
                embedding = self.tree.projections(found.features)
                loss = loss + contrastive_loss(contrastive, self.tree.nodes, found.nodes, embedding)
            yield loss

    def _subtree_losses(self, data: Tensor, kl_weight: float) -> Iterator[Tensor]:
        """Losses of the new leaves; the tree above them is frozen, and only its path is run."""
        children, leaf = self.children, self.state.phase.leaf
        assert children is not None
        assert leaf is not None
        self.tree.eval()
        chain = self.tree.chain(leaf).eval()
        row, depth = self.tree.topology.row(leaf), len(leaf) - 1
        for index in self._batches(data):
            images = self._views(self.images[index])
            with torch.no_grad():
                features = self.tree.bottom_up(images)
                log_prob = self.tree.nodes.log_node_prob(self.tree.nodes.route(features))[:, row]
                parent = chain.infer(features=features).nodes.z[:, -1]
            found: TreePass = children(parent, features[:, depth : depth + 2])
            terms = subtree_elbo(
                children, found, images, log_prob, likelihood=self.config.likelihood
            )
            loss = terms.loss(kl_weight)
            if self.config.contrastive.weight:
                loss = loss + contrastive_loss(
                    self.config.contrastive, children, found, None, log_prob=log_prob
                )
            yield loss

    def _batches(self, data: Tensor) -> Iterator[Tensor]:
        """Shuffled positions of images; the last part of a batch is dropped, as published."""
        size = min(self.config.batch_size, len(data))
        order = data[torch.randperm(len(data)).to(data.device)]
        for start in range(0, len(data) - size + 1, size):
            yield order[start : start + size]

    def _views(self, images: Tensor) -> Tensor:
        config = self.config.contrastive
        if not config.weight:
            return images
        return torch.cat([random_view(images, config), random_view(images, config)])

    def _phase_data(self) -> Tensor:
        """[m] positions of the images that the phase trains on."""
        if self.children is None:
            return torch.arange(len(self.images), device=self.images.device)
        # The tree above has not changed since the leaf was chosen, so this is the same choice.
        split = choose_split(self.leaf_prob(), self.tree.topology, self.config)
        assert split is not None
        assert split.leaf == self.state.phase.leaf
        return split.members.nonzero()[:, 0]

    def _tree_elbo(self, images: Tensor) -> Elbo:
        found = self.tree.infer(images)
        return tree_elbo(self.tree.nodes, found, images, likelihood=self.config.likelihood)

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

    def _new_optimizer(self) -> torch.optim.Adam:
        config = self.config
        return torch.optim.Adam(
            self._trained.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )

    def _save(self) -> None:
        tensors = checkpoint.training_state(self._all, self._optimizer)
        state = asdict(self.state) | {"topology": list(self.tree.topology.names)}
        checkpoint.save(self.path, tensors, {"spent": self._spent} | state)

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        self._spent = state.pop("spent")
        self.tree = self._tree(TreeTopology(tuple(state.pop("topology"))))
        self.state = TreeState(**state | {"phase": Phase(**state["phase"])})
        if self.state.phase.kind == "subtree":
            self.children = self.tree.new_leaves().to(self.images.device)
        self._optimizer = self._new_optimizer()
        checkpoint.restore(self._all, self._optimizer, tensors)
        if self.progress is not None:
            self.progress.skip(self._spent)

    def _remember(self, finished: Phase) -> None:
        row = {"phase": finished.kind, "leaf": finished.leaf, "epochs": self._epochs(finished)}
        self.state.history.append(row | {"leaves": self.tree.topology.num_leaves} | self.elbo())

    def _report(self, count: int) -> None:
        phase, leaves = self.state.phase, self.tree.topology.num_leaves
        cost = phase_cost(phase.kind, 1, count, leaves)
        self._spent += cost
        if self.progress is None:
            return
        where = f"{phase.kind} of {phase.leaf}" if phase.leaf else phase.kind
        self.progress.advance(
            cost,
            f"tree of {leaves} leaves, {where} {self.state.epoch + 1}/{self._epochs(phase)}",
        )
