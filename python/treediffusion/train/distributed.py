"""Several processes that train one network together, each on its rows of every batch.

    torchrun --nproc-per-node 2 -m treediffusion train ...

Every process draws the random numbers of the whole batch, from generators in one state. Only the
network's pass, which is what costs, is divided: predictions for the others' rows arrive as
constants. So each process knows the loss of the whole batch, the sum of the gradients is its
gradient, and the result is that of one process up to the order of sums. A run may go on with
another number of processes. Masks of dropout alone are each process's own.

The first process leads: it alone writes, prints and watches the time. The others only ever leave
with exit code 0; what went wrong is the leader's to say.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError

PATIENCE = timedelta(days=30)
"""Followers wait while the leader grows the tree."""

Predict: TypeAlias = Callable[..., Tensor]
"""Tensors with one row per image, or None, to [B, ...] float."""

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes, seen from one of them; by default it is the only one.

    Attributes:
        rank: this process's number.
        size: how many there are.
        talk: a group on the CPUs for decisions, which must not wait for a device.
    """

    rank: int = 0
    size: int = 1
    talk: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def agree(self, said: bool) -> bool:
        """What the leader says; every process must ask."""
        if self.size == 1:
            return said
        word = torch.tensor([said])
        dist.broadcast(word, src=0, group=self.talk)
        return bool(word)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Work of the leader, then of the others, who find on disk what it left there.

        The leader goes on when all are through, so that nobody writes behind its back. Where it
        fails or runs out of time, the others leave.
        """
        if self.size == 1:
            return work()
        if self.leads:
            try:
                result = work()
            except Exception:
                self.agree(False)
                raise
            self.agree(True)
        else:
            if not self.agree(False):
                self.dismiss()
            result = work()
        dist.barrier(group=self.talk)
        return result

    def dismiss(self) -> None:
        """The end of every process but the leader's, which goes on alone."""
        if not self.leads:
            sys.exit(0)

    def rows(self, count: int) -> slice:
        """This process's part of so many rows; parts differ by one row at most.

        Raises:
            ConfigError: there are not enough.
        """
        if count < self.size:
            raise ConfigError(
                "diffusion.batch_size",
                got=f"{count} images in a step",
                expected=f"at least {self.size}, one for each process",
            )
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def divided(self, predict: Predict) -> Predict:
        """The same for the whole batch, of which this process computes, and differentiates, a part.

        Args:
            predict: one row per image, in and out; float32, since not every link adds narrower
                numbers.
        """
        if self.size == 1:
            return predict

        def together(*batch: Tensor | None) -> Tensor:
            count = next(len(part) for part in batch if part is not None)
            rows = self.rows(count)
            own = predict(*(None if part is None else part[rows] for part in batch))
            whole = own.new_zeros(count, *own.shape[1:])
            whole[rows] = own.detach()
            dist.all_reduce(whole)
            return torch.cat([whole[: rows.start], own, whole[rows.stop :]])

        return together

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Makes every process's gradients the sum of all, in one transfer."""
        if self.size == 1:
            return
        grads: list[Tensor] = [weight.grad for weight in parameters if weight.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        parts = torch.split(flat, [grad.numel() for grad in grads])
        sums = [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
        torch._foreach_copy_(grads, sums)

    @contextmanager
    def apart(self, seed: int, device: torch.device) -> Iterator[None]:
        """Random numbers of this process alone; those in common go on afterwards as if unused."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((seed * self.size + self.rank) % 2**63)
            yield


@contextmanager
def joined() -> Iterator[Team]:
    """The team that the environment names; outside of `torchrun`, a team of one.

    On GPUs every process gets one of its own, which becomes its current device.

    Raises:
        ConfigError: the environment is not one that `torchrun` makes, or there are too few GPUs.
    """
    size = _number("WORLD_SIZE", default=1)
    if size == 1:
        yield Team()
        return
    rank, local = _number("RANK"), _number("LOCAL_RANK")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise ConfigError(
                "--nproc-per-node",
                got=f"process {local} of this machine",
                expected=f"at most {torch.cuda.device_count()}, one for each GPU",
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        talk = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(talk, dist.ProcessGroup), "this process is one of the group"
    except (ValueError, RuntimeError) as fault:
        raise ConfigError(
            "WORLD_SIZE",
            got=f"{size} processes that do not find each other ({fault})",
            expected="processes that `torchrun` started",
        ) from fault
    try:
        yield Team(rank, size, talk)
    finally:
        dist.destroy_process_group()


def _number(name: str, *, default: int | None = None) -> int:
    """A number of the environment."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(
            name,
            got=repr(text),
            expected="the number that `torchrun` gives every process",
            hint="start the processes with torchrun, or unset WORLD_SIZE",
        )
    return int(text)
