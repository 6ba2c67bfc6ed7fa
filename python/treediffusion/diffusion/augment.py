"""EDM's augmentation: images mirrored, scaled, turned, stretched and moved, and told to be.

    image' = move(stretch(turn(scale(upend(mirror(image)))))),   label = what each of them did

The kinds, chances and distributions are those for CIFAR-10 (Karras et al. 2022, appendix F.2). The
network is given the label while it trains; at generation it is given zeros, the label of an image
left alone, and so draws none of this. The published code filters its samples through wavelets;
these are bilinear, so that a turned image is a little smoother, and a shrunk one a little rougher.
What comes into view from beyond an edge is the image reflected there.

Random numbers come from PyTorch's generator of the images' device and no value is read back, so
that a CUDA graph can hold a call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9
"""Numbers that tell the network what was done."""
PROB = 0.12
"""Chance of each change but the mirror image, which is every other one."""
SCALE_STD, STRETCH_STD = 0.2, 0.2
"""Of base-2 logarithms."""
TURNED_AXIS_PROB = 0.5
"""Share of the stretched images whose axis is not the horizontal one."""
MOVE_STD = 1 / 8
"""In units of the image's side."""


class Moves(NamedTuple):
    """What happens to each image; zero throughout leaves one alone.

    Attributes:
        mirror: [B] bool, left and right change places.
        upend: [B] bool, top and bottom change places.
        scale: [B] deviates: 2^(0.2 scale) times as large.
        turn: [B] radians, counter-clockwise.
        stretch: [B] deviates: 2^(0.2 stretch) times as long along an axis, as much shorter across.
        axis: [B] radians clockwise from the rows, within a quarter turn: of the stretch.
        right: [B] deviates, in eighths of the width.
        down: [B] deviates, in eighths of the height.
    """

    mirror: Tensor
    upend: Tensor
    scale: Tensor
    turn: Tensor
    stretch: Tensor
    axis: Tensor
    right: Tensor
    down: Tensor


def augment(images: Tensor, *, prob: float = PROB) -> tuple[Tensor, Tensor]:
    """Images, each changed in its own way, and what was done to them.

    Args:
        images: [B, C, H, W] float, of any range.
        prob: chance of each change but the mirror image; at 0 there is none of that either.

    Returns:
        [B, C, H, W] images in the range of the given ones, and [B, 9] labels, both of their dtype.
    """
    moves = draw_moves(images, prob=prob)
    return apply_moves(images, moves), labels(moves)


def draw_moves(images: Tensor, *, prob: float = PROB) -> Moves:
    """Random moves for each of the images, [B, C, H, W] float, which are not read."""
    count, options = len(images), {"device": images.device, "dtype": images.dtype}
    chance = torch.rand(7, count, **options)  # type: ignore[call-overload]
    half_turns = torch.rand(2, count, **options) * 2 - 1  # type: ignore[call-overload]
    scale, stretch, right, down = torch.randn(4, count, **options)  # type: ignore[call-overload]
    # An axis has no direction: half a circle holds all. Published is the whole one, where a label
    # can mean a stretch or the opposite.
    turn, axis = math.pi * half_turns[0], math.pi / 2 * half_turns[1]
    moved = chance[5] < prob
    return Moves(
        mirror=chance[0] < (0.5 if prob > 0 else 0.0),
        upend=chance[1] < 0.5 * prob,
        scale=scale * (chance[2] < prob),
        turn=turn * (chance[3] < prob),
        stretch=stretch * (chance[4] < prob),
        axis=axis * (chance[6] < TURNED_AXIS_PROB),
        right=right * moved,
        down=down * moved,
    )


def labels(moves: Moves) -> Tensor:
    """[B, 9] what the network is told: angles as points, since they have a seam."""
    columns = (
        moves.mirror.to(moves.scale.dtype),
        moves.upend.to(moves.scale.dtype),
        moves.scale,
        moves.turn.cos() - 1,
        moves.turn.sin(),
        moves.stretch * moves.axis.cos(),
        moves.stretch * moves.axis.sin(),
        moves.right,
        moves.down,
    )
    return torch.stack(columns, dim=1)


def apply_moves(images: Tensor, moves: Moves) -> Tensor:
    """The images, [B, C, H, W] float, moved; bit for bit as they are where only flips are asked."""
    images = torch.where(_per_image(moves.mirror), images.flip(3), images)
    images = torch.where(_per_image(moves.upend), images.flip(2), images)
    bent = (moves.scale != 0) | (moves.turn != 0) | (moves.stretch != 0)
    bent |= (moves.right != 0) | (moves.down != 0)
    grid = _looks_at(moves, *images.shape[2:])
    # Corners are pixel centres: a reflection does not repeat the pixel at the edge, as published.
    warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    return torch.where(_per_image(bent), warped, images)


def _looks_at(moves: Moves, height: int, width: int) -> Tensor:
    """[B, H, W, 2] where each pixel comes from, x first; -1 and 1 are the outermost pixels."""
    scale, turn, stretch, axis, right, down = (part[:, None, None] for part in moves[2:])
    # From the view back to the image: each step undone, the last one first.
    device, dtype = moves.scale.device, moves.scale.dtype
    y = torch.arange(height, device=device, dtype=dtype)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=device, dtype=dtype) - (width - 1) / 2
    x, y = x - right * (MOVE_STD * width), y - down * (MOVE_STD * height)
    x, y = _turned(x, y, -axis)
    factor = torch.exp2(STRETCH_STD * stretch)
    x, y = _turned(x / factor, y * factor, axis)
    x, y = _turned(x, y, turn)
    zoom = torch.exp2(-SCALE_STD * scale)
    return torch.stack([x * zoom * (2 / max(width - 1, 1)), y * zoom * (2 / max(height - 1, 1))], 3)


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Points turned clockwise about the middle, as y points down."""
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y


def _per_image(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]
