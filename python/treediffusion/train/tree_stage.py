"""Training and growing TreeVAEs: a state machine that can stop and go on anywhere.

One tree, or several at once: then those that stand in the same kind of phase are joined for it, and
a step has as many operations as one tree's. The checkpoint holds the networks, the optimiser's
moments, the random numbers and each tree's state. It is written after every phase, every few
seconds in between, and when a call's time is over; a killed run continues from there, bit for bit
on the CPU. Nothing is written that is not finite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TreeConfig
from ..errors import DataError, TrainingError
from ..nn.grove import Grove, join, part_from
from ..nn.node_stack import NodeStack
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from . import checkpoint
from .annealing import kl_weight, learning_rate
from .budget import OutOfTime
from .grower import Grower
from .images import TrainingImages
from .losses import Objective, SubtreeObjective, SubtreesObjective, TreeObjective
from .optimizer import make_adam
from .plan import phase_cost
from .step import make_step
from .tree_state import PhaseEnd

ORDER = ("initial", "subtree", "intermediate", "final")
"""Kinds of phases; of several trees, those in the first of them are trained next."""


class TreeStage:
    """Trains and grows TreeVAEs on images.

    Args:
        images: to train on.
        config: the trees' settings.
        path: the checkpoint; an existing one is continued. Trees as they stand lie beside it, as
            readable JSON.
        progress: told about every step, in the unit of `tree_cost` of one tree.
        look: shown how each phase of a tree ended.
        seeds: of several trees' first weights; None for one tree, from the random numbers as they
            are.

    Raises:
        DataError: images that cannot be trained on.
    """

    def __init__(
        self,
        images: TrainingImages,
        config: TreeConfig,
        path: Path,
        progress: Progress | None = None,
        *,
        look: Callable[[PhaseEnd], None] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        check_images(images)
        self.images, self.config, self.path, self.look = images, config, path, look
        self.progress = progress or Progress(1, "", quiet=True)
        self.growers = list(self._make_growers(seeds))
        self._joined: Grove | NodeStack | None = None
        self._spent = 0.0
        self._losses: list[Tensor] = []
        if path.exists():
            self._resume()
        else:
            self._begin_phase()

    def run(self) -> list[Grower]:
        """Trains until all are done; returns the trees, in eval mode.

        Raises:
            OutOfTime: the progress ended the call; a checkpoint is saved.
            TrainingError: a loss or a weight is not finite; the last checkpoint stays.
        """
        while self._round:
            try:
                self._train_phase()
            except OutOfTime:
                self._save()
                raise
            self._end_phase()
            self._begin_phase()
            self._save()
        for grower in self.growers:
            grower.tree.eval()
        return self.growers

    def _make_growers(self, seeds: Sequence[int] | None) -> Iterator[Grower]:
        if seeds is None:
            yield Grower(self.images, self.config, self.path.with_suffix(".json"))
            return
        for number, seed in enumerate(seeds):
            torch.manual_seed(seed)
            path = self.path.with_name(f"tree-{number}.json")
            yield Grower(self.images, self.config, path, number=number)

    # Phases

    @property
    def _round(self) -> list[Grower]:
        """The trees that are trained now: those in the first kind of phase that any is in."""
        kinds = {grower.state.phase.kind for grower in self.growers}
        now = next((kind for kind in ORDER if kind in kinds), None)
        return [grower for grower in self.growers if grower.state.phase.kind == now]

    @property
    def _lead(self) -> Grower:
        """One of those that are trained now; their epochs and steps are the same."""
        return (self._round or self.growers)[0]

    def _begin_phase(self) -> None:
        """Joins the trees that are trained now, and gives them a fresh optimiser."""
        now = self._round
        self._joined = None
        if len(now) > 1:
            trained = [grower.trained for grower in now]
            # Networks are made at random before weights are copied into them. Whoever continues
            # makes them once more, and must not meet other random numbers for it.
            with torch.random.fork_rng(devices=[]):
                self._joined = _join(trained)
        self._optimizer = make_adam(
            self._trained.parameters(),
            self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )

    def _end_phase(self) -> None:
        now = self._round
        if self._joined is not None:
            _part(self._joined, [grower.trained for grower in now])
        for grower in now:
            end = grower.enter_next_phase()
            if self.look is not None:
                self.look(end)

    def _train_phase(self) -> None:
        now = self._round
        lead, epochs = now[0].state, now[0].epochs
        if not epochs:
            return
        step = make_step(
            self._objective(now),
            self._optimizer,
            resident=self.images.resident,
            compiled=self.config.compile,
        )
        saved = time.monotonic()
        while lead.epoch < epochs:
            place = self.config, lead.phase.kind, lead.epoch, epochs
            step.set(kl_weight=kl_weight(*place), learning_rate=learning_rate(*place))
            step.objective.trained.train()
            for rows in self._batches(now, step.objective.counts):
                if step.compiles_next:
                    self.progress.advance(0, f"compiling the step of {lead.phase}: minutes")
                self._losses.append(step(rows))
                for grower in now:
                    grower.state.step += 1
                self._report(now, len(rows))
            self._check_finite()
            for grower in now:
                state = grower.state
                state.epoch, state.step, state.order = state.epoch + 1, 0, None
            if time.monotonic() - saved > checkpoint.INTERVAL_S:
                self._save()
                saved = time.monotonic()

    def _objective(self, now: list[Grower]) -> Objective:
        growing = now[0].children is not None
        if self._joined is None:
            (grower,) = now
            if grower.children is None:
                return TreeObjective(grower.tree, self.images)
            leaf, members = _growing_leaf(grower), grower.members()
            return SubtreeObjective(grower.tree, leaf, grower.children, self.images, members)
        if not growing:
            assert isinstance(self._joined, Grove)
            return TreeObjective(self._joined, self.images)
        assert isinstance(self._joined, NodeStack)
        return SubtreesObjective(
            [grower.tree for grower in now],
            [_growing_leaf(grower) for grower in now],
            self._joined,
            self.images,
            [grower.members() for grower in now],
        )

    def _batches(self, now: list[Grower], counts: list[int]) -> Iterator[Tensor]:
        """The epoch's batches that are left; the last part of one is dropped, as published.

        [B] positions among a single tree's images, [B, S] of several. An epoch of several is as
        long as the longest: trees with fewer images begin theirs again.
        """
        size = min(self.config.batch_size, *counts)
        steps = max(count // size for count in counts)
        orders = torch.stack(
            [_order(grower, count, steps * size, size)
             for grower, count in zip(now, counts, strict=True)],
            dim=1,
        ).to(self.images.device)  # fmt: skip
        rows = orders if self._joined is not None else orders[:, 0]
        for first in range(now[0].state.step * size, steps * size, size):
            yield rows[first : first + size]

    def _check_finite(self) -> None:
        """Refuses to go on from what is not finite; asks the device once, not in every step."""
        state, losses, self._losses = self._lead.state, self._losses, []
        bad = [number for number, ok in enumerate(_finite(losses)) if not ok] if losses else []
        if bad:
            step = state.step - len(losses) + bad[0] + 1
            raise self._diverged(f"step {step}", f"a loss of {float(losses[bad[0]])}")
        if not all(_finite(list(self._trained.state_dict().values()))):
            raise self._diverged(f"step {state.step}", "weights that are not finite")

    def _diverged(self, place: str, got: str) -> TrainingError:
        """What to say of numbers that no training recovers from."""
        state = self._lead.state
        kept = f"; {self.path} holds the last good state" if self.path.exists() else ""
        return TrainingError(
            f"{state.phase}, epoch {state.epoch + 1}, {place}",
            got=got,
            expected="finite numbers",
            hint=f"train into another folder with a lower tree.learning_rate{kept}",
        )

    def _report(self, now: list[Grower], count: int) -> None:
        state, leaves = now[0].state, now[0].tree.topology.num_leaves
        costs = [
            phase_cost(state.phase.kind, 1, count, grower.tree.topology.num_leaves)
            for grower in now
        ]
        cost = sum(costs) / len(self.growers)
        self._spent += cost
        what = f"tree of {leaves} leaves, {state.phase}"
        if len(now) > 1:
            what = f"{len(now)} trees, {state.phase.kind}"
        self.progress.advance(cost, f"{what} {state.epoch + 1}/{now[0].epochs}")

    # State

    @property
    def _trained(self) -> nn.Module:
        """What the optimiser moves."""
        return self._lead.trained if self._joined is None else self._joined

    @property
    def _networks(self) -> nn.ModuleDict:
        if len(self.growers) == 1:
            return self.growers[0].networks
        parts: dict[str, nn.Module] = {
            str(number): grower.networks for number, grower in enumerate(self.growers)
        }
        if self._joined is not None:
            parts["joined"] = self._joined
        return nn.ModuleDict(parts)

    def _save(self) -> None:
        self._check_finite()
        tensors = checkpoint.training_state(self._networks, self._optimizer)
        states = [grower.to_state() for grower in self.growers]
        alone = len(states) == 1
        state = states[0] if alone else {"trees": states}
        checkpoint.save(self.path, tensors, {"spent": self._spent} | state)

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self.path)
        self._spent = state.pop("spent")
        states = state["trees"] if len(self.growers) > 1 else [state]
        for grower, its_state in zip(self.growers, states, strict=True):
            grower.adopt(its_state)
        self._begin_phase()
        checkpoint.restore(self._networks, self._optimizer, tensors)
        self.progress.skip(self._spent)


def save_grown(grower: Grower, path: Path) -> None:
    """Writes one of several finished trees as the checkpoint of a stage that trained it alone."""
    optimizer = make_adam(grower.tree.parameters(), grower.config.learning_rate)
    tensors = checkpoint.training_state(grower.networks, optimizer)
    checkpoint.save(path, tensors, {"spent": 0.0} | grower.to_state())


def _join(networks: list[TreeVAE | NodeStack]) -> Grove | NodeStack:
    trees = [network for network in networks if isinstance(network, TreeVAE)]
    return Grove(trees) if trees else join([n for n in networks if isinstance(n, NodeStack)])


def _part(joined: Grove | NodeStack, networks: list[TreeVAE | NodeStack]) -> None:
    if isinstance(joined, Grove):
        joined.give_back([network for network in networks if isinstance(network, TreeVAE)])
    else:
        part_from(joined, [network for network in networks if isinstance(network, NodeStack)])


def _growing_leaf(grower: Grower) -> str:
    leaf = grower.state.phase.leaf
    assert leaf is not None
    return leaf


def _order(grower: Grower, count: int, length: int, size: int) -> Tensor:
    """[length] positions: whole batches of the images in random order, again and again."""
    state = grower.state
    if state.order is None:
        state.order = int(torch.randint(2**62, ()))
    generator = torch.Generator().manual_seed(state.order)
    whole = count // size * size
    rounds = -(-length // whole)
    orders = [torch.randperm(count, generator=generator)[:whole] for _ in range(rounds)]
    return torch.cat(orders)[:length]


def _finite(tensors: list[Tensor]) -> list[bool]:
    """Whether each tensor is finite, in one answer of the device."""
    found: list[bool] = torch.stack([t.detach().isfinite().all() for t in tensors]).tolist()
    return found


def check_images(images: TrainingImages) -> None:
    """Refuses images that training could not end well with.

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
    low, high = images.bounds
    if not (low >= 0 and high <= 1):  # also where they are not a number
        raise DataError(
            "images",
            got=f"pixels from {low:g} to {high:g}",
            expected="finite numbers from 0 to 1",
            hint="scale the pixels, and replace those that are missing",
        )
