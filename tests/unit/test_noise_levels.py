"""What both kinds of schedule share, EDM's levels, and the steps that look at the noise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tables import table_of
from treediffusion.errors import ConfigError
from treediffusion.schedule import DiffusionSchedule

PUBLISHED = DiffusionSchedule()
EDM = DiffusionSchedule(kind="edm")


@pytest.mark.parametrize("schedule", [PUBLISHED, EDM, DiffusionSchedule(kind="edm", sigma_data=2)])
def test_images_of_the_assumed_deviation_keep_unit_variance(schedule: DiffusionSchedule) -> None:
    assert schedule.alpha.shape == schedule.sigma.shape == (1000,)
    assert schedule.alpha.dtype == schedule.sigma.dtype == np.float64
    variance = (schedule.alpha * schedule.data_std) ** 2 + schedule.sigma**2
    np.testing.assert_allclose(variance, 1.0, rtol=1e-14)
    assert np.array_equal(
        schedule.add_noise_coefs, np.stack([schedule.alpha, schedule.sigma], axis=1)
    )


@pytest.mark.parametrize("schedule", [PUBLISHED, EDM])
def test_the_signal_falls_from_step_to_step(schedule: DiffusionSchedule) -> None:
    assert np.all(np.diff(schedule.log_snr) < 0)
    share = 1 / (1 + np.exp(-schedule.log_snr))
    np.testing.assert_allclose(schedule.alpha_bar, share, rtol=1e-10)
    np.testing.assert_allclose(np.cumprod(1 - schedule.beta), schedule.alpha_bar, rtol=1e-8)


@pytest.mark.parametrize("timesteps", [2, 18, 1000])
def test_edm_levels_are_the_papers_in_ascending_order(timesteps: int) -> None:
    """Equation 5, whose i runs the other way, from the most noise to the least."""
    schedule = DiffusionSchedule(timesteps, kind="edm")
    level = schedule.sigma / schedule.alpha
    i = np.arange(timesteps)[::-1]
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    np.testing.assert_allclose(level, (high + i / (timesteps - 1) * (low - high)) ** 7, rtol=1e-10)
    np.testing.assert_allclose(level[[0, -1]], [0.002, 80], rtol=1e-12)
    np.testing.assert_allclose(schedule.log_snr, -2 * np.log(level), atol=1e-12)


def x0_coefs(schedule: DiffusionSchedule, prediction: str) -> np.ndarray:
    """[T, 2] a and b of x0 = a x_t - b F, as solvers have them, in the order of the timesteps."""
    steps = np.arange(schedule.timesteps)[::-1]
    return table_of(schedule, steps, "dpmpp_2m", prediction=prediction).network[::-1, :2]


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0, 3.0])
def test_v_on_edm_levels_is_the_papers_preconditioning(sigma_data: float) -> None:
    """D = c_skip x + c_out F(c_in x): table 1 of Karras et al. 2022, x = x0 + s n, u = c_in x."""
    schedule = DiffusionSchedule(100, kind="edm", sigma_data=sigma_data)
    s = schedule.sigma / schedule.alpha
    a, b = x0_coefs(schedule, "v").T
    total = s**2 + sigma_data**2
    np.testing.assert_allclose(schedule.alpha, 1 / np.sqrt(total), rtol=1e-12)
    np.testing.assert_allclose(a * schedule.alpha, sigma_data**2 / total, rtol=1e-12)
    np.testing.assert_allclose(-b, s * sigma_data / np.sqrt(total), rtol=1e-12)


@pytest.mark.parametrize("schedule", [PUBLISHED, EDM])
def test_both_predictions_give_back_x0(schedule: DiffusionSchedule) -> None:
    prediction: Any
    x0, eps = -0.7, 1.3
    x_t, d = schedule.alpha * x0 + schedule.sigma * eps, schedule.data_std
    v = schedule.sigma * x0 / d - d * schedule.alpha * eps
    for prediction, output in (("eps", eps), ("v", v)):
        a, b = x0_coefs(schedule, prediction).T
        np.testing.assert_allclose(a * x_t - b * output, x0, rtol=1e-10)


def test_v_is_minus_the_published_one_on_a_linear_schedule() -> None:
    """Salimans and Ho 2022: x0_hat = alpha x_t - sigma v."""
    coefs = x0_coefs(PUBLISHED, "v")
    assert np.array_equal(coefs, np.stack([PUBLISHED.alpha, -PUBLISHED.sigma], axis=1))


@pytest.mark.parametrize("schedule", [PUBLISHED, EDM])
def test_at_whole_times_are_the_tables(schedule: DiffusionSchedule) -> None:
    t = np.array([[0, 999], [500, 3]])
    alpha, sigma = schedule.at(t)
    assert np.array_equal(alpha, schedule.alpha[t])
    assert np.array_equal(sigma, schedule.sigma[t])


def test_edm_levels_go_on_between_the_timesteps() -> None:
    """A table of half as many intervals has the same levels at every other place."""
    coarse, fine = DiffusionSchedule(6, kind="edm"), DiffusionSchedule(11, kind="edm")
    np.testing.assert_allclose(coarse.at(np.arange(11) / 2), (fine.alpha, fine.sigma), rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "t"),
    [
        (PUBLISHED, 0.5),
        (PUBLISHED, 1000),
        (PUBLISHED, -1),
        (EDM, 999.5),
        (EDM, [0, -0.1]),
        (EDM, float("nan")),
    ],
)
def test_times_beyond_the_schedule_are_refused(schedule: DiffusionSchedule, t: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule.at(t)
    assert caught.value.name == "t"


@given(
    timesteps=st.integers(2, 1200),
    count=st.integers(1, 1200),
    kind=st.sampled_from(["linear", "edm"]),
    spacing=st.sampled_from(["karras", "logsnr"]),
)
@settings(max_examples=100, deadline=None)
def test_spacings_by_noise_give_as_many_distinct_steps_as_asked(
    timesteps: int, count: int, kind: Any, spacing: Any
) -> None:
    schedule, count = DiffusionSchedule(timesteps, kind=kind), min(count, timesteps)
    steps = schedule.inference_steps(count, spacing=spacing)
    assert steps.dtype == np.int64
    assert len(steps) == count
    assert np.all(np.diff(steps) < 0)
    assert steps[0] == timesteps - 1
    assert steps[-1] == (0 if count > 1 else timesteps - 1)


@pytest.mark.parametrize(("schedule", "count"), [(EDM, 18), (EDM, 1000), (PUBLISHED, 10)])
def test_karras_is_a_line_in_the_seventh_root_of_the_noise(
    schedule: DiffusionSchedule, count: int
) -> None:
    """Each step is the timestep nearest to its place on the line."""
    root = np.exp(-schedule.log_snr / 14)
    line = np.linspace(root[-1], root[0], count)
    nearest = np.abs(root[:, None] - line).argmin(axis=0)
    assert schedule.inference_steps(count, spacing="karras").tolist() == nearest.tolist()


def test_karras_on_edm_levels_is_a_line_in_t() -> None:
    steps = DiffusionSchedule(18 * 17 + 1, kind="edm").inference_steps(18, spacing="karras")
    assert steps.tolist() == list(range(18 * 17, -1, -18))


@pytest.mark.parametrize(("schedule", "count"), [(EDM, 30), (PUBLISHED, 10)])
def test_logsnr_is_a_line_in_the_log_of_the_signal_to_noise_ratio(
    schedule: DiffusionSchedule, count: int
) -> None:
    line = np.linspace(schedule.log_snr[-1], schedule.log_snr[0], count)
    nearest = np.abs(schedule.log_snr[:, None] - line).argmin(axis=0)
    assert schedule.inference_steps(count, spacing="logsnr").tolist() == nearest.tolist()


def test_crowded_steps_move_on_to_free_ones() -> None:
    """Near t = 0 the log-SNR falls faster than steps can be told apart: all of them are taken."""
    steps = PUBLISHED.inference_steps(200, spacing="logsnr")[::-1]
    line = np.linspace(PUBLISHED.log_snr[0], PUBLISHED.log_snr[-1], 200)
    nearest = np.abs(PUBLISHED.log_snr[:, None] - line).argmin(axis=0)
    assert len(np.unique(nearest)) < 200
    assert steps[:10].tolist() == list(range(10))
    assert np.array_equal(steps[100:], nearest[100:])


def test_published_spacings_do_not_depend_on_the_kind() -> None:
    for schedule in (PUBLISHED, EDM):
        assert schedule.inference_steps(100, spacing="uniform").tolist() == list(
            range(990, -1, -10)
        )
        assert schedule.inference_steps(3, spacing="quadratic").tolist() == [800, 200, 0]


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
def test_more_steps_than_timesteps_are_refused(spacing: Any) -> None:
    with pytest.raises(ConfigError, match="at most 1000"):
        EDM.inference_steps(1001, spacing=spacing)


def test_an_edm_schedule_survives_json_without_betas() -> None:
    schedule = DiffusionSchedule(123, kind="edm", sigma_data=1 / 3)
    values = json.loads(json.dumps(schedule.to_dict()))
    assert values == {"kind": "edm", "timesteps": 123, "sigma_data": 1 / 3}
    assert DiffusionSchedule.from_dict(values) == schedule


def test_equality_is_that_of_what_the_kind_uses() -> None:
    same = DiffusionSchedule(1000, 1e-3, 0.5, kind="edm")
    assert same == EDM
    assert hash(same) == hash(EDM)
    assert DiffusionSchedule(sigma_data=3.0) == PUBLISHED
    assert PUBLISHED not in (EDM, DiffusionSchedule(999), "linear")
    assert DiffusionSchedule(kind="edm", sigma_data=0.4) != EDM


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, float("nan"), float("inf"), "0.5", True, None])
def test_deviations_that_are_none_are_refused(sigma_data: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        DiffusionSchedule(kind="edm", sigma_data=sigma_data)
    assert caught.value.name == "sigma_data"


@pytest.mark.parametrize(
    ("change", "name"),
    [({"kind": "cosine"}, "schedule kind"), ({"kind": "edm", "timesteps": 1}, "timesteps")],
)
def test_kinds_that_are_none_and_single_levels_are_refused(
    change: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        DiffusionSchedule(**change)
    assert caught.value.name == name


@pytest.mark.parametrize("change", [{"beta_end": 0.02}, {"sigma_data": "x"}, {"kind": ["edm"]}])
def test_edm_manifests_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DiffusionSchedule.from_dict(EDM.to_dict() | change)
