"""Any solver in PyTorch: from noise to images along a table of evaluations.

The arithmetic is that of `solvers`, whose loop this follows with tensors. Time embeddings are
computed before the loop and conditions by the caller, so that an evaluation is one projection and
the convolutions. The state keeps the dtype it starts in, float32 as a rule, also when the network
is narrower. Where noise comes from is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ShapeError
from ..kernels.ddim_update import ddim_update
from ..solvers import SolverTable, follow
from .denoiser import Denoiser


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    y: Tensor,
    x_start: Tensor,
    table: SolverTable,
    *,
    reconstruction: Tensor | None = None,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Images for given conditions.

    Args:
        denoiser: the network, in evaluation mode; on the device of all tensors.
        y: [B, E] float, conditions, in the dtype of the network.
        x_start: [B, C, H, W] float, standard normal; left as it is.
        table: the evaluations and their coefficients.
        reconstruction: [B, C, H, W] float, TreeVAE's images in the network's pixel range, for a
            model that sees them.
        noise: number of the evaluation, from 0, to [B, C, H, W] standard normal in x_start's
            dtype; asked only for those that add some.

    Returns:
        [B, C, H, W] in the dtype of x_start, inside the table's range if it clips.

    Raises:
        ConfigError: no noise for a table that adds some.
        ShapeError: not one condition for each image.
    """
    assert not denoiser.training, "dropout would act"
    if len(y) != len(x_start):
        raise ShapeError("y", got=tuple(y.shape), expected=f"[{len(x_start)}, E], one per image")
    times = denoiser.time.table(table.timestep)
    rows = torch.from_numpy(table.network).to(x_start)
    limits = table.clip_range if table.clip else None

    def evaluate(x: Tensor, step: int, drawn: Tensor | None) -> Tensor:
        found = denoiser.predict(x.to(y.dtype), times[step], y, reconstruction)
        return ddim_update(x, found, rows[step], clip_range=limits, noise=drawn)

    images: Tensor = follow(table, x_start, evaluate, noise)
    return images
