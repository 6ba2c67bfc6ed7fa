"""A step whose network computes in half precision, float32 in and out.

    x, emb -> half -> network -> float32 -> update

The module itself is cast, group norms too, and nothing else: their statistics are float32 inside
the operator as it is, and a cast around them would keep compilers from fusing them with what
follows. The time table, the coefficients and the image between two steps stay float32.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..bundle import Precision
from ..diffusion.denoiser import Denoiser
from .graphs import Graph, Step

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Cast(nn.Module):
    """A denoiser whose weights and arithmetic are of a type, and whose arguments are not."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        """Takes over the denoiser's network, which it casts."""
        super().__init__()
        self.denoiser, self.dtype = denoiser.to(dtype), dtype

    def predict(
        self, x: Tensor, time: Tensor, y: Tensor, reconstruction: Tensor | None = None
    ) -> Tensor:
        """As `Denoiser.predict`; float32 in and out."""
        seen = None if reconstruction is None else reconstruction.to(self.dtype)
        emb = (time + y).to(self.dtype)
        return self.denoiser.predict(x.to(self.dtype), emb, reconstruction=seen).float()


def at_precision(graph: Graph, precision: Precision) -> Graph:
    """The graph of a step at a precision; the graph itself at fp32."""
    if precision == "fp32":
        return graph
    return replace(graph, module=_cast(graph.module, DTYPES[precision]))


def rounded(graph: Graph, precision: Precision) -> Graph:
    """The step whose weights are rounded to a precision, and whose arithmetic is float32."""
    half = _cast(graph.module, DTYPES[precision])
    network: nn.Module = half.denoiser
    assert isinstance(network, Cast)
    half.denoiser = Cast(network.denoiser, torch.float32)  # type: ignore[assignment]
    return replace(graph, module=half)


def _cast(step: nn.Module, dtype: torch.dtype) -> Step:
    assert isinstance(step, Step)
    step = copy.deepcopy(step)
    step.denoiser = Cast(step.denoiser, dtype)  # type: ignore[assignment]
    return step
