"""The denoiser's size and conditioning, and the loss it is trained with."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from treediffusion.config import UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.objective import add_noise, diffusion_loss
from treediffusion.schedule import DiffusionSchedule

TINY = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, heads=4)
SCHEDULE = DiffusionSchedule(timesteps=50)
COEFS = torch.tensor(SCHEDULE.add_noise_coefs, dtype=torch.float32)
NODES = torch.tensor([[0, 1, -1], [0, 2, 4]])


@pytest.fixture
def denoiser() -> Denoiser:
    """In evaluation mode, without any weight that is zero."""
    torch.manual_seed(0)
    net = Denoiser(1, 8, 6, TINY).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize(
    ("image", "latent", "config", "expected"),
    [
        ((1, 28), 64, UNetConfig(channels=64, attention=(16,)), 9_408_449),
        ((3, 32), 1024, UNetConfig(channels=128, attention=(16, 8)), 39_358_339),
        (
            (3, 64),
            1024,
            UNetConfig(channels=128, multipliers=(1, 2, 2, 2, 4), attention=(16, 8)),
            89_147_011,
        ),
    ],
    ids=["mnist", "cifar10", "64px"],
)
def test_parameter_counts_are_the_published_ones(
    image: tuple[int, int], latent: int, config: UNetConfig, expected: int
) -> None:
    with torch.device("meta"):
        net = Denoiser(*image, latent, config)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_prediction_depends_on_image_time_latents_and_nodes(denoiser: Denoiser) -> None:
    torch.manual_seed(1)
    x, z, t = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 6), torch.tensor([3, 3])
    y = denoiser.condition(z, NODES)
    base = denoiser(x, t, y)
    others = [
        denoiser(x + 0.1, t, y),
        denoiser(x, t + 10, y),
        denoiser(x, t, denoiser.condition(z + 0.1, NODES)),
        denoiser(x, t, denoiser.condition(z, NODES.clamp(max=1))),
    ]
    for other in others:
        assert (base - other)[1].abs().max() > 1e-3


def test_loss_trains_unet_time_and_path_together(denoiser: Denoiser) -> None:
    denoiser.train()
    y = denoiser.condition(torch.randn(2, 3, 6), NODES)
    diffusion_loss(denoiser, torch.randn(2, 1, 8, 8), y, COEFS, loss="l2").backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0.0, name


def test_add_noise_is_its_formula_with_one_timestep_per_image() -> None:
    torch.manual_seed(2)
    x0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 49, 7])
    x_t = add_noise(x0, eps, t, COEFS)
    for row, step in enumerate(t.tolist()):
        alpha_bar = float(SCHEDULE.alpha_bar[step])
        expected = alpha_bar**0.5 * x0[row] + (1.0 - alpha_bar) ** 0.5 * eps[row]
        torch.testing.assert_close(x_t[row], expected)


def test_noised_images_of_unit_variance_keep_it() -> None:
    """The squares of the two factors sum to one at every timestep."""
    torch.testing.assert_close(COEFS.square().sum(dim=1), torch.ones(50))


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_true_noise_has_no_loss(loss: Literal["l2", "l1"]) -> None:
    x0 = torch.randn(64, 1, 8, 8)

    def oracle(x_t: Tensor, t: Tensor, _: Tensor) -> Tensor:
        signal, noise = COEFS[t].reshape(-1, 2, 1, 1, 1).unbind(1)
        return (x_t - signal * x0) / noise

    value = diffusion_loss(oracle, x0, torch.zeros(64, 1), COEFS, loss=loss)
    assert value < 1e-3


@pytest.mark.parametrize(("loss", "expected"), [("l2", 1.0), ("l1", (2.0 / torch.pi) ** 0.5)])
def test_predicting_nothing_costs_the_moment_of_a_normal(
    loss: Literal["l2", "l1"], expected: float
) -> None:
    """E eps^2 = 1 and E |eps| = sqrt(2 / pi); 65536 draws, so five deviations are 0.03."""
    torch.manual_seed(3)
    x0 = torch.zeros(256, 1, 16, 16)
    value = diffusion_loss(lambda x_t, *_: torch.zeros_like(x_t), x0, x0, COEFS, loss=loss)
    assert value == pytest.approx(expected, abs=0.03)


def test_every_timestep_is_drawn() -> None:
    torch.manual_seed(4)
    drawn: list[Tensor] = []

    def record(x_t: Tensor, t: Tensor, _: Tensor) -> Tensor:
        drawn.append(t)
        return x_t

    x0 = torch.zeros(2000, 1, 1, 1)
    diffusion_loss(record, x0, x0, COEFS, loss="l2")
    assert drawn[0].unique().tolist() == list(range(50))
