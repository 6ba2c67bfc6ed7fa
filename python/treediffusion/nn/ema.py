"""Exponential moving averages of a network's weights: ``s <- decay s + (1 - decay) w``.

Several decays can be kept at once, since the best one is known only after training. Each begins as
a copy, with neither warm-up nor bias correction, as published. Buffers, such as running statistics,
are averages already and are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """The averaged twins of a network that is being trained.

    Args:
        module: the network in training; it is remembered, so that `update` needs no argument.
        decay: share of the main average that an update keeps.
        also: decays of further averages.
    """

    def __init__(self, module: Network, decay: float, also: Sequence[float] = ()) -> None:
        self._source, self._decay = module, decay
        self._shadows = {
            each: copy.deepcopy(module).eval().requires_grad_(False) for each in (decay, *also)
        }

    @property
    def module(self) -> Network:
        """The main average, in evaluation mode. It is updated in place."""
        return self._shadows[self._decay]

    def averaged(self, decay: float) -> Network:
        """The average with another decay that is kept, updated in place as well.

        Raises:
            ConfigError: none is kept with it.
        """
        if decay not in self._shadows:
            raise unknown_decay(decay, self._shadows)
        return self._shadows[decay]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the weights of the network in training."""
        fresh: list[Tensor] = list(self._source.parameters())
        for decay, shadow in self._shadows.items():
            averages: list[Tensor] = list(shadow.parameters())
            torch._foreach_lerp_(averages, fresh, 1.0 - decay)
            for kept, buffer in zip(shadow.buffers(), self._source.buffers(), strict=True):
                kept.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """All averages by the network's own names, each behind its `prefix`. Not a copy."""
        return {
            self._prefix(decay) + name: tensor
            for decay, shadow in self._shadows.items()
            for name, tensor in shadow.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up averages that were stored; tensors of other names are left alone.

        Raises:
            CheckpointError: an average is not there.
        """
        for decay, shadow in self._shadows.items():
            shadow.load_state_dict(average_of(state, self._prefix(decay)))

    def _prefix(self, decay: float) -> str:
        return prefix(decay, main=decay == self._decay)


def prefix(decay: float, *, main: bool) -> str:
    """What the stored names of an average begin with."""
    return "ema." if main else f"ema_{decay}."


def average_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One of the stored averages, by the network's own names.

    Raises:
        CheckpointError: it is not there.
    """
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if not found:
        raise CheckpointError(
            f"{prefix}*",
            got="no such tensors",
            expected="an average of the weights",
            hint="keep the decays that the run began with",
        )
    return found


def unknown_decay(decay: float, kept: Mapping[float, object] | Sequence[float]) -> ConfigError:
    """What to say of an average that nobody kept."""
    return ConfigError(
        "decay",
        got=decay,
        expected=f"one of {', '.join(map(str, kept))}, whose averages the training kept",
        hint="name further ones in diffusion.ema_also before training",
    )
