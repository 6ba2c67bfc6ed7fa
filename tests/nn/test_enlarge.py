"""Enlarging and convolving in one operation is enlarging, and then convolving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.nn.enlarge import Enlarge, InPhases

SHAPES = [(1, 1, 1, 1), (2, 4, 3, 5), (1, 3, 8, 8)]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As its name says."""
    enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(enlarged, weight, bias, padding=1)


def layer_of(x: Tensor) -> Enlarge:
    torch.manual_seed(0)
    return Enlarge(x.shape[1], 6, 3, padding=1).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_both_steps(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer = layer_of(x)
    wanted = plain(x, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, wanted)
    of_y = torch.randn_like(wanted)
    seen = (x, layer.weight, layer.bias)
    torch.testing.assert_close(
        torch.autograd.grad(found, seen, of_y), torch.autograd.grad(wanted, seen, of_y)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_phases_are_the_same(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    layer = layer_of(x)
    torch.testing.assert_close(InPhases(layer)(x), plain(x, layer.weight, layer.bias))
