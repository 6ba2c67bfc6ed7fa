"""Random views of images, made in batches where the images are: small shifts, turns, scales."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ContrastiveConfig


def random_view(images: Tensor, config: ContrastiveConfig) -> Tensor:
    """images: [B, C, H, W] -> the same shape, each moved, turned and scaled at random.

    Pixels from outside are 0. The random numbers come from PyTorch's generator.
    """
    batch, _, _, size = images.shape
    turn, zoom, *shift = (torch.rand(4, batch, device=images.device) * 2 - 1).unbind(0)
    angle = turn * math.radians(config.rotate)
    scale = 1 + zoom * config.scale
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    move = [s * (2 * config.shift / size) for s in shift]
    matrix = torch.stack([cos, -sin, move[0], sin, cos, move[1]], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
