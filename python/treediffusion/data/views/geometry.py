"""Where the pixels of a view come from: shifts, crops and affine maps, one per image.

    view = rows · image · columnsᵀ

Shifts and crops treat the axes apart, so each is a matrix of weights per axis and image, the same
ones as in Pillow: a crop is read through its cubic kernel (a = -1/2), and never beyond its edge.
No averaging against aliasing is needed, since a part of an image is never larger than the view.
Affine maps mix the axes; they look each pixel up. Nothing here draws random numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10


class Boxes(NamedTuple):
    """Parts of images, in whole pixels, each [B] float."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_boxes(
    tries: Tensor,
    place: Tensor,
    *,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Boxes of a uniform share of the area, a log-uniform ratio and a uniform place.

    Of ten tries the first that fits into the image counts; where none does, the whole image, which
    is torchvision's choice too when images are square.

    Args:
        tries: [2, TRIES, B] uniform numbers in 0..1, for areas and ratios.
        place: [2, B] uniform numbers in 0..1, for top and left.
        size: height and width of the images.
        scale: limits of the share of the area.
        ratio: limits of width over height.
    """
    full_height, full_width = size
    area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * tries[0])
    slant = math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * tries[1]
    height = F.pad((area * (-slant).exp()).sqrt().round(), (0, 0, 0, 1), value=full_height)
    width = F.pad((area * slant.exp()).sqrt().round(), (0, 0, 0, 1), value=full_width)
    fits = (height >= 1) & (height <= full_height) & (width >= 1) & (width <= full_width)
    first = fits.byte().argmax(dim=0, keepdim=True)
    height, width = height.gather(0, first)[0], width.gather(0, first)[0]
    # The product can round up to the number of places itself.
    top = (place[0] * (full_height - height + 1)).floor().minimum(full_height - height)
    left = (place[1] * (full_width - width + 1)).floor().minimum(full_width - width)
    return Boxes(top, left, height, width)


def resized_crop(images: Tensor, boxes: Boxes, *, mirror: Tensor) -> Tensor:
    """Parts of images, each at the size of the whole.

    Args:
        images: [B, C, H, W] float in 0..1.
        boxes: the parts.
        mirror: [B] bool, whether left and right change places.

    Returns:
        [B, C, H, W] in 0..1; the kernel's overshoot is cut off.
    """
    rows = _cubic(boxes.top, boxes.height, images.shape[2])
    columns = _cubic(boxes.left, boxes.width, images.shape[3])
    columns = torch.where(mirror[:, None, None], columns.flip(1), columns)
    return _resample(images, rows, columns).clamp(0, 1)


def shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """images: [B, C, H, W], moved by [B] pixels each way, linear in between; outside is 0."""
    one = torch.ones_like(down)
    rows = 1 - _distance(-down, one, images.shape[2]).abs()
    columns = 1 - _distance(-right, one, images.shape[3]).abs()
    return _resample(images, rows.clamp_min(0), columns.clamp_min(0))


def affine(
    images: Tensor, *, angle: Tensor, down: Tensor, right: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Images sheared, scaled, turned about their middle and moved; outside is 1, the paper.

    Args:
        images: [B, C, H, W] float.
        angle: [B] radians, clockwise.
        down: [B] pixels.
        right: [B] pixels.
        scale: [B] above 1 enlarges.
        shear: [B] radians, along the rows.

    Returns:
        [B, C, H, W]; each pixel has the value of the nearest one of the image.
    """
    height, width = images.shape[2:]
    angle, down, right, scale, shear = (
        value[:, None, None] for value in (angle, down, right, scale, shear)
    )
    # From the view back to the image: each step undone, the last one first.
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2 - down
    x = torch.arange(width, device=images.device) - (width - 1) / 2 - right
    x, y = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    x, y = (x + shear.tan() * y) / scale, y / scale
    grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1)
    # Outside is 0 to PyTorch, so it is shown the ink instead of the paper.
    return 1 - F.grid_sample(1 - images, grid, mode="nearest", align_corners=False)


def _cubic(start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size, size] weights that stretch [start, start + length) over the whole axis."""
    x = _distance(start, length / size, size).abs().clamp_max(2)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    pixel = torch.arange(size, device=start.device)
    start, length = start[:, None], length[:, None]
    inside = (pixel >= start) & (pixel < start + length)
    weight = torch.where(x < 1, near, far) * inside[:, None]
    return weight / weight.sum(dim=-1, keepdim=True)


def _distance(start: Tensor, step: Tensor, size: int) -> Tensor:
    """[B, size, size] from where a pixel of the view looks, to each pixel of the image."""
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    looks_at = start[:, None] + step[:, None] * (pixel + 0.5) - 0.5
    return pixel - looks_at[:, :, None]


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images: [B, C, H, W]; rows: [B, H, H]; columns: [B, W, W], weights by view, then image."""
    return rows[:, None] @ images @ columns.mT[:, None]
