"""One optimiser step of the tree: loss, gradients, Adam.

On a CPU the operations run one after another. On a CUDA device the whole step, from drawing views
to Adam, is recorded once as a CUDA graph and replayed: a tree's step is a thousand small operations
and costs what launching them costs. What changes between steps (which images, the weight of the KL
terms, the learning rate) lies in tensors that the graph reads.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.optim import Optimizer

from ..errors import TrainingError
from .losses import Objective

WARMUP = 3
"""Steps before recording, made one operation after another: libraries choose their algorithms."""


class Step:
    """Makes steps of an objective, one operation after another.

    Attributes:
        compiles_next: whether the next step has to wait for the compiler.

    Args:
        objective: the loss, and the networks it trains.
        optimizer: of these networks.
        compiled: the loss is compiled, which the second step waits for.
    """

    def __init__(
        self, objective: Objective, optimizer: Optimizer, *, compiled: bool = False
    ) -> None:
        self.objective, self.optimizer = objective, optimizer
        self._loss_of, self._compiled = objective.loss, compiled
        if compiled:
            self._loss_of = torch.compile(objective.loss, fullgraph=True, dynamic=False)
        # The first step fills what is computed once, which a compiler would do in every step.
        self._first = True
        self.compiles_next = False
        self._kl_weight = torch.zeros(())

    def set(self, *, kl_weight: float, learning_rate: float) -> None:
        """Sets what holds for an epoch."""
        # A tensor: a compiler would take a number for a constant, and begin anew in every epoch.
        self._kl_weight.fill_(kl_weight)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: [B] int64, positions among the objective's images -> the loss, a scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            # Tracing looks into caches, and says so; what they hold is constant.
            warnings.filterwarnings("ignore", message=".*lru_cache")
            loss_of = self.objective.loss if self._first else self._loss_of
            try:
                loss = loss_of(rows, self._kl_weight)
            except TorchDynamoException as fault:
                raise TrainingError(
                    "tree.compile",
                    got=" ".join(str(fault).split("\n")[:2]),
                    expected="a compiler that works",
                    hint="install a C++ compiler, or set tree.compile to false",
                ) from fault
        self.compiles_next = self._first and self._compiled
        self._first = False
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


class GraphedStep(Step):
    """The same as a CUDA graph; every batch must have the size of the first.

    The optimiser must be capturable. Random numbers come from the device's generator, whose state
    each replay advances.
    """

    def __init__(
        self, objective: Objective, optimizer: Optimizer, *, compiled: bool = False
    ) -> None:
        super().__init__(objective, optimizer, compiled=compiled)
        device = next(objective.trained.parameters()).device
        self._kl_weight = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)
        self._made = 0
        self._graph = torch.cuda.CUDAGraph()
        self._rows: Tensor
        self._loss: Tensor

    def set(self, *, kl_weight: float, learning_rate: float) -> None:
        """Sets what holds for an epoch, in the tensors that the graph reads."""
        self._kl_weight.fill_(kl_weight)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Step`; the first steps are made one operation after another, on a side stream."""
        self._made += 1
        if self._made <= WARMUP:
            return self._aside(rows)
        if self._made == WARMUP + 1:
            self._record(rows)
        self._rows.copy_(rows)
        self._graph.replay()
        return self._loss.clone()

    def _aside(self, rows: Tensor) -> Tensor:
        """A step on a stream of its own, as recording later is."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = super().__call__(rows)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _record(self, rows: Tensor) -> None:
        """Recording runs nothing; the gradients are made anew, in the graph's own memory."""
        self._rows = rows.clone()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph):
            self._loss = super().__call__(self._rows)


def make_step(
    objective: Objective, optimizer: Optimizer, *, resident: bool, compiled: bool = False
) -> Step:
    """The form that suits the device of the objective's networks.

    Args:
        objective: the loss, and the networks it trains.
        optimizer: of these networks.
        resident: the images lie on that device. Those which come from the host are asked for with
            every batch, which neither a graph nor a compiler can record.
        compiled: the loss is compiled where it can be.
    """
    if not resident:
        return Step(objective, optimizer)
    device = next(objective.trained.parameters()).device
    form = GraphedStep if device.type == "cuda" else Step
    return form(objective, optimizer, compiled=compiled)
