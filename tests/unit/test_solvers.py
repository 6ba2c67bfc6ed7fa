"""The solvers: exact on what has a closed form, of their order on what has not.

The data are a point, a Gaussian, or a mixture of two Gaussians on a line, for which the best
network is known. Along the probability-flow ODE a point keeps its quantile, which is the truth
that orders are measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.published_ddim import ddim_table, ddim_update
from support.tables import run_table
from treediffusion import noise
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.noise import Stream
from treediffusion.schedule import DiffusionSchedule
from treediffusion.solvers import SOLVERS, SolverTable, from_rows, solver_table

Floats = NDArray[np.float64]
Prediction = Literal["eps", "v"]

PUBLISHED = DiffusionSchedule()
STOCHASTIC = ("ddpm", "ddpm_small")
DETERMINISTIC = tuple(solver for solver in SOLVERS if solver not in STOCHASTIC)
STARTS = np.linspace(-1.4, 1.4, 9)

# Noise-to-signal levels as at least 5 % apart: finer is a question of rounding.
descending = st.lists(st.floats(0.05, 2.0), min_size=2, max_size=9).map(
    lambda gaps: np.exp(4.0 - np.cumsum(gaps))
)


@dataclass(frozen=True)
class Run:
    """Levels whose timestep is their row, and the network that is right about some data.

    Attributes:
        alpha: [S] factor of x0.
        sigma: [S] factor of eps.
        best: x, alpha, sigma to E[x0 | x].
        prediction: what the network gives.
        data: deviation that "v" assumes.
    """

    alpha: Floats
    sigma: Floats
    best: Callable[[Floats, float, float], Floats]
    prediction: Prediction = "eps"
    data: float = 1.0

    def network(self, x: Floats, t: int) -> Floats:
        alpha, sigma = float(self.alpha[t]), float(self.sigma[t])
        d = self.best(x, alpha, sigma)
        if self.prediction == "eps":
            return (x - alpha * d) / sigma
        return (d - self.data**2 * alpha * x) / (self.data * sigma)

    def table(self, solver: str, **options: Any) -> SolverTable:
        names: dict[str, Any] = {"prediction": self.prediction, "sigma_data": self.data}
        steps = np.arange(len(self.alpha))
        return solver_table(solver, steps, self.alpha, self.sigma, **(names | options))

    def images(self, solver: str, x: Floats, **options: Any) -> Floats:
        return run_table(self.table(solver, **options), x, self.network, draw(x))


def draw(x: Floats) -> Callable[[int], Floats]:
    return lambda k: noise.normal(5, [0], x.shape, stream=Stream.STEP, step=k)[0].astype(x.dtype)


def levels(noisiness: Floats, *, data: float = 1.0) -> tuple[Floats, Floats]:
    """alpha and sigma of images that have unit variance if the data's deviation is `data`."""
    alpha = 1.0 / np.sqrt(noisiness**2 + data**2)
    return alpha, noisiness * alpha


def point(x0: Floats) -> Callable[[Floats, float, float], Floats]:
    return lambda x, alpha, sigma: np.broadcast_to(x0, x.shape)


def gaussian(mean: float, std: float) -> Callable[[Floats, float, float], Floats]:
    def best(x: Floats, alpha: float, sigma: float) -> Floats:
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return best


class Mixture:
    """0.3 N(-0.6, 0.25^2) + 0.7 N(0.5, 0.25^2)."""

    weight, mean, std = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.25

    def __call__(self, x: Floats, alpha: float, sigma: float) -> Floats:
        variance = (alpha * self.std) ** 2 + sigma**2
        off = x[..., None] - alpha * self.mean
        score = np.log(self.weight) - off**2 / (2 * variance)
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        return np.asarray((share * (self.mean + alpha * self.std**2 / variance * off)).sum(axis=-1))

    def quantile(self, x: Floats, alpha: float, sigma: float) -> Floats:
        off = (x[..., None] - alpha * self.mean) / math.hypot(alpha * self.std, sigma)
        below = 0.5 + np.vectorize(math.erf)(off / math.sqrt(2)) / 2
        return np.asarray((self.weight * below).sum(axis=-1))

    def transported(
        self, x: Floats, start: tuple[float, float], end: tuple[float, float]
    ) -> Floats:
        """Where the ODE carries x: bisection for the point of equal quantile."""
        goal = self.quantile(x, *start)
        low, high = np.full_like(x, -9.0), np.full_like(x, 9.0)
        for _ in range(60):
            middle = (low + high) / 2
            short = self.quantile(middle, *end) < goal
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return (low + high) / 2


MIXTURE = Mixture()


def ode_error(solver: str, noisiness: Floats) -> float:
    """Largest distance from the truth at the last level, without the jump to x0."""
    alpha, sigma = levels(noisiness)
    run = Run(alpha[:-1], sigma[:-1], MIXTURE)
    end = float(alpha[-1]), float(sigma[-1])
    found = run.images(solver, STARTS, clip=False, end=end)
    truth = MIXTURE.transported(STARTS, (float(alpha[0]), float(sigma[0])), end)
    return float(np.abs(found - truth).max())


def log_uniform(count: int) -> Floats:
    """Equal steps in log-SNR, from where d hardly moves: the low orders of a start cost nothing."""
    return np.exp(np.linspace(6.0, -1.0, count + 1))


@given(noisiness=descending, data=st.sampled_from([1.0, 0.5]))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_sure_of_one_image_gives_it_in_any_number_of_steps(
    solver: str, prediction: Prediction, noisiness: Floats, data: float
) -> None:
    x0 = np.array([-0.9, 0.0, 0.4])
    for steps in (1, len(noisiness)):
        run = Run(*levels(noisiness[:steps], data=data), point(x0), prediction, data)
        images = run.images(solver, np.array([1.0, -2.0, 0.3]))
        np.testing.assert_allclose(images, x0, atol=1e-9)


@given(noisiness=descending, data=st.sampled_from([1.0, 0.5]))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_constant_estimates_are_carried_from_level_to_level_without_error(
    solver: str, prediction: Prediction, noisiness: Floats, data: float
) -> None:
    """alpha x0 + sigma eps at the first level is that at the last, for any list of levels."""
    x0, eps = np.array([-0.9, 0.0, 0.4]), np.array([1.0, -2.0, 0.3])
    alpha, sigma = levels(noisiness, data=data)
    run = Run(alpha[:-1], sigma[:-1], point(x0), prediction, data)
    start = alpha[0] * x0 + sigma[0] * eps
    found = run.images(solver, start, end=(alpha[-1], sigma[-1]))
    np.testing.assert_allclose(found, alpha[-1] * x0 + sigma[-1] * eps, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("ipndm", 2)],
)
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    """ipndm: 2 along levels that are equally spaced in log-SNR, since its weights suit others."""
    coarse, fine = (ode_error(solver, log_uniform(count)) for count in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_ipndm_has_order_four_along_equal_steps_of_noise_to_signal() -> None:
    coarse, fine = (ode_error("ipndm", np.linspace(20.0, 1.0, count + 1)) for count in (500, 1000))
    assert math.log2(coarse / fine) == pytest.approx(4, abs=0.2)


def test_the_corrector_raises_unipc_above_its_predictor() -> None:
    """Order 3 predicted, 4 corrected; between 64 and 512 steps the local slope is 3.9 to 4.5."""
    errors = [ode_error("unipc", log_uniform(count)) for count in (64, 512)]
    assert math.log2(errors[0] / errors[1]) / 3 > 3.8
    assert errors[1] < ode_error("dpmpp_3m", log_uniform(512)) / 10


def test_ten_evaluations_of_a_multistep_solver_beat_twenty_of_ddim() -> None:
    """To x0 itself, through the lower orders of the last steps."""
    error: dict[tuple[str, int], float] = {}
    for solver, steps in [("ddim", 20), ("dpmpp_2m", 10), ("unipc", 10), ("ipndm", 10)]:
        alpha, sigma = levels(np.geomspace(80.0, 0.01, steps))
        truth = MIXTURE.transported(STARTS, (float(alpha[0]), float(sigma[0])), (1.0, 0.0))
        images = Run(alpha, sigma, MIXTURE).images(solver, STARTS, clip=False)
        error[solver, steps] = float(np.abs(images - truth).mean())
    assert max(error[s, 10] for s in ("dpmpp_2m", "unipc", "ipndm")) < error["ddim", 20]


@pytest.mark.parametrize("data", [1.0, 0.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_of_eps_and_one_of_v_draw_the_same_images(solver: str, data: float) -> None:
    alpha, sigma = levels(np.geomspace(50.0, 0.02, 12), data=data)
    images = [
        Run(alpha, sigma, MIXTURE, prediction, data).images(solver, STARTS, clip=False)
        for prediction in ("eps", "v")
    ]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s not in ("ddim", "ipndm")])
def test_where_estimates_are_clipped_eps_and_v_still_agree(solver: str) -> None:
    """Not DDIM, where the noise of an eps network is used as it is; nor ipndm, which clips none."""
    options: dict[str, Any] = {"clip_range": (-0.2, 0.3)}
    alpha, sigma = levels(np.geomspace(50.0, 0.02, 12))
    images = [
        Run(alpha, sigma, MIXTURE, prediction).images(solver, STARTS, **options)
        for prediction in ("eps", "v")
    ]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-8, atol=1e-10)
    assert images[0].min() == -0.2
    assert images[0].max() == 0.3


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_do_not_depend_on_the_scale_of_the_levels(solver: str) -> None:
    """x_t and k_t x_t carry the same, for any k_t: of EDM's coordinates and DDPM's, e. g."""
    alpha, sigma = levels(np.geomspace(30.0, 0.05, 9))
    scale = np.random.default_rng(3).uniform(0.2, 5.0, 9)
    plain = Run(alpha, sigma, MIXTURE).images(solver, STARTS)
    scaled = Run(scale * alpha, scale * sigma, MIXTURE).images(solver, scale[0] * STARTS)
    np.testing.assert_allclose(plain, scaled, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_published_table(spacing: Any, eta: float) -> None:
    """To the last bit in float32, in which images are drawn; sqrt(1 / r) is not 1 / sqrt(r)."""
    steps = PUBLISHED.inference_steps(50, spacing=spacing)
    published = ddim_table(PUBLISHED, steps, eta=eta, clip_range=(-0.5, 1.0))
    alpha, sigma = PUBLISHED.alpha[steps], PUBLISHED.sigma[steps]
    table = solver_table("ddim", steps, alpha, sigma, eta=eta, clip_range=(-0.5, 1.0))
    assert np.array_equal(table.timestep, published.timestep)
    assert (table.clip, table.clip_range) == (published.clip, published.clip_range)
    assert np.array_equal(table.network.astype(np.float32), published.coef.astype(np.float32))
    np.testing.assert_allclose(table.network, published.coef, rtol=1e-11)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_following_the_published_rows_is_ddim_to_the_bit(kind: Any, eta: float) -> None:
    published = ddim_table(PUBLISHED, PUBLISHED.inference_steps(20, spacing="quadratic"), eta=eta)
    x_start, *outputs = noise.normal(2, range(21), (3, 4), stream=Stream.START).astype(kind)
    eps = dict(zip(published.timestep.tolist(), outputs, strict=True))
    table = from_rows(published.timestep, published.coef)
    found = run_table(table, x_start, lambda x, t: eps[t] + x / 2, draw(x_start))
    x = x_start
    for k, (t, row) in enumerate(zip(published.timestep.tolist(), published.coef, strict=True)):
        x = ddim_update(x, eps[t] + x / 2, row, clip_range=(-1, 1), noise=draw(x)(k))
    assert found.dtype == kind
    assert found.tobytes() == x.tobytes()


@given(noisiness=descending, scale=st.floats(0.3, 3.0))
@settings(max_examples=50, deadline=None)
def test_an_ancestral_step_is_the_gaussian_posterior(noisiness: Floats, scale: float) -> None:
    """q(x' | x, x0) by conditioning one Gaussian of a pair on the other, in any coordinates."""
    (alpha, alpha_next), (sigma, sigma_next) = levels(noisiness[:2], data=scale)
    covariance = alpha / alpha_next * sigma_next**2
    x, x0 = np.array([0.7, -1.2]), np.array([0.3, 0.9])
    mean = alpha_next * x0 + covariance / sigma**2 * (x - alpha * x0)
    variance = sigma_next**2 - covariance**2 / sigma**2
    run = Run(np.array([alpha]), np.array([sigma]), point(x0))
    for solver in STOCHASTIC:
        table = run.table(solver, end=(alpha_next, sigma_next))
        silent = replace(table, noise=np.zeros(1))
        np.testing.assert_allclose(run_table(silent, x, run.network), mean, rtol=1e-9, atol=1e-12)
    assert float(table.noise[0]) ** 2 == pytest.approx(variance, rel=1e-9)


def test_ddpm_adds_the_spaced_beta_and_ddpm_small_the_posterior_variance() -> None:
    steps = PUBLISHED.inference_steps(50, spacing="uniform")
    here = PUBLISHED.alpha_bar[steps]
    after = np.append(here[1:], 1.0)
    beta = 1.0 - here / after
    alpha, sigma = PUBLISHED.alpha[steps], PUBLISHED.sigma[steps]
    large = solver_table("ddpm", steps, alpha, sigma)
    small = solver_table("ddpm_small", steps, alpha, sigma)
    np.testing.assert_allclose(large.noise[:-1] ** 2, beta[:-1], rtol=1e-9)
    np.testing.assert_allclose(small.noise**2, beta * (1 - after) / (1 - here), rtol=1e-9)
    assert large.noise[-1] == small.noise[-1] == 0


def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance() -> None:
    alpha, sigma = levels(np.geomspace(50.0, 0.02, 12))
    run = Run(alpha, sigma, MIXTURE, "v")
    ddim, ddpm = run.table("ddim", eta=1.0), run.table("ddpm_small")
    np.testing.assert_allclose(ddim.mix, ddpm.mix, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ddim.noise, ddpm.noise, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gaussian_comes_out_with_its_mean_and_deviation(solver: str) -> None:
    """20,000 samples; 2 % is what 200 steps of the first-order ones leave."""
    alpha, sigma = levels(np.geomspace(100.0, 0.01, 200))
    x = noise.normal(0, [0], (20_000,), stream=Stream.START)[0].astype(np.float64)
    images = Run(alpha, sigma, gaussian(0.3, 0.5)).images(solver, x, clip=False)
    assert images.mean() == pytest.approx(0.3, abs=0.015)
    assert images.std() == pytest.approx(0.5, rel=0.04)


@given(noisiness=descending)
@settings(max_examples=30, deadline=None)
def test_dpm_solver_takes_the_published_second_order_step(noisiness: Floats) -> None:
    """Lu et al. 2022, algorithm 2, whose lambda is log(alpha / sigma)."""
    if len(noisiness) < 3:
        return
    alpha, sigma = levels(noisiness)
    before, here, after = np.log(alpha / sigma)[:3]
    h, r = after - here, (here - before) / (after - here)
    table = Run(alpha[:2], sigma[:2], MIXTURE).table("dpmpp_2m", end=(alpha[2], sigma[2]))
    gain = -alpha[2] * np.expm1(-h)
    expected = [gain * (1 + 1 / (2 * r)), sigma[2] / sigma[1], 0, -gain / (2 * r), 0, 0]
    np.testing.assert_allclose(table.mix[1, 0], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_use_no_history_that_is_not_there(solver: str, steps: int) -> None:
    table = Run(*levels(np.geomspace(9.0, 0.1, steps)), MIXTURE).table(solver)
    evaluations = 2 * steps - 1 if solver == "heun" else steps
    assert table.timestep.dtype == np.int64
    assert table.timestep.shape == (evaluations,)
    assert table.network.shape == (evaluations, 5)
    assert table.mix.shape == (evaluations, 2, 6)
    for k in range(min(evaluations, 3)):
        assert not table.mix[k, :, 3 + k :].any()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_image_is_the_last_estimate_of_x0(solver: str, steps: int) -> None:
    run = Run(*levels(np.geomspace(9.0, 0.1, steps)), MIXTURE)
    seen: list[Floats] = []

    def network(x: Floats, t: int) -> Floats:
        seen.append(x)
        return run.network(x, t)

    images = run_table(run.table(solver, clip=False), STARTS, network, draw(STARTS))
    estimate = MIXTURE(seen[-1], float(run.alpha[-1]), float(run.sigma[-1]))
    np.testing.assert_allclose(images, estimate, rtol=1e-12)


def test_heun_looks_at_every_level_but_the_first_twice() -> None:
    alpha, sigma = levels(np.array([9.0, 3.0, 1.0]))
    table = solver_table("heun", [800, 300, 0], alpha, sigma)
    assert table.timestep.tolist() == [800, 300, 300, 0, 0]
    np.testing.assert_array_equal(table.network[1], table.network[2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_stay_in_range_where_a_solver_clips(solver: str) -> None:
    alpha, sigma = levels(np.geomspace(50.0, 0.02, 6))
    table = Run(alpha, sigma, point(np.array([7.0]))).table(solver, clip_range=(-0.5, 0.5))
    assert table.clip == (solver != "ipndm")
    assert table.clip_range == (-0.5, 0.5)
    run = Run(alpha, sigma, point(np.array([7.0])))
    image = run.images(solver, np.array([1.0]), clip_range=(-0.5, 0.5))
    assert image == pytest.approx(0.5 if table.clip else 7.0)
    assert not run.table(solver, clip=False).clip


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_loop_keeps_the_type_and_draws_only_what_it_needs(solver: str) -> None:
    alpha, sigma = levels(np.geomspace(50.0, 0.02, 6))
    run = Run(alpha, sigma, MIXTURE)
    asked: list[int] = []
    seen: list[int] = []

    def network(x: Floats, t: int) -> Floats:
        seen.append(t)
        assert x.dtype == np.float32
        return run.network(x, t)

    def drawn(k: int) -> Floats:
        asked.append(k)
        return np.zeros_like(STARTS)

    images = run_table(run.table(solver), STARTS.astype(np.float32), network, drawn)
    assert images.dtype == np.float32
    assert seen == run.table(solver).timestep.tolist()
    assert asked == ([0, 1, 2, 3, 4] if solver in STOCHASTIC else [])


LEVELS: dict[str, Any] = dict(
    zip(("alpha", "sigma"), levels(np.array([9.0, 3.0, 1.0])), strict=True)
)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"solver": "euler"}, "solver"),
        ({"eta": 0.5, "solver": "heun"}, "eta"),
        ({"eta": 0.5, "solver": "ddpm"}, "eta"),
        ({"eta": 1.5}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"prediction": "x0"}, "prediction"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"sigma_data": float("inf")}, "sigma_data"),
        ({"sigma_data": 0.5, "prediction": "v"}, "alpha, sigma"),
        ({"clip_range": (1.0, -1.0)}, "clip_range"),
        ({"clip_range": (0.0, float("nan"))}, "clip_range"),
        ({"timestep": []}, "timestep"),
        ({"timestep": 3}, "timestep"),
        ({"timestep": [2.0, 1.0, 0.0]}, "timestep"),
        ({"timestep": [1, 0]}, "alpha"),
        ({"alpha": [0.5, 0.6]}, "alpha"),
        ({"alpha": [0.0, 0.5, 0.6]}, "alpha"),
        ({"sigma": [[0.9, 0.8, 0.7]]}, "sigma"),
        ({"sigma": [0.9, 0.8, 0.0]}, "sigma"),
        ({"sigma": [0.9, float("nan"), 0.1]}, "sigma"),
        ({name: LEVELS[name][::-1] for name in LEVELS}, "alpha, sigma"),
        ({name: LEVELS[name][[0, 1, 1]] for name in LEVELS}, "alpha, sigma"),
        ({"end": (1.0, 5.0)}, "alpha, sigma"),
        ({"end": (0.0, 0.0)}, "end"),
        ({"end": (1.0, -0.1)}, "end"),
    ],
)
def test_tables_that_no_solver_can_follow_are_refused(change: dict[str, Any], name: str) -> None:
    given: dict[str, Any] = {"solver": "ddim", "timestep": [2, 1, 0]} | LEVELS
    with pytest.raises(ConfigError) as caught:
        solver_table(**(given | change))
    assert caught.value.name == name


def test_what_does_not_fit_is_refused() -> None:
    table = solver_table("ddpm", [2, 1, 0], **LEVELS)
    with pytest.raises(ConfigError, match="noise"):
        run_table(table, np.zeros((2, 3)), lambda x, t: x)
    with pytest.raises(ShapeError, match="rows"):
        from_rows([1, 0], np.zeros((1, 5)))


def publish_third_order(table: SolverTable, alpha: Floats, sigma: Floats) -> SolverTable:
    """dpmpp_3m as its published code has it: the second difference at half its weight."""
    mix, log_snr = table.mix.copy(), np.log(alpha / sigma)
    for i in np.flatnonzero(mix[:, 0, 4]):
        h = log_snr[i + 1] - log_snr[i]
        u = (log_snr[[i, i - 1, i - 2]] - log_snr[i]) / h
        second = [1 / np.prod(np.delete(u[j] - u, j)) for j in range(3)]
        phi = (h + np.expm1(-h)) / h**2
        mix[i, 0, [0, 3, 4]] -= alpha[i + 1] * (0.5 - phi) * np.array(second)
    return replace(table, mix=mix)


@pytest.mark.parametrize(
    ("solver", "name", "options"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp_3m", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("unipc", "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
    ],
)
def test_diffusers_draws_the_same_images(solver: str, name: str, options: dict[str, Any]) -> None:
    """Its arithmetic is float32, and its sigmas are, too."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler = getattr(diffusers, name)(**betas, **options)
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.numpy().astype(np.int64)
    alpha, sigma = PUBLISHED.alpha[steps], PUBLISHED.sigma[steps]
    run = Run(alpha, sigma, MIXTURE)
    table = run.table(solver, clip=False)
    if solver == "dpmpp_3m":
        table = publish_third_order(table, alpha, sigma)
    start = STARTS[:, None]
    found = run_table(table, start, run.network)
    x = torch.from_numpy(start)
    for row, t in enumerate(scheduler.timesteps):
        output = torch.from_numpy(run.network(x.double().numpy(), row))
        x = scheduler.step(output, t, x).prev_sample
    np.testing.assert_allclose(found, x.double().numpy(), atol=1e-5)
