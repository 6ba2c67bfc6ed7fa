"""`treediffusion.noise.normal` on a device, bit for bit.

What a draw is named by is a row of five 64-bit numbers, the *state*: seed, image, step, stream,
draw. It may lie on the device, where a loop can count its steps without the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ShapeError
from ...noise import WORD_RANGE, Stream, natural, seeds_and_images, stream_number
from ..choice import takes_kernel
from . import reference

SEED, IMAGE, STEP, STREAM, DRAW = range(5)
"""Columns of a state."""


def philox_normal(
    seed: int | Sequence[int],
    images: Sequence[int],
    shape: tuple[int, ...],
    *,
    stream: Stream,
    step: int = 0,
    draw: int = 0,
    device: torch.device | str,
) -> Tensor:
    """Standard normals for a batch; an image's are the same alone and in any batch.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index, not its place in the batch.
        shape: of one image's noise.
        stream: what the draw is for.
        step: the step or node it is for.
        draw: which of several draws of the same thing.
        device: where they are made.

    Returns:
        [B, *shape] float32.

    Raises:
        ConfigError: a number that is not an integer in [0, 2^64), or seeds that do not match
            the images.
    """
    state = philox_state(seed, images, stream=stream, step=step, draw=draw, device=device)
    return normal_of(state, shape)


def philox_state(
    seed: int | Sequence[int],
    images: Sequence[int],
    *,
    stream: Stream,
    step: int = 0,
    draw: int = 0,
    device: torch.device | str,
) -> Tensor:
    """What names the draws of a batch.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index.
        stream: what the draw is for.
        step: the step or node it is for.
        draw: which of several draws of the same thing.
        device: where it will lie.

    Returns:
        [B, 5] int64, with the bits of the unsigned seed, image, step, stream, draw.

    Raises:
        ConfigError: as for `philox_normal`.
    """
    shared = [natural("step", step), stream_number(stream), natural("draw", draw)]
    pairs = seeds_and_images(seed, images)
    rows = [[_signed(word) for word in (*pair, *shared)] for pair in pairs]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(rows), 5)


def normal_of(state: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals for states on a device.

    Args:
        state: [B, 5] int64, as `philox_state` makes them; columns may be overwritten.
        shape: of one image's noise.

    Returns:
        [B, *shape] float32.

    Raises:
        ShapeError: no such states.
    """
    if state.ndim != 2 or state.shape[1] != 5 or state.dtype != torch.int64:
        got = f"{tuple(state.shape)} of {state.dtype}"
        raise ShapeError("state", got=got, expected="[B, 5] of int64")
    flat: Tensor = _normals(state, math.prod(shape))
    return flat.reshape(len(state), *shape)


# The choice is made inside, because the reference is NumPy's, which no compiler traces.
@torch.library.custom_op("treediffusion::philox_normal", mutates_args=())
def _normals(state: Tensor, count: int) -> Tensor:
    if not takes_kernel("philox_normal", state):
        return reference.normals(state, count)
    from .kernel import fill

    y: Tensor = _like_normals(state, count)
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        fill(state.contiguous(), y)
    return y


@_normals.register_fake
def _like_normals(state: Tensor, count: int) -> Tensor:
    return state.new_empty(state.shape[0], count, dtype=torch.float32)


def _signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - WORD_RANGE if word >= WORD_RANGE // 2 else word
