"""PyTorch's noise is the runtime's, bit for bit, by NumPy and by the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tables import table_of
from torch import Tensor
from treediffusion.diffusion.draws import Draws, latent_noise
from treediffusion.diffusion.sampler import sample
from treediffusion.errors import ConfigError
from treediffusion.kernels import choice
from treediffusion.noise import Stream, normal
from treediffusion.schedule import DiffusionSchedule

SHAPE, IMAGES, SEED = (2, 3, 5), [4, 0, 2**64 - 1], 2**63 + 7
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["reference", "triton"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "triton":
        pytest.importorskip("triton")
        choice._unable.cache_clear()  # a test may have asked while the environment was another
    with choice.use_kernels(request.param):
        yield


def same_bits(ours: Tensor, theirs: np.ndarray) -> bool:
    found = ours.cpu().numpy()
    return found.dtype == theirs.dtype and found.tobytes() == np.ascontiguousarray(theirs).tobytes()


def test_starts_and_steps_are_the_runtimes() -> None:
    draws = Draws(SEED, IMAGES, SHAPE, device=DEVICE)
    assert same_bits(draws.start(), normal(SEED, IMAGES, SHAPE, stream=Stream.START))
    for number in (0, 7, 3):
        expected = normal(SEED, IMAGES, SHAPE, stream=Stream.STEP, step=number)
        assert same_bits(draws.step(number), expected)


@pytest.mark.parametrize("draw", [0, 5])
@pytest.mark.parametrize("images", [IMAGES, []])
def test_latents_are_the_runtimes(draw: int, images: list[int]) -> None:
    """The root has a stream of its own; in that of the nodes each row is a step."""
    places = [(Stream.ROOT, 0), *((Stream.NODE, row) for row in range(1, 4))]
    expected = np.stack(
        [normal(SEED, images, SHAPE, stream=s, step=row, draw=draw) for s, row in places], axis=1
    )
    found = latent_noise(SEED, images, 4, SHAPE, draw=draw, device=DEVICE)
    assert same_bits(found, expected)


def test_a_sampled_image_is_the_same_alone_and_in_any_batch() -> None:
    """Along a table that adds noise in every step but the last."""
    schedule = DiffusionSchedule(timesteps=20)
    table = table_of(schedule, [15, 9, 2], eta=1.0)
    time = SimpleNamespace(table=lambda steps: torch.zeros(len(steps), 1, device=DEVICE))
    net: Any = SimpleNamespace(training=False, time=time, predict=lambda x, *_: 0.5 * x)

    def images(numbers: list[int]) -> Tensor:
        draws = Draws(SEED, numbers, SHAPE, device=DEVICE)
        y = torch.zeros(len(numbers), 1, device=DEVICE)
        return sample(net, y, draws.start(), table, noise=draws.step)

    together = images([3, 8, 1])
    assert torch.equal(images([8])[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_seeds_that_do_not_match_the_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        Draws([1, 2], [0], SHAPE, device=DEVICE)
    with pytest.raises(ConfigError, match="images"):
        latent_noise(0, [-1], 3, SHAPE, device=DEVICE)
