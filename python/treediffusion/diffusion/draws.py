"""The runtime's noise on PyTorch's devices: image i of seed s draws the same bits everywhere.

Streams and steps are those of `runtime.sampling`; what makes the numbers is
`kernels.philox_normal`, on a CPU NumPy itself. Training draws from PyTorch's generators instead:
its noise has no use beyond a run, and these numbers cost a CPU twelve times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.philox_normal import STEP, STREAM, normal_of, philox_state
from ..noise import Stream


class Draws:
    """What denoising draws for a batch.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index, not its place in the batch.
        shape: (C, H, W) of an image.
        device: where the numbers are made.

    Raises:
        ConfigError: a number that is not an integer in [0, 2^64), or seeds that do not match the
            images.
    """

    def __init__(
        self,
        seed: int | Sequence[int],
        images: Sequence[int],
        shape: tuple[int, ...],
        *,
        device: torch.device | str,
    ) -> None:
        self._shape = shape
        self._start = philox_state(seed, images, stream=Stream.START, device=device)
        self._step = philox_state(seed, images, stream=Stream.STEP, device=device)

    def start(self) -> Tensor:
        """[B, C, H, W] float32, x_T."""
        return normal_of(self._start, self._shape)

    def step(self, number: int) -> Tensor:
        """[B, C, H, W] float32, the noise of an evaluation; what `sample` takes as `noise`."""
        # In place, where the state lies: nothing but the number crosses to the device.
        self._step[:, STEP] = number
        return normal_of(self._step, self._shape)


def latent_noise(
    seed: int | Sequence[int],
    images: Sequence[int],
    nodes: int,
    shape: tuple[int, ...],
    *,
    draw: int = 0,
    device: torch.device | str,
) -> Tensor:
    """What `TreeVAE.generate` and `TreeVAE.infer` take: the root's from its own stream.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index.
        nodes: N, of the tree.
        shape: (Z, R, R) of a latent.
        draw: which of several draws of the same latents.
        device: where the numbers are made.

    Returns:
        [B, N, Z, R, R] float32.

    Raises:
        ConfigError: as for `Draws`.
    """
    of_images = philox_state(seed, images, stream=Stream.NODE, draw=draw, device=device)
    state = of_images.repeat_interleave(nodes, dim=0)  # [B*N, 5]
    state[:, STEP] = torch.arange(nodes, device=state.device).repeat(len(of_images))
    state[::nodes, STREAM] = int(Stream.ROOT)
    return normal_of(state, shape).reshape(len(of_images), nodes, *shape)
