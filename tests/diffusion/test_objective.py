"""The denoiser's size and conditioning, and the loss it is trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from treediffusion.config import DiffusionConfig, UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.objective import DiffusionLoss, add_noise
from treediffusion.schedule import DiffusionSchedule

TINY = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, heads=4)
SCHEDULE = DiffusionSchedule(timesteps=50)
COEFS = torch.tensor(SCHEDULE.add_noise_coefs, dtype=torch.float32)
EDM = DiffusionSchedule(1000, kind="edm", sigma_data=0.5)
KINDS = [(SCHEDULE, "eps"), (SCHEDULE, "v"), (EDM, "eps"), (EDM, "v")]
IDS = ["linear-eps", "linear-v", "edm-eps", "edm-v"]
Prediction = Literal["eps", "v"]
NODES = torch.tensor([[0, 1, -1], [0, 2, 4]])


def make_loss(
    schedule: DiffusionSchedule = SCHEDULE,
    prediction: Prediction = "eps",
    loss: Literal["l2", "l1"] = "l2",
    *,
    like: Tensor = COEFS,
) -> DiffusionLoss:
    return DiffusionLoss(schedule, prediction=prediction, loss=loss, like=like)


def factors(schedule: DiffusionSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, [B, 1, 1, 1] float64, from the schedule's own formula."""
    inside = t.double().clamp(0, schedule.timesteps - 1)
    alpha, sigma = (torch.from_numpy(part) for part in schedule.at(inside.numpy()))
    return alpha[:, None, None, None], sigma[:, None, None, None]


def oracle(
    schedule: DiffusionSchedule, prediction: Prediction, x0: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The network that knows the images."""

    def predict(x_t: Tensor, t: Tensor, _: Tensor) -> Tensor:
        alpha, sigma = factors(schedule, t)
        if prediction == "eps":
            return (x_t - alpha * x0) / sigma
        d = schedule.data_std
        return (x0 - d**2 * alpha * x_t) / (d * sigma)

    return predict


@pytest.fixture
def denoiser() -> Denoiser:
    """In evaluation mode, without any weight that is zero."""
    torch.manual_seed(0)
    net = Denoiser(1, 8, 6, DiffusionConfig(unet=TINY)).eval()
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
        net = Denoiser(*image, latent, DiffusionConfig(unet=config))
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
    make_loss()(denoiser, torch.randn(2, 1, 8, 8), y).backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0.0, name


def test_the_network_takes_the_times_of_edm(denoiser: Denoiser) -> None:
    y = denoiser.condition(torch.randn(2, 3, 6), NODES)
    value = make_loss(EDM, "v")(denoiser, torch.randn(2, 1, 8, 8), y)
    assert value.isfinite()
    assert value.shape == ()


def test_add_noise_is_its_formula_with_its_own_factors_for_each_image() -> None:
    torch.manual_seed(2)
    x0, eps = torch.randn(2, 3, 2, 4, 4)
    alpha, sigma = COEFS[[0, 49, 7]].T[:, :, None, None, None]
    x_t = add_noise(x0, eps, alpha, sigma)
    for row, step in enumerate((0, 49, 7)):
        alpha_bar = float(SCHEDULE.alpha_bar[step])
        expected = alpha_bar**0.5 * x0[row] + (1.0 - alpha_bar) ** 0.5 * eps[row]
        torch.testing.assert_close(x_t[row], expected)


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize(("schedule", "prediction"), KINDS, ids=IDS)
def test_the_exact_network_has_no_loss(
    schedule: DiffusionSchedule, prediction: Prediction, loss: Literal["l2", "l1"]
) -> None:
    torch.manual_seed(5)
    x0 = torch.randn(64, 1, 8, 8, dtype=torch.float64)
    exact = oracle(schedule, prediction, x0)
    assert make_loss(schedule, prediction, loss, like=x0)(exact, x0, x0) < 1e-6


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["linear", "edm"])
def test_an_error_in_v_is_one_in_x0_times_its_factor(schedule: DiffusionSchedule) -> None:
    """With lambda = 1 / c_out^2, EDM's weighted distance to x0 is the loss."""
    torch.manual_seed(6)
    x0, error = torch.randn(2, 16, 1, 4, 4, dtype=torch.float64)
    exact = oracle(schedule, "v", x0)
    weighted = torch.zeros(0)

    def almost(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal weighted
        alpha, sigma = factors(schedule, t)
        s, d = sigma / alpha, schedule.data_std
        x = x_t / alpha
        output = exact(x_t, t, y) + error
        c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
        weighted = (((c_skip * x + c_out * output) - x0) / c_out).square().mean()
        return output

    value = make_loss(schedule, "v", like=x0)(almost, x0, x0)
    torch.testing.assert_close(value, error.square().mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(value, weighted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("loss", "expected"), [("l2", 1.0), ("l1", (2.0 / torch.pi) ** 0.5)])
@pytest.mark.parametrize(("schedule", "prediction"), KINDS, ids=IDS)
def test_predicting_nothing_costs_the_moment_of_a_normal(
    schedule: DiffusionSchedule,
    prediction: Prediction,
    loss: Literal["l2", "l1"],
    expected: float,
) -> None:
    """E F^2 = 1 and E |F| = sqrt(2 / pi), for eps and for the v of normal images of deviation d.

    65536 draws, so five deviations are 0.03.
    """
    torch.manual_seed(3)
    x0 = schedule.data_std * torch.randn(256, 1, 16, 16)
    value = make_loss(schedule, prediction, loss)(lambda x_t, *_: torch.zeros_like(x_t), x0, x0)
    assert value == pytest.approx(expected, abs=0.03)


def test_every_timestep_is_drawn() -> None:
    torch.manual_seed(4)
    drawn: list[Tensor] = []

    def record(x_t: Tensor, t: Tensor, _: Tensor) -> Tensor:
        drawn.append(t)
        return x_t

    x0 = torch.zeros(2000, 1, 1, 1)
    make_loss()(record, x0, x0)
    assert drawn[0].unique().tolist() == list(range(50))


def test_random_numbers_are_those_trained_results_were_made_with() -> None:
    """t first, then the noise, and the same arithmetic, to the last bit."""
    x0 = torch.rand(5, 1, 4, 4)
    torch.manual_seed(7)
    t, eps = torch.randint(50, (5,)), torch.randn(5, 1, 4, 4)
    signal, noise = COEFS[t][:, :, None, None, None].unbind(dim=1)
    seen = signal * x0 + noise * eps
    torch.manual_seed(7)
    value = make_loss()(lambda x_t, t, _: 0.5 * x_t + t[:, None, None, None], x0, x0)
    expected = F.mse_loss(0.5 * seen + t[:, None, None, None], eps)
    assert torch.equal(value, expected)


def test_edm_draws_the_logarithm_of_the_noise_from_its_normal() -> None:
    """20,000 draws: four standard errors of mean and deviation; t is where the schedule has s."""
    torch.manual_seed(8)
    drawn: list[Tensor] = []

    def record(x_t: Tensor, t: Tensor, _: Tensor) -> Tensor:
        drawn.extend((x_t, t))
        return x_t

    ones = torch.ones(20_000, 1, 1, 1)
    objective = make_loss(EDM, "v")
    objective(record, ones, ones)
    t = drawn[1]
    assert t.dtype == torch.float32
    assert (t % 1 > 0).float().mean() > 0.99
    alpha, sigma = factors(EDM, t)
    log_level = (sigma / alpha).log()
    assert log_level.mean() == pytest.approx(-1.2, abs=4 * 1.2 / 20_000**0.5)
    assert log_level.std() == pytest.approx(1.2, rel=4 / 40_000**0.5)
    # x_t - alpha is the noise alone, whose variance is the mean of sigma^2.
    noise = drawn[0] - alpha
    assert noise.square().mean() == pytest.approx(float(sigma.square().mean()), rel=0.05)


def test_the_output_of_a_narrow_network_is_compared_in_the_images_type() -> None:
    x0 = torch.randn(4, 1, 4, 4)
    value = make_loss(EDM, "v")(lambda x_t, *_: x_t.bfloat16(), x0, x0)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", [SCHEDULE, EDM], ids=["linear", "edm"])
def test_a_call_is_one_fixed_graph(schedule: DiffusionSchedule, prediction: Prediction) -> None:
    """Tracing without values fails at any that is read; a CUDA graph holds what passes."""
    objective = make_loss(schedule, prediction)
    x0 = torch.randn(3, 1, 4, 4)
    graph = make_fx(
        lambda x0: objective(lambda x_t, t, _: x_t * t[:, None, None, None], x0, x0),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(x0)
    torch.manual_seed(9)
    expected = objective(lambda x_t, t, _: x_t * t[:, None, None, None], x0, x0)
    torch.manual_seed(9)
    torch.testing.assert_close(graph(x0), expected)
