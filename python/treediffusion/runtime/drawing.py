"""Images on their way from noise to pixels, one evaluation of the network at a time.

A drawing asks for rows of a call and is told the results; it does not care when, nor which other
images share the call. The engine drives one to its end; a server drives many, each at its own step,
with its own solver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..noise import Stream, normal
from ..solvers import Evaluation, apply_row, estimate, walk
from .batches import Names
from .plan import Plan

if TYPE_CHECKING:
    from .device import StepLoop

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Signals:
    """What the denoiser is told of a batch.

    Attributes:
        conds: [G, B, E] float32, a condition for each of the network's answers.
        reconstruction: [B, C, H, W] float32, TreeVAE's images in the network's pixel range; None
            where they are not seen.
    """

    conds: Floats
    reconstruction: Floats | None

    def repeated(self, times: int) -> Signals:
        """Every image `times` times in a row."""
        seen = self.reconstruction
        again = None if seen is None else np.repeat(seen, times, axis=0)
        return Signals(np.repeat(self.conds, times, axis=1), again)

    def towards(self, other: Signals, share: NDArray[np.float64]) -> Signals:
        """The point that is `share`, [B], of the way to another."""
        between = None
        if self.reconstruction is not None and other.reconstruction is not None:
            between = _mixed(self.reconstruction, other.reconstruction, share[:, None, None, None])
        return Signals(_mixed(self.conds, other.conds, share[:, None]), between)


def _mixed(a: Floats, b: Floats, share: NDArray[np.float64]) -> Floats:
    return (1.0 - share).astype(np.float32) * a + share.astype(np.float32) * b


class Drawing:
    """A batch of images that share a plan.

    Args:
        plan: the steps, and what the network is asked about in each.
        signals: of every image.
        names: of the images; equal ones get equal noise.
        shape: (C, H, W).

    Attributes:
        x0: [B, C, H, W] float32, the newest estimate of the images; noise before the first.
        evaluation: how many evaluations have been made.
        evaluations: how many it takes.
    """

    def __init__(
        self, plan: Plan, signals: Signals, names: Names, shape: tuple[int, int, int]
    ) -> None:
        self._plan, self._signals, self._names = plan, signals, names
        # A plain row is done inside the graph; otherwise the network's bare output is asked for,
        # by a row that lets it through, and the row's arithmetic is done here.
        self._plain = plan.weights == (1.0,) and plan.table.clip
        self._coef = plan.table.network.astype(np.float32)
        if not self._plain:
            self._coef = np.zeros_like(self._coef)
            self._coef[:, 3] = 1.0
        self.x0: Floats = normal(names.seed, names.index, shape, stream=Stream.START)
        self._silence = np.zeros_like(self.x0)
        self._walk = walk(plan.table, self.x0, partial(self._noise, names))
        self._next: Evaluation[Floats] | None = next(self._walk)
        self._images: Floats | None = None
        self.evaluation, self.evaluations = 0, len(plan.table.timestep)

    @property
    def done(self) -> bool:
        """Whether `images` are there."""
        return self._images is not None

    @property
    def images(self) -> Floats:
        """[B, C, H, W] float32, in the network's pixel range, which they may exceed a little."""
        assert self._images is not None, f"evaluation {self.evaluation} of {self.evaluations}"
        return self._images

    @property
    def rows(self) -> int:
        """How many rows of a call an evaluation takes."""
        return len(self.x0) * len(self._plan.weights)

    def ask(self) -> Mapping[str, NDArray[Any]]:
        """The next evaluation, as inputs of the step graph; [`rows`, ...] each."""
        asked, rows = self._next, self.rows
        assert asked is not None
        noise = asked.drawn if self._plain and asked.drawn is not None else self._silence
        feeds: dict[str, NDArray[Any]] = {
            "x": self._each(asked.x),
            "cond": self._signals.conds.reshape(rows, -1),
            "timesteps": np.full(rows, self._plan.table.timestep[asked.k]),
            "coef": np.repeat(self._coef[asked.k : asked.k + 1], rows, axis=0),
            "noise": self._each(noise),
        }
        if self._signals.reconstruction is not None:
            feeds["reconstruction"] = self._each(self._signals.reconstruction)
        return feeds

    def tell(self, x_next: Floats, x0: Floats) -> None:
        """The graph's results for what was asked; [`rows`, C, H, W] each."""
        asked = self._next
        assert asked is not None
        if self._plain:
            y, self.x0 = x_next, x0
        else:
            found = self._weighed(x_next)
            table, k = self._plan.table, asked.k
            y = apply_row(table, k, asked.x, found, asked.drawn)
            self.x0 = estimate(table, k, asked.x, found)
        self.evaluation += 1
        try:
            self._next = self._walk.send(y)
        except StopIteration as end:
            self._next, self._images = None, end.value

    def finish(self, loop: StepLoop, rows: int) -> bool:
        """All evaluations on a device, from the start.

        Args:
            loop: of the back end.
            rows: how many images it takes at once.

        Returns:
            Whether the loop can do this plan; if not, nothing has happened.
        """
        plan, names, signals = self._plan, self._names, self._signals
        if not loop.takes(plan.table, plan.weights):
            return False
        parts = []
        for first in range(0, len(self.x0), rows):
            cut = slice(first, first + rows)
            feeds = {"x": self.x0[cut], "cond": signals.conds[0, cut]}
            if signals.reconstruction is not None:
                feeds["reconstruction"] = signals.reconstruction[cut]
            noise = partial(self._noise, Names(names.seed[cut], names.index[cut]))
            parts.append(loop.run(plan.table, feeds, noise=noise))
        self._next, self._images = None, np.concatenate(parts)
        self.evaluation = self.evaluations
        return True

    def _noise(self, names: Names, step: int) -> Floats:
        """[.., C, H, W] of one evaluation."""
        shape = self.x0.shape[1:]
        return normal(names.seed, names.index, shape, stream=Stream.STEP, step=step)

    def _each(self, x: Floats) -> Floats:
        """[G B, ...] the same for each of the network's answers."""
        answers = len(self._plan.weights)
        return x if answers == 1 else np.concatenate([x] * answers)

    def _weighed(self, answers: Floats) -> Floats:
        found = np.zeros_like(self.x0)
        parts = answers.reshape(len(self._plan.weights), *found.shape)
        for weight, part in zip(self._plan.weights, parts, strict=True):
            found += np.float32(weight) * part
        return found
