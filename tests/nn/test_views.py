"""Random views: bounded, repeatable, and nothing at all when nothing is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from treediffusion.config import ContrastiveConfig
from treediffusion.data.views import random_view

STILL = ContrastiveConfig(shift=0, rotate=0.0, scale=0.0)
LIVELY = ContrastiveConfig(shift=2, rotate=15.0, scale=0.1)


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def centre(images: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, 2] centre of mass, rows then columns, in pixels."""
    mass = images[:, 0]
    at = torch.arange(images.shape[-1], dtype=images.dtype)
    total = mass.sum(dim=(1, 2))
    return torch.stack([(mass.sum(2) @ at) / total, (mass.sum(1) @ at) / total], dim=1)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (1, 7)])
def test_without_any_motion_the_view_is_the_image(channels: int, size: int) -> None:
    images = draw(4, channels, size, size)
    torch.testing.assert_close(random_view(images, STILL), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [STILL, LIVELY, ContrastiveConfig()])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (1, 3, 28, 28), (3, 2, 5, 5)])
def test_shape_type_and_range_stay(config: ContrastiveConfig, shape: tuple[int, ...]) -> None:
    """Interpolation between pixels and zeros leaves 0..1."""
    view = random_view(draw(*shape), config)
    assert view.shape == shape
    assert view.dtype == torch.float32
    assert view.min() >= 0
    assert view.max() <= 1 + 1e-6


@pytest.mark.parametrize("shift", [1, 3])
def test_a_shift_moves_by_up_to_that_many_pixels_in_each_direction(shift: int) -> None:
    images = torch.zeros(512, 1, 17, 17)
    images[:, :, 8, 8] = 1
    torch.manual_seed(0)
    moved = centre(random_view(images, ContrastiveConfig(shift=shift))) - 8
    assert moved.abs().max() <= shift + 1e-4
    for extreme in (moved.amin(0), moved.amax(0)):
        assert (extreme.abs() > 0.95 * shift).all()
    assert moved.mean(0).abs().max() < 0.15 * shift
    assert torch.corrcoef(moved.T)[0, 1].abs() < 0.2  # rows and columns on their own


def test_a_turn_keeps_the_centre_and_the_distance_from_it() -> None:
    images = torch.zeros(256, 1, 33, 33)
    images[:, :, 16, 26:29] = 1 / 3
    torch.manual_seed(0)
    view = random_view(images, ContrastiveConfig(shift=0, rotate=20.0))
    offset = centre(view) - 16
    angle = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 1]))
    assert angle.abs().max() <= 20.5
    assert angle.min() < -18
    assert angle.max() > 18
    torch.testing.assert_close(offset.norm(dim=1), torch.full((256,), 11.0), rtol=0, atol=0.3)


def test_a_scale_stretches_distances_by_up_to_that_fraction() -> None:
    images = torch.zeros(256, 1, 33, 33)
    images[:, :, 15:18, 25:28] = 1 / 9
    torch.manual_seed(0)
    view = random_view(images, ContrastiveConfig(shift=0, scale=0.2))
    stretch = (centre(view)[:, 1] - 16) / 10
    assert 0.77 < stretch.min() < 0.84
    assert 1.16 < stretch.max() < 1.23


def test_every_image_of_a_batch_moves_on_its_own() -> None:
    images = draw(1, 1, 8, 8).expand(5, -1, -1, -1)
    view = random_view(images, LIVELY)
    for one in range(5):
        for other in range(one):
            assert not torch.allclose(view[one], view[other])


def test_views_repeat_under_a_seed_and_differ_without() -> None:
    images = draw(4, 1, 8, 8)
    torch.manual_seed(7)
    first, second = random_view(images, LIVELY), random_view(images, LIVELY)
    torch.manual_seed(7)
    again = random_view(images, LIVELY)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_pixels_from_outside_are_black() -> None:
    torch.manual_seed(0)
    view = random_view(torch.ones(64, 1, 8, 8), ContrastiveConfig(shift=3))
    assert view[:, :, 3:5, 3:5].min() > 1 - 1e-5
    assert view[:, :, 0].min() == 0
