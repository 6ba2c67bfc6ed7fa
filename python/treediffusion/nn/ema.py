"""An exponential moving average of a network's weights: ``s <- decay s + (1 - decay) w``.

It begins as a copy, with neither warm-up nor bias correction, as published. Buffers, such as
running statistics, are averages already and are copied.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """The averaged twin of a network that is being trained."""

    def __init__(self, module: Network, decay: float) -> None:
        """Copies the network.

        Args:
            module: the network in training; it is remembered, so that `update` needs no argument.
            decay: share of the average that an update keeps.
        """
        self._shadow = copy.deepcopy(module).eval().requires_grad_(False)
        self._source = module
        self._decay = decay

    @property
    def module(self) -> Network:
        """The averaged network, in evaluation mode. It is updated in place."""
        return self._shadow

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights of the network in training."""
        torch._foreach_lerp_(
            list(self._shadow.parameters()), list(self._source.parameters()), 1.0 - self._decay
        )
        for kept, fresh in zip(self._shadow.buffers(), self._source.buffers(), strict=True):
            kept.copy_(fresh)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, under the names that the network itself uses. Not a copy."""
        return self._shadow.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up an average that was stored."""
        self._shadow.load_state_dict(state)
