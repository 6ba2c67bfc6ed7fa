"""What the phases of a plan cost, in one unit, for the progress bar's remaining time.

The unit is an image passed through a two-leaf tree. The figures are rough and only their ratios
matter: a plan is known in advance except for the sizes of the leaves that growth will split.
"""

from __future__ import annotations

from ..config import DiffusionConfig, TreeConfig


def phase_cost(kind: str, epochs: int, images: int, leaves: int) -> float:
    """Cost of a phase on a tree of so many leaves; a subtree has always two."""
    share = 0.5 if kind == "subtree" else (2 + leaves) / 4
    return epochs * images * share


def tree_cost(config: TreeConfig, images: int) -> float:
    """Cost of the whole plan, if every split finds the mean share of images."""
    phases = config.phases
    total = phase_cost("initial", phases.initial, images, 2)
    for leaves in range(2, config.max_leaves):
        total += phase_cost("subtree", phases.subtree, round(1.4 * images / leaves), leaves)
        if (leaves - 1) % phases.intermediate_every == 0 and leaves + 1 < config.max_leaves:
            total += phase_cost("intermediate", phases.intermediate, images, leaves + 1)
    return total + phase_cost("final", phases.final, images, config.max_leaves)


def diffusion_cost(config: DiffusionConfig, side: int) -> float:
    """Cost of the diffusion stage, on images of so many pixels' side."""
    return config.steps * step_cost(config, side)


def step_cost(config: DiffusionConfig, side: int) -> float:
    """Cost of one optimiser step of the denoiser."""
    return config.batch_size * side * (config.unet.channels / 32) ** 2
