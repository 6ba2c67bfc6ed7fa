"""Every random number of a generated image, as a pure function of where it is used.

    words   Philox4x64-10, key = (seed, image), counter = (block, step, stream, draw)
    normal  Box-Muller, (r cos a, r sin a) with r = sqrt(-2 ln u), in float32

The words are those of ``numpy.random.Philox(key=..., counter=...)``, which counts up before its
first block, so that block j has counter word 0 = j + 1. A block is 4 words; each word gives one
pair, hence a block gives 8 consecutive elements of an array flattened in C, H, W order. The
transform uses float32 additions, multiplications and square roots, each rounded on its own, and
integer operations: any machine that does not fuse them gets these bits. The leaf is not part of
the key, so all leaves of an image share their noise.

It holds no state and knows neither the tree nor the network. Training draws from elsewhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .noise_series import (
    ANGLE_STEP,
    COS_COEFS,
    LN2_HIGH,
    LN2_LOW,
    LOG_COEFS,
    LOG_SHIFT,
    SIN_COEFS,
    SQRT_HALF_BITS,
)

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]

WORD_RANGE = 2**64


class Stream(IntEnum):
    """What a draw is for: its own sequence of words, whatever the others consumed."""

    ROOT = 0
    """Latent of the root."""
    NODE = 1
    """Latents of the other nodes; `step` is the node's id."""
    ROUTE = 2
    """Turns at the routers; `step` is the node's id."""
    START = 3
    """x_T, where denoising starts."""
    STEP = 4
    """Noise added by a denoising step with eta > 0; `step` is its number."""
    DROPOUT = 5
    """Dropped units."""
    CHOICE = 6
    """Which of several draws of the latents is kept; `step` is the node they are to reach."""


def words(seed: int, image: int, stream: Stream, step: int, count: int, *, draw: int = 0) -> Words:
    """The first `count` words of one sequence.

    Args:
        seed: first word of the key.
        image: second word of the key, the image's own index.
        stream: third word of the counter, what the draw is for.
        step: second word of the counter, the step or node.
        count: how many; more only adds words behind.
        draw: fourth word of the counter, where the same thing is drawn several times.

    Returns:
        [count] uint64.

    Raises:
        ConfigError: a number that is not an integer in [0, 2^64), or not a stream.
    """
    own = [(natural("seed", seed), natural("image", image))]
    drawn: Words = _draw(own, stream, [step], natural("count", count), draw)[0, 0]
    return drawn


def normals_from_words(words: Words) -> Floats:
    """Standard normals, two from each word: radius from its low half, angle from its high half.

    Args:
        words: [..., M] uint64.

    Returns:
        [..., 2M] float32, r cos a and r sin a in turn; at most 5.77 in size.
    """
    low, high = (words & 0xFFFFFFFF).astype(np.uint32), (words >> 32).astype(np.uint32)
    radius, (cos, sin) = _radius(low), _direction(high)
    pairs = np.stack([radius * cos, radius * sin], axis=-1)
    return pairs.reshape(*words.shape[:-1], 2 * words.shape[-1])


def uniforms_from_words(words: Words) -> Floats:
    """((w >> 9) + 1/2) 2^-23 of each word's low half w: in (0, 1), never 0 or 1.

    Args:
        words: [...] uint64.

    Returns:
        [...] float32, exact.
    """
    low = (words & 0xFFFFFFFF).astype(np.uint32)
    return ((low >> 9).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal(
    seed: int | Sequence[int],
    images: Sequence[int],
    shape: tuple[int, ...],
    *,
    stream: Stream,
    step: int = 0,
    draw: int = 0,
) -> Floats:
    """Standard normals for a batch; an image's are the same alone and in any batch.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index, not its place in the batch.
        shape: of one image's noise.
        stream: what the draw is for.
        step: the step or node it is for.
        draw: which of several draws of the same thing.

    Returns:
        [B, *shape] float32.

    Raises:
        ConfigError: a number that is not an integer in [0, 2^64), or seeds that do not match
            the images.
    """
    return normals(seed, images, shape, stream=stream, steps=(step,), draw=draw)[:, 0]


def normals(
    seed: int | Sequence[int],
    images: Sequence[int],
    shape: tuple[int, ...],
    *,
    stream: Stream,
    steps: Sequence[int],
    draw: int = 0,
) -> Floats:
    """`normal` of several steps or nodes: the transform is one for all of them.

    Returns:
        [B, len(steps), *shape] float32.
    """
    sides = naturals("shape", shape)
    count = math.prod(sides)
    drawn = _draw(seeds_and_images(seed, images), stream, steps, (count + 1) // 2, draw)
    flat = normals_from_words(drawn)[..., :count]
    return np.ascontiguousarray(flat.reshape(*drawn.shape[:2], *sides))


def uniform(
    seed: int | Sequence[int], images: Sequence[int], *, stream: Stream, step: int = 0
) -> Floats:
    """One uniform number in (0, 1) per image, from the low half of its first word.

    Args:
        seed: one for all, or one per image.
        images: [B] each image's own index, not its place in the batch.
        stream: what the draw is for.
        step: the step or node it is for.

    Returns:
        [B] float32.

    Raises:
        ConfigError: as for `normal`.
    """
    return uniforms(seed, images, stream=stream, steps=(step,))[:, 0]


def uniforms(
    seed: int | Sequence[int], images: Sequence[int], *, stream: Stream, steps: Sequence[int]
) -> Floats:
    """`uniform` of several steps or nodes.

    Returns:
        [B, len(steps)] float32.
    """
    drawn = _draw(seeds_and_images(seed, images), stream, steps, count=1, draw=0)
    return uniforms_from_words(drawn[:, :, 0])


def _draw(
    images: Sequence[tuple[int, int]], stream: Stream, steps: Sequence[int], count: int, draw: int
) -> Words:
    """[B, len(steps), count] words of images, given as (seed, index)."""
    # Moving one generator to a counter takes a tenth of the time of making one there.
    generator = np.random.Philox(key=0)
    start = generator.state
    # Numbers are put in one by one: lists may pass through float64 and lose their low bits.
    key, counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)
    start["state"] = {"counter": counter, "key": key}
    counter[2:] = stream_number(stream), natural("draw", draw)
    nodes = naturals("step", steps)
    drawn = np.empty((len(images), len(nodes), count), np.uint64)
    for row, (seed, image) in zip(drawn, images, strict=True):
        key[0], key[1] = seed, image
        for place, step in zip(row, nodes, strict=True):
            counter[1] = step
            generator.state = start
            place[:] = generator.random_raw(count)
    return drawn


def _radius(low: NDArray[np.uint32]) -> Floats:
    """sqrt(-2 ln u) with u = ((low >> 8) + 1) 2^-24 in (0, 1]."""
    u = ((low >> 8) + 1).astype(np.float32) * np.float32(2.0**-24)
    # u = 2^exponent (1 + f), with 1 + f in [sqrt(1/2), sqrt(2))
    bits = u.view(np.int32) + LOG_SHIFT
    exponent = ((bits >> 23) - 127).astype(np.float32)
    f = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).view(np.float32) - np.float32(1.0)
    f2 = f * f
    log = (f * f2) * _horner(LOG_COEFS, f)
    log = log - np.float32(0.5) * f2
    log = log + exponent * np.float32(LN2_LOW)
    log = log + f
    log = log + exponent * np.float32(LN2_HIGH)
    zero = np.float32(0.0)
    # At u = 1, maximum may return either zero; adding zero makes it the positive one.
    squared: Floats = np.maximum(log * np.float32(-2.0), zero) + zero
    return np.sqrt(squared)


def _direction(high: NDArray[np.uint32]) -> tuple[Floats, Floats]:
    """Cosine and sine of a quarter turn (2 bits) plus an angle within 1/8 turn (24 bits)."""
    quadrant = high >> 30
    fine = ((high >> 6) & 0xFFFFFF).astype(np.int32)
    angle = (2 * fine - 0xFFFFFF).astype(np.float32) * np.float32(ANGLE_STEP)
    square = angle * angle
    sin = (angle * square) * _horner(SIN_COEFS, square) + angle
    one_minus = np.float32(1.0) - np.float32(0.5) * square
    cos = (square * square) * _horner(COS_COEFS, square) + one_minus
    is_odd = (quadrant & 1) == 1
    turned_cos, turned_sin = np.where(is_odd, sin, cos), np.where(is_odd, cos, sin)
    return (
        np.where((quadrant == 1) | (quadrant == 2), -turned_cos, turned_cos),
        np.where(quadrant >= 2, -turned_sin, turned_sin),
    )


def _horner(coefs: tuple[float, ...], x: Floats) -> Floats:
    """Polynomial in x, coefficients from the highest power down."""
    total = np.full_like(x, coefs[0])
    for coef in coefs[1:]:
        total = total * x + np.float32(coef)
    return total


def seeds_and_images(seed: int | Sequence[int], images: Sequence[int]) -> list[tuple[int, int]]:
    """[B] the seed and the index of each image.

    Raises:
        ConfigError: a number that is not an integer in [0, 2^64), or seeds that do not match the
            images.
    """
    indices = naturals("images", images)
    given: Any = seed  # an array serves, too
    if isinstance(given, Sequence | np.ndarray):
        seeds = naturals("seed", given)
    else:
        seeds = [natural("seed", given)] * len(indices)
    if len(seeds) != len(indices):
        raise ConfigError(
            "seed",
            got=f"{len(seeds)} seeds",
            expected=f"one seed, or one for each of {len(indices)} images",
        )
    return list(zip(seeds, indices, strict=True))


def stream_number(value: int) -> int:
    """A stream as the counter has it.

    Raises:
        ConfigError: no stream.
    """
    if isinstance(value, Stream):
        return int(value)
    try:
        return int(Stream(value))
    except ValueError as fault:
        expected = ", ".join(f"Stream.{stream.name}" for stream in Stream)
        raise ConfigError("stream", got=repr(value), expected=f"one of {expected}") from fault


def naturals(name: str, values: object) -> list[int]:
    """`natural` of each."""
    if not isinstance(values, Iterable):
        raise ConfigError(name, got=repr(values), expected="a sequence of integers")
    return [natural(name, value) for value in values]


def natural(name: str, value: object) -> int:
    """A number that a 64-bit word can hold.

    Raises:
        ConfigError: it is not an integer in [0, 2^64).
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < WORD_RANGE:
        raise ConfigError(name, got=repr(value), expected="an integer in [0, 2^64)")
    return number
