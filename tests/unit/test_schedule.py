"""The schedule and DDIM's coefficients: published values, laws, and a denoiser known exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.published_ddim import DDIMTable, ddim_table, ddim_update
from treediffusion import noise
from treediffusion.config import Config
from treediffusion.errors import ConfigError
from treediffusion.noise import Stream
from treediffusion.schedule import DiffusionSchedule, Spacing

PUBLISHED = DiffusionSchedule()
QUADRATIC_100 = """
    0 1 2 3 5 6 8 9 11 13 15 18 20 23 26 29 32 35 39 43 47 51 55 59 63 68 73 78 83 88 94 99 105 111
    117 124 130 137 143 150 158 165 172 180 188 195 204 212 220 229 238 246 255 265 274 284 293 303
    313 323 334 344 355 366 377 388 399 411 423 434 446 459 471 483 496 509 522 535 548 562 575 589
    603 617 632 646 661 675 690 705 721 736 752 768 783 800
"""
FEASIBLE_FROM_32 = """
    32 33 34 35 36 38 39 40 42 44 46 48 50 53 56 59 63 67 72 77 84 91 100 112 125 143 167 200 250
    334 500 1000
"""

steps_lists = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(
    lambda steps: sorted(steps, reverse=True)
)
etas = st.floats(0.0, 1.0)


def gaussian_eps(x: NDArray[Any], t: int, *, mean: float, std: float) -> NDArray[Any]:
    """E[eps | x_t = x] for x0 from N(mean, std^2)."""
    alpha_bar = PUBLISHED.alpha_bar[t]
    eps = np.sqrt(1 - alpha_bar) * (x - np.sqrt(alpha_bar) * mean)
    return np.asarray(eps / (alpha_bar * std**2 + 1 - alpha_bar))


def generate(
    table: DDIMTable, x: NDArray[Any], *, mean: float, std: float, seed: int = 0
) -> NDArray[Any]:
    for number, (t, row) in enumerate(zip(table.timestep.tolist(), table.coef, strict=True)):
        drawn = noise.normal(seed, [0], x.shape, stream=Stream.STEP, step=number)[0]
        eps = gaussian_eps(x, t, mean=mean, std=std)
        x = ddim_update(x, eps, row, clip_range=None, noise=drawn)
    return x


def moments(table: DDIMTable, *, mean: float, std: float) -> tuple[float, float]:
    """Mean and deviation of what is generated from N(0, 1): every step is affine in x."""
    centre, variance = 0.0, 1.0
    for t, (a, b, c, d, sigma) in zip(table.timestep.tolist(), table.coef.tolist(), strict=True):
        ends = np.array([0.0, 1.0])
        eps = gaussian_eps(ends, t, mean=mean, std=std)
        shift, end = c * (a * ends - b * eps) + d * eps
        centre = shift + (end - shift) * centre
        variance = (end - shift) ** 2 * variance + sigma**2
    return float(centre), float(np.sqrt(variance))


def uniform_table(count: int, *, eta: float = 0.0) -> DDIMTable:
    steps = PUBLISHED.inference_steps(count, spacing="uniform")
    return ddim_table(PUBLISHED, steps, eta=eta, clip=False)


@pytest.mark.parametrize(
    ("t", "value", "digits"),
    [
        (0, 0.99990, 5),
        (1, 0.99978, 5),
        (100, 0.89514, 5),
        (250, 0.52142, 5),
        (500, 0.077797, 6),
        (800, 0.0015075, 7),
        (999, 4.0358e-5, 9),
    ],
)
def test_alpha_bar_has_the_published_values(t: int, value: float, digits: int) -> None:
    assert round(float(PUBLISHED.alpha_bar[t]), digits) == value


def test_roots_of_alpha_bar_have_the_published_values() -> None:
    assert round(float(PUBLISHED.alpha[800]), 5) == 0.03883
    assert round(float(PUBLISHED.alpha[999]), 6) == 0.006353


def test_defaults_are_those_of_the_configuration() -> None:
    config = Config().diffusion
    assert DiffusionSchedule(config.timesteps, config.beta_start, config.beta_end) == PUBLISHED


def test_training_coefficients_keep_the_variance() -> None:
    coefs = PUBLISHED.add_noise_coefs
    assert coefs.shape == (1000, 2)
    assert coefs.dtype == np.float64
    assert np.array_equal(coefs[:, 0], PUBLISHED.alpha)
    assert np.array_equal(coefs[:, 1], PUBLISHED.sigma)
    np.testing.assert_allclose((coefs**2).sum(axis=1), 1.0, rtol=1e-15)


def test_quadratic_100_is_the_published_list() -> None:
    steps = PUBLISHED.inference_steps(100, spacing="quadratic")
    assert steps.dtype == np.int64
    assert steps[::-1].tolist() == [int(t) for t in QUADRATIC_100.split()]
    assert len(steps) == 96


@pytest.mark.parametrize(
    ("count", "visited"), [(10, 10), (20, 20), (50, 49), (250, 230), (500, 422), (1000, 688)]
)
def test_quadratic_merges_as_published(count: int, visited: int) -> None:
    steps = PUBLISHED.inference_steps(count, spacing="quadratic")
    assert (len(steps), steps[0], steps[-1]) == (visited, 800, 0)


@pytest.mark.parametrize(("count", "stride"), [(100, 10), (20, 50), (10, 100), (2, 500)])
def test_uniform_takes_the_smallest_stride_that_fits(count: int, stride: int) -> None:
    steps = PUBLISHED.inference_steps(count, spacing="uniform")
    assert steps.dtype == np.int64
    assert steps.tolist() == [k * stride for k in reversed(range(count))]


def test_uniform_counts_are_the_published_ones() -> None:
    feasible = {int(count) for count in FEASIBLE_FROM_32.split()}
    for count in range(32, 1001):
        if count in feasible:
            assert len(PUBLISHED.inference_steps(count, spacing="uniform")) == count
        else:
            with pytest.raises(ConfigError, match="quadratic"):
                PUBLISHED.inference_steps(count, spacing="uniform")


@pytest.mark.parametrize(
    ("count", "nearest"), [(37, (36, 38)), (99, (91, 100)), (501, (500, 1000))]
)
def test_infeasible_counts_name_the_two_nearest(count: int, nearest: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        PUBLISHED.inference_steps(count, spacing="uniform")
    assert caught.value.expected.startswith(f"{nearest[0]} or {nearest[1]} ")
    assert caught.value.got == count


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras", "logsnr"])
@pytest.mark.parametrize("count", [1001, 2**31 - 1, 2**62])
def test_more_steps_than_timesteps_are_refused_before_a_list_is_made(
    spacing: Spacing, count: int
) -> None:
    with pytest.raises(ConfigError, match="at most 1000, the timesteps") as caught:
        PUBLISHED.inference_steps(count, spacing=spacing)
    assert caught.value.got == count


@given(timesteps=st.integers(1, 1200), data=st.data())
@settings(max_examples=80, deadline=None)
def test_steps_descend_to_zero_within_the_schedule(timesteps: int, data: st.DataObject) -> None:
    schedule, count = DiffusionSchedule(timesteps), data.draw(st.integers(1, timesteps))
    quadratic = schedule.inference_steps(count, spacing="quadratic")
    assert len(quadratic) <= count
    assert quadratic[0] < timesteps
    for steps in (quadratic, schedule.inference_steps(timesteps, spacing="uniform")):
        assert steps[-1] == 0
        assert np.all(np.diff(steps) < 0)


@given(steps=steps_lists, eta=etas)
@settings(max_examples=60, deadline=None)
def test_every_row_moves_the_marginal_to_the_next_step(steps: list[int], eta: float) -> None:
    """x0_hat inverts add_noise, and x' has the signal and the noise variance of the next step."""
    table = ddim_table(PUBLISHED, steps, eta=eta)
    a, b, c, d, sigma = table.coef.T
    signal, spread = PUBLISHED.add_noise_coefs[steps].T
    np.testing.assert_allclose(a * signal, 1.0, rtol=1e-12)
    np.testing.assert_allclose(a * spread, b, rtol=1e-9)
    after = np.append(signal[1:], 1.0)
    np.testing.assert_allclose(c, after, rtol=1e-12)
    np.testing.assert_allclose(d**2 + sigma**2, 1 - after**2, atol=1e-12)
    assert table.coef[-1, 2:].tolist() == [1.0, 0.0, 0.0]
    assert np.all(table.coef[:-1, 4] >= 0)
    assert table.coef.dtype == np.float64
    assert table.timestep.dtype == np.int64
    assert table.timestep.tolist() == steps


@given(steps=steps_lists)
@settings(max_examples=30, deadline=None)
def test_sigma_is_zero_at_eta_0_and_grows_in_proportion_to_eta(steps: list[int]) -> None:
    assert np.all(ddim_table(PUBLISHED, steps).coef[:, 4] == 0)
    half, full = (ddim_table(PUBLISHED, steps, eta=eta).coef[:, 4] for eta in (0.5, 1.0))
    np.testing.assert_allclose(2 * half, full, rtol=1e-15)
    assert np.all(full[:-1] > 0)


def test_eta_1_on_every_step_is_ddpm() -> None:
    """The variance is fixedsmall's, and the mean that of q(x' | x_t, x0)."""
    beta, alpha_bar = PUBLISHED.beta[::-1], PUBLISHED.alpha_bar[::-1]
    after = np.append(alpha_bar[1:], 1.0)
    table = ddim_table(PUBLISHED, range(999, -1, -1), eta=1.0)
    _, _, c, d, sigma = table.coef.T
    variance = beta * (1 - after) / (1 - alpha_bar)
    np.testing.assert_allclose(sigma**2, variance, rtol=1e-9)
    factor_x_t = d / np.sqrt(1 - alpha_bar)
    expected_x_t = np.sqrt(1 - beta) * (1 - after) / (1 - alpha_bar)
    np.testing.assert_allclose(factor_x_t, expected_x_t, rtol=1e-9)
    expected_x0 = np.sqrt(after) * beta / (1 - alpha_bar)
    np.testing.assert_allclose(c - factor_x_t * np.sqrt(alpha_bar), expected_x0, rtol=1e-8)


@given(steps=steps_lists)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-3)])
def test_ddim_with_the_true_noise_returns_x0(
    steps: list[int], kind: type[np.floating[Any]], tolerance: float
) -> None:
    table = ddim_table(PUBLISHED, steps)
    x0 = np.linspace(-0.9, 0.9, 12).reshape(3, 4).astype(kind)
    eps = noise.normal(1, [0, 1, 2], (4,), stream=Stream.START).astype(kind)
    signal, spread = PUBLISHED.add_noise_coefs[steps[0]].astype(kind)
    x = signal * x0 + spread * eps
    for row in table.coef:
        x = ddim_update(x, eps, row, clip_range=table.clip_range)
    assert x.dtype == kind
    np.testing.assert_allclose(x, x0, atol=tolerance)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (0.0, 1.0)])
def test_an_exact_gaussian_denoiser_generates_its_gaussian(mean: float, std: float) -> None:
    """The deterministic sampler is an affine map here, so two points give the whole marginal."""
    centre, one = generate(uniform_table(100), np.array([0.0, 1.0]), mean=mean, std=std)
    assert centre == pytest.approx(mean, abs=0.03 * std)
    assert one - centre == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (0.0, 1.0), (-0.8, 0.1)])
def test_the_error_of_the_gaussian_falls_with_the_stride(
    mean: float, std: float, eta: float
) -> None:
    """First order: a tenth of the stride leaves about a tenth of the error in the deviation.

    100 steps are too few for a narrow Gaussian (12 % at deviation 0.1, 21 % with eta = 1), which is
    the sampler's own error; that it vanishes with the stride is what shows the coefficients right.
    """
    centres, deviations = zip(
        *(moments(uniform_table(count, eta=eta), mean=mean, std=std) for count in (100, 1000)),
        strict=True,
    )
    coarse, fine = (abs(deviation / std - 1) for deviation in deviations)
    assert fine < 0.04
    assert 5 < coarse / fine < 20
    assert np.allclose(centres, mean, atol=0.01 * std)


def test_the_unit_gaussian_shrinks_by_the_cosine_of_each_turn() -> None:
    """With x_t = cos(angle) x0 + sin(angle) eps and unit x0, a step keeps cos(turn) of x."""
    table = ddim_table(PUBLISHED, PUBLISHED.inference_steps(50, spacing="quadratic"), clip=False)
    angles = np.append(np.arccos(PUBLISHED.alpha[table.timestep]), 0.0)
    one = generate(table, np.array([1.0]), mean=0.0, std=1.0)
    assert one[0] == pytest.approx(np.prod(np.cos(np.diff(angles))), rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_moments_the_coefficients_predict(eta: float) -> None:
    """Bounds are 4 standard errors of 20,000 samples."""
    table = uniform_table(100, eta=eta)
    centre, deviation = moments(table, mean=0.3, std=0.5)
    x = noise.normal(0, [0], (20_000,), stream=Stream.START)[0]
    x = generate(table, x, mean=0.3, std=0.5)
    assert x.mean() == pytest.approx(centre, abs=4 * deviation / np.sqrt(x.size))
    assert x.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * x.size))


@pytest.mark.parametrize("clip_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_the_estimate_is_clipped_and_the_noise_is_not_recomputed(
    clip_range: tuple[float, float],
) -> None:
    table = ddim_table(PUBLISHED, [500, 250], clip_range=clip_range)
    assert (table.clip, table.clip_range) == (True, clip_range)
    x, eps = np.array([9.0, -9.0]), np.array([0.5, -0.25])
    expected = table.coef[0, 2] * np.array(clip_range[::-1]) + table.coef[0, 3] * eps
    drawn = ddim_update(x, eps, table.coef[0], clip_range=table.clip_range)
    np.testing.assert_allclose(drawn, expected, rtol=1e-15)
    assert ddim_update(x, eps, table.coef[0], clip_range=None)[0] > 9


def test_update_is_float32_and_rounds_each_operation() -> None:
    table = ddim_table(PUBLISHED, [700, 300], eta=1.0)
    x, eps, drawn = noise.normal(0, [0, 1, 2], (7,), stream=Stream.START)
    a, b, c, d, sigma = table.coef[0].astype(np.float32)
    expected = (c * np.clip(a * x - b * eps, -1, 1) + d * eps) + sigma * drawn
    result = ddim_update(x, eps.astype(np.float64), table.coef[0], clip_range=(-1, 1), noise=drawn)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected)


def test_not_a_number_stays_one() -> None:
    x = np.array([np.nan, 0.0], np.float32)
    row = ddim_table(PUBLISHED, [5]).coef[0]
    x_next = ddim_update(x, np.zeros_like(x), row, clip_range=(-1, 1))
    assert np.isnan(x_next).tolist() == [True, False]


def test_a_schedule_survives_json() -> None:
    schedule = DiffusionSchedule(123, 1 / 3000, 0.1 + 0.2)
    assert DiffusionSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert PUBLISHED.to_dict() == {
        "kind": "linear",
        "timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "cosine"},
        {"timesteps": "1000"},
        {"timesteps": 1000.0},
        {"timesteps": True},
        {"beta_end": None},
        {"beta_end": "0.02"},
        {"unknown": 1},
    ],
)
def test_manifests_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DiffusionSchedule.from_dict(PUBLISHED.to_dict() | change)


@pytest.mark.parametrize("values", [{}, {"kind": "linear"}, None, [1]])
def test_manifests_with_missing_parts_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="the keys kind, timesteps"):
        DiffusionSchedule.from_dict(values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((0,), "timesteps"),
        ((10.5,), "timesteps"),
        ((1000, 0.0), "beta_start"),
        ((1000, float("nan")), "beta_start"),
        ((1000, 1e-4, 1.0), "beta_end"),
        ((1000, 1e-4, -0.1), "beta_end"),
        ((1000, 1e-18), "beta_start, beta_end"),
        ((1000, 1e-4, 0.9), "beta_start, beta_end"),
    ],
)
def test_schedules_without_noise_or_signal_are_refused(values: Any, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DiffusionSchedule(*values)
    assert caught.value.name == name


@pytest.mark.parametrize("count", [0, -5, 2.0, "10", None, True])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras", "logsnr"])
def test_what_is_not_a_count_is_refused(count: Any, spacing: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PUBLISHED.inference_steps(count, spacing=spacing)
    assert caught.value.name == "num_inference_steps"


def test_unknown_spacings_are_refused() -> None:
    spacing: Any = "quad"
    with pytest.raises(ConfigError) as caught:
        PUBLISHED.inference_steps(10, spacing=spacing)
    assert caught.value.name == "spacing"
