"""Sampling in PyTorch: laws with oracles, and the same numbers as NumPy's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.tables import table_of
from torch import Tensor, nn
from treediffusion.config import DiffusionConfig, UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.sampler import sample
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SolverTable, apply_row

SCHEDULE = DiffusionSchedule(timesteps=100)
STEPS = SCHEDULE.inference_steps(10, spacing="quadratic")


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, heads=4)
    net = Denoiser(1, 8, 6, DiffusionConfig(unet=config)).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def draws(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Conditions and starts."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(batch, 128, generator=generator, dtype=dtype)
    return y, torch.randn(batch, 1, 8, 8, generator=generator, dtype=dtype)


def with_predictor(predict: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser whose embedding is the timestep itself, and whose network is `predict`."""
    time = SimpleNamespace(table=lambda steps: torch.as_tensor(steps).double()[:, None])
    net = SimpleNamespace(
        training=False, time=time, predict=lambda x, time, y, _: predict(x, time + y)
    )
    return cast("Denoiser", net)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_true_noise_leads_to_x0(eta: float) -> None:
    """Whatever is added on the way: the last step returns the estimate of x0."""
    x0 = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 2.0 - 1.0
    table = table_of(SCHEDULE, STEPS, eta=eta)

    def true_noise(x: Tensor, emb: Tensor) -> Tensor:
        alpha_bar = torch.tensor(SCHEDULE.alpha_bar)[emb[:, 0].long()][:, None, None, None]
        return (x - alpha_bar.sqrt() * x0) / (1.0 - alpha_bar).sqrt()

    out = sample(
        with_predictor(true_noise),
        torch.zeros(2, 1, dtype=torch.float64),
        torch.randn_like(x0),
        table,
        noise=lambda _: torch.randn_like(x0),
    )
    torch.testing.assert_close(out, x0, rtol=0.0, atol=1e-9)


def test_a_constant_noise_is_subtracted_in_one_go_or_in_many() -> None:
    """DDIM is exact where eps does not change along the way: the steps cannot matter."""
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    eps = torch.randn_like(x)
    net, y = with_predictor(lambda *_: eps), torch.zeros(2, 1, dtype=torch.float64)
    many = table_of(SCHEDULE, np.arange(80, -1, -1), clip=False)
    few = table_of(SCHEDULE, [80, 31, 4], clip=False)
    torch.testing.assert_close(sample(net, y, x, many), sample(net, y, x, few))


@pytest.mark.parametrize("clip_range", [None, (-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_equals_a_numpy_loop_over_the_tables_rows(
    denoiser: Denoiser, eta: float, clip_range: tuple[float, float] | None
) -> None:
    """Same network, so all that may differ is the rounding of a few products."""
    limits: dict[str, Any] = {"clip": False} if clip_range is None else {"clip_range": clip_range}
    table = table_of(SCHEDULE, STEPS, eta=eta, **limits)
    y, x_start = draws()
    noise = np.random.default_rng(2).standard_normal((len(STEPS), 3, 1, 8, 8), dtype=np.float32)
    out = sample(denoiser, y, x_start, table, noise=lambda step: torch.from_numpy(noise[step]))
    x = x_start.numpy()
    for step, t in enumerate(table.timestep.tolist()):
        with torch.no_grad():
            eps = denoiser(torch.from_numpy(x), torch.full((3,), t), y).numpy()
        x = apply_row(table, step, x, eps, noise[step])
    torch.testing.assert_close(out, torch.from_numpy(x), rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_rows(denoiser: Denoiser) -> None:
    table = table_of(SCHEDULE, STEPS)
    y, x_start = draws()
    rows = [sample(denoiser, y[i : i + 1], x_start[i : i + 1], table) for i in range(3)]
    out = sample(denoiser, y, x_start, table)
    torch.testing.assert_close(out, torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_noise_is_asked_for_steps_that_add_some() -> None:
    """The last step adds none; with eta 0 no step does, and no function is needed."""
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1, 4, 4)

    net = with_predictor(lambda x, _: torch.zeros_like(x))
    y, x = torch.zeros(1, 1), torch.randn(1, 1, 4, 4)
    sample(net, y, x, table_of(SCHEDULE, STEPS, eta=1.0), noise=noise)
    assert asked == list(range(len(STEPS) - 1))
    asked.clear()
    sample(net, y, x, table_of(SCHEDULE, STEPS), noise=noise)
    assert asked == []


def test_the_start_is_left_as_it_is_and_no_graph_is_kept(denoiser: Denoiser) -> None:
    y, x_start = draws()
    before = x_start.clone()
    out = sample(denoiser, y, x_start, table_of(SCHEDULE, STEPS))
    assert torch.equal(x_start, before)
    assert not out.requires_grad
    assert out.abs().max() <= 1.0


def test_state_stays_float32_when_the_network_is_narrower(denoiser: Denoiser) -> None:
    """The network sees and gives bfloat16; the update does not."""
    y, x_start = draws()
    out = sample(denoiser.bfloat16(), y.bfloat16(), x_start, table_of(SCHEDULE, STEPS))
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


@pytest.fixture
def noisy_table() -> SolverTable:
    return table_of(SCHEDULE, STEPS, eta=0.5)


def test_a_table_that_adds_noise_needs_some(denoiser: Denoiser, noisy_table: SolverTable) -> None:
    with pytest.raises(ConfigError, match="noise: got None"):
        sample(denoiser, *draws(), noisy_table)


def test_every_image_needs_a_condition(denoiser: Denoiser) -> None:
    y, x_start = draws()
    with pytest.raises(ShapeError, match=r"y: got \(1, 128\), expected \[3, E\]"):
        sample(denoiser, y[:1], x_start, table_of(SCHEDULE, STEPS))
