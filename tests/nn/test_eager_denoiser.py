"""The denoiser against the plain writing of the published one, which is its baseline in `bench`."""

from __future__ import annotations

import pytest
import torch
from support.eager_denoiser import eager_denoiser, eager_sample, eager_tensors
from torch import Tensor, nn
from treediffusion.config import DiffusionConfig, UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.sampler import sample
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import solver_table

UNET = UNetConfig(channels=32, multipliers=(1, 2), attention=(2,), heads=4, dropout=0.0)
NODES = torch.tensor([[0, 1, 4, -1], [0, 2, -1, -1], [0, 1, 3, 8]])


def network(config: UNetConfig = UNET, size: int = 8, channels: int = 1) -> Denoiser:
    torch.manual_seed(0)
    net = Denoiser(channels, size, 6, DiffusionConfig(unet=config)).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def inputs(net: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    """Images, timesteps and latents of three paths."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *net.unet.image_shape, generator=generator, dtype=torch.float64)
    z_path = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 500, 999]), z_path


@pytest.mark.parametrize(
    ("config", "size", "channels"),
    [
        (UNET, 8, 1),
        (UNET, 7, 3),
        (UNET.model_copy(update={"attention": (), "attention_sides": (8, 4)}), 7, 1),
        (UNET.model_copy(update={"multipliers": (1, 2, 1, 1), "blocks": 1}), 12, 1),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_network(
    config: UNetConfig, size: int, channels: int
) -> None:
    ours = network(config, size, channels)
    plain = eager_denoiser(ours, 6, config)
    x, t, z_path = inputs(ours)
    ours_z, plain_z = (z_path.clone().requires_grad_() for _ in range(2))
    out = ours(x, t, ours.condition(ours_z, NODES))
    expected = plain(x, t, plain_z, NODES)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)

    weight = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours_z.grad, plain_z.grad, rtol=1e-10, atol=1e-10)
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    truth = {name: p.grad for name, p in plain.named_parameters()}
    moved = eager_tensors(plain, ours, found)
    assert moved.keys() == truth.keys()
    for name, gradient in truth.items():
        torch.testing.assert_close(moved[name], gradient, rtol=1e-9, atol=1e-10)


def test_generation_ends_in_the_same_images() -> None:
    ours = network().float()
    plain = eager_denoiser(ours, 6, UNET)
    x, _, z_path = (value.float() for value in inputs(ours))
    schedule = DiffusionSchedule(timesteps=100)
    steps = schedule.inference_steps(10, spacing="quadratic")
    table = solver_table("ddim", steps, schedule.alpha[steps], schedule.sigma[steps])
    with torch.no_grad():
        out = sample(ours, ours.condition(z_path, NODES), x, table)
        torch.testing.assert_close(
            out, eager_sample(plain, z_path, NODES, x, table), rtol=1e-3, atol=1e-3
        )
