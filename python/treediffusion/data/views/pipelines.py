"""The published ways to make views, for whole batches where the images are.

    view = grey(jitter(mirror(crop(image)))), each step drawn anew for every image

Every random number is a uniform one from PyTorch's generator of the images' device, and no value
is read back: a call has a fixed sequence of operations on fixed shapes, which a CUDA graph can
hold. Images are float; the published pipelines round to 8 bit after each step, these do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from . import colour, geometry

MIRROR_PROB, JITTER_PROB, GREY_PROB = 0.5, 0.8, 0.2


def random_view(images: Tensor, kind: str) -> Tensor:
    """images: [B, C, H, W] float in 0..1 -> one view of each, of the same shape.

    Two views of each image are one call on the images twice, not two calls.

    Args:
        images: the images, on any device.
        kind: `TreeConfig.augmentation`; none gives the images themselves.

    Raises:
        ConfigError: no such kind.
        ShapeError: a kind that changes colours, and images without three channels.
    """
    if kind not in _PIPELINES:
        expected = f"one of {', '.join(_PIPELINES)}"
        raise ConfigError("tree.augmentation", got=repr(kind), expected=expected)
    if kind in ("colour", "faces") and images.shape[1] != 3:
        raise ShapeError(
            "images",
            got=f"{images.shape[1]} channels",
            expected=f"three channels, red, green and blue, for views of kind {kind!r}",
            hint="for grey images set tree.augmentation to shifts",
        )
    return _PIPELINES[kind](images)


def _shifts(images: Tensor) -> Tensor:
    """Moved by up to a pixel in each direction, whole or not."""
    return geometry.shift(images, *_between(_uniform(images, 2), (-1, 1)))


def _strokes(images: Tensor) -> Tensor:
    """Omniglot's; the move is at most 1 of 28 pixels, and whole, as published."""
    turn, down, right, scale, shear = _uniform(images, 5)
    height, width = images.shape[2:]
    return geometry.affine(
        images,
        angle=_between(turn, (-math.radians(10), math.radians(10))),
        down=_between(down, (-height / 28, height / 28)).round(),
        right=_between(right, (-width / 28, width / 28)).round(),
        scale=_between(scale, (0.9, 1.1)),
        # A hundredth of a degree, as published: next to nothing.
        shear=_between(shear, (-math.radians(0.01), math.radians(0.01))),
    )


def _colour(images: Tensor) -> Tensor:
    """Those of CIFAR and CUBICC."""
    images = _random_crop(images, scale=(0.2, 1), ratio=(3 / 4, 4 / 3))
    images = _random_jitter(images, strength=0.4, hue=0.1)
    return colour.grey_where(images, _uniform(images, 1)[0] < GREY_PROB)


def _faces(images: Tensor) -> Tensor:
    """CelebA's; colours keep their hue."""
    images = _random_crop(images, scale=(0.75, 1), ratio=(4 / 5, 5 / 4))
    return _random_jitter(images, strength=0.2, hue=None)


_PIPELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "shifts": _shifts,
    "strokes": _strokes,
    "colour": _colour,
    "faces": _faces,
}


def _random_crop(
    images: Tensor, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """A random part of each image at the size of the whole, every other one mirrored."""
    height, width = images.shape[2:]
    boxes = geometry.draw_boxes(
        _uniform(images, 2, geometry.TRIES),
        _uniform(images, 2),
        size=(height, width),
        scale=scale,
        ratio=ratio,
    )
    return geometry.resized_crop(images, boxes, mirror=_uniform(images, 1)[0] < MIRROR_PROB)


def _random_jitter(images: Tensor, *, strength: float, hue: float | None) -> Tensor:
    """Four images of five with other brightness, contrast, saturation and hue, in any order."""
    jittered = _uniform(images, 1) < JITTER_PROB
    # A factor of 1 and a turn of 0 leave an image alone.
    factors = 1 + jittered * _between(_uniform(images, 3), (-strength, strength))
    order = _uniform(images, 3).argsort(dim=0)
    if hue is None:
        return colour.jitter(images, factors, order)
    turn, place = _uniform(images, 2)
    return colour.jitter(
        images, factors, order, turn=jittered[0] * _between(turn, (-hue, hue)), place=4 * place
    )


def _uniform(images: Tensor, *counts: int) -> Tensor:
    """[*counts, B] numbers from 0 to below 1, on the images' device and of their type."""
    return torch.rand(*counts, len(images), device=images.device, dtype=images.dtype)


def _between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return low + (high - low) * uniform
