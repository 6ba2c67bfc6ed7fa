"""Brightness, contrast, saturation and hue, one of each per image, in an order of its own.

    adjusted = clamp(factor · image + (1 - factor) · target)

Brightness, contrast and saturation differ only in the target: black, the image's mean grey, or
each pixel's grey. So one blend serves every image's k-th step, whichever of the three it is. The
dearer hue is turned once, between the steps before it and those after it; a step on the other
side has the factor 1, which changes nothing. Nothing here draws random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)


def jitter(
    images: Tensor,
    factors: Tensor,
    order: Tensor,
    *,
    turn: Tensor | None = None,
    place: Tensor | None = None,
) -> Tensor:
    """Brightness, contrast and saturation in each image's order, and the hue somewhere among them.

    Args:
        images: [B, 3, H, W] float in 0..1.
        factors: [3, B] of brightness, contrast and saturation.
        order: [3, B] which of the three comes first, second and third.
        turn: [B] what is added to the hue, in whole turns; None leaves hues alone.
        place: [B] steps before the hue's turn, as a number in 0..4 whose fraction does not count.

    Returns:
        [B, 3, H, W] in 0..1.
    """
    factors = factors.gather(0, order)
    if turn is None or place is None:
        return _blends(images, order, factors)
    step = torch.arange(3, device=images.device)[:, None]
    is_before = step < place.floor()
    images = _blends(images, order, torch.where(is_before, factors, 1))
    images = turn_hue(images, turn)
    return _blends(images, order, torch.where(is_before, 1, factors))


def adjust(images: Tensor, quality: Tensor, factor: Tensor) -> Tensor:
    """images: [B, 3, H, W]; quality: [B] BRIGHTNESS, CONTRAST or SATURATION; factor: [B]."""
    quality, factor = quality[:, None, None, None], factor[:, None, None, None]
    grey = greyscale(images)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    target = torch.where(quality == SATURATION, grey, mean * (quality == CONTRAST))
    return torch.lerp(target, images, factor).clamp(0, 1)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """images: [B, 3, H, W]; turn: [B] whole turns. Lightest and darkest channel keep their values.

    The hue is a place on a hexagon: red, green and blue at 0, 2 and 4, their mixtures in between.
    """
    red, green, blue = images.unbind(1)
    low, high = images.aminmax(dim=1)
    chroma = high - low
    place = torch.where(
        red == high,
        green - blue,
        torch.where(green == high, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    # Greys have no hue and need none: their chroma is 0.
    place = place / chroma.clamp_min(torch.finfo(images.dtype).tiny)
    place = (place + 6 * turn[:, None, None]) % 6
    share = torch.stack([(place - 3).abs() - 1, 2 - (place - 2).abs(), 2 - (place - 4).abs()], 1)
    return low[:, None] + chroma[:, None] * share.clamp(0, 1)


def grey_where(images: Tensor, chosen: Tensor) -> Tensor:
    """images: [B, 3, H, W]; chosen: [B] bool, which lose their colours."""
    return torch.where(chosen[:, None, None, None], greyscale(images), images)


def greyscale(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], weighed as the eye does (ITU-R 601)."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _blends(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    for quality, factor in zip(order, factors, strict=True):
        images = adjust(images, quality, factor)
    return images
