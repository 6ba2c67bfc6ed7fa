"""A call's sampling options as what is executed: a solver's table, and the network's share in it.

Guidance asks the network about several cut paths at every step and weighs its answers; without
guidance it is asked once, about the whole path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ..bundle import CLIP_RANGE, Bundle, Sampling
from ..errors import ConfigError
from ..schedule import Spacing
from ..signals import guidance_weights, leaf_slots
from ..solvers import SolverTable, table_along


class SamplingOptions(TypedDict, total=False):
    """How a call draws its images; what is left out, or None, is the bundle's own.

    Attributes:
        num_inference_steps: denoising steps; `heun` evaluates the network twice in each.
        solver: one of `treediffusion.solvers.SOLVERS`.
        spacing: where the steps lie.
        eta: of the solver ddim: 0 is deterministic, 1 as much noise as DDPM.
        guidance_scale: how much further than its condition an image goes, 1 being no guidance; one
            number, or one for each depth of the path.
    """

    num_inference_steps: int | None
    solver: str | None
    spacing: Spacing | None
    eta: float | None
    guidance_scale: float | Sequence[float] | None


@dataclass(frozen=True, eq=False)
class Plan:
    """How images are drawn.

    Attributes:
        table: the solver's coefficients.
        slots: after how many slots the path is cut, for each of the network's answers.
        weights: how much each of these counts; they sum to 1.
    """

    table: SolverTable
    slots: tuple[int, ...]
    weights: tuple[float, ...]


def make_plan(bundle: Bundle, sampling: Sampling) -> Plan:
    """Checks and resolves the options.

    Raises:
        ConfigError: an option out of its range, or guidance that the model was not trained for.
    """
    if isinstance(sampling.eta, bool) or not isinstance(sampling.eta, int | float):
        raise ConfigError("eta", got=repr(sampling.eta), expected="0 (DDIM) to 1 (DDPM)")
    table = table_along(
        bundle.schedule,
        sampling.solver,
        num_inference_steps=sampling.num_inference_steps,
        spacing=sampling.spacing,
        eta=sampling.eta,
        prediction=bundle.told.prediction,
        clip_range=CLIP_RANGE,
    )
    slots = leaf_slots(bundle.topology, bundle.told.signal).ids.shape[1]
    weights = guidance_weights(sampling.guidance_scale, slots)
    used = np.flatnonzero(weights)
    _check_guidance(bundle, sampling, used.tolist(), slots)
    return Plan(table, tuple(used.tolist()), tuple(weights[used].tolist()))


def _check_guidance(bundle: Bundle, sampling: Sampling, used: list[int], slots: int) -> None:
    """Only paths that the network has met in training are asked about."""
    trained = bundle.told.guidance
    if used == [slots] or trained == "levels":
        return
    if trained == "whole" and set(used) <= {0, slots}:
        return
    setting = "level_dropout" if trained == "whole" else "path_dropout"
    raise ConfigError(
        "guidance_scale",
        got=repr(sampling.guidance_scale),
        expected="one number" if trained == "whole" else "1",
        hint=f"this model was trained without diffusion.{setting}, which such guidance needs",
    )
