"""Rooflines of `gn_silu`: every norm of our U-Nets, in both layouts, and with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from cases.kernels import ERRORS, Case, Roofline
from interleave import Side
from torch import Tensor
from treediffusion.kernels.gn_silu import Mode, gn_silu, reference
from treediffusion.kernels.gn_silu.tiles import ATTENDING, CONDITIONED, SITES

PIECES = {"none": 0, "add": 1, "scale_shift": 2}
Inputs = Sequence[Tensor | None]


@dataclass(frozen=True)
class Setting:
    """A norm: of a site, a batch and a layout.

    Attributes:
        channels: C.
        side: H and W.
        mode: what the condition does.
        silu: whether SiLU follows.
        batch: B.
        last: whether channels lie side by side.
        trains: gradients, too.
        dtype: of all tensors.
        groups: of channels.
    """

    channels: int
    side: int
    mode: Mode = "none"
    silu: bool = True
    batch: int = 256
    last: bool = True
    trains: bool = False
    dtype: torch.dtype = torch.bfloat16
    groups: int = 32

    @property
    def shape(self) -> str:
        """B x C x H x W, and the rest in words."""
        sizes = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        words = [sizes, self.mode, "silu" if self.silu else "plain"]
        words += ["nhwc" if self.last else "nchw", *(["with gradients"] if self.trains else [])]
        return " ".join(words)


def norm_bytes(setting: Setting) -> int:
    """Passes over the map M = B C H W, and whatever else is a tensor.

    Forward 2 M: x read, y written; backward 3 M: x and dy read, dx written. Weight, bias and piece
    (0, 1 or 2 numbers for each channel and sample) are read each time; their gradients are written
    once. Statistics, two float32 for each group and sample, are written, and read again. Each
    sample's part of the gradients of weight and bias, two float32 for each channel, is written, and
    read to be summed.
    """
    size, channels = setting.dtype.itemsize, setting.batch * setting.channels
    maps = channels * setting.side**2 * size
    weights = (2 * setting.channels + PIECES[setting.mode] * channels) * size
    stats, sums = 2 * setting.batch * setting.groups * 4, 2 * channels * 4
    forward = 2 * maps + weights + stats
    backward = 3 * maps + 2 * weights + stats + 2 * sums
    return forward + backward if setting.trains else forward


def norm_flops(setting: Setting) -> int:
    """Of each element of the map.

    Forward: sum 1; centre, square, sum 3; centre and scale 2; gain and shift 2; z / (1 + exp(-z))
    4; adding a piece 1. Backward: normed map 2; sums of dz and of dz times it 3; dx 5; with SiLU
    also z 2, its sigmoid 4, dy times the derivative 5; with an added piece that sum and that of
    dx 2.
    """
    added = setting.mode == "add"
    each = 8 + 4 * setting.silu + added
    if setting.trains:
        each += 10 + 11 * setting.silu + 2 * added
    return setting.batch * setting.channels * setting.side**2 * each


def norm(setting: Setting, device: torch.device) -> Roofline:
    """Ours against the reference.

    "library" is the same with channels first, where PyTorch's own group norm is at home: what a net
    in that layout would pay, and one with channels last besides two copies.
    """
    torch.manual_seed(0)
    made = partial(torch.randn, device=device, dtype=setting.dtype)
    plain = made(setting.batch, setting.channels, setting.side, setting.side)
    layout = torch.channels_last if setting.last else torch.contiguous_format
    weight, bias = 1.0 + 0.1 * made(setting.channels), 0.1 * made(setting.channels)
    width = PIECES[setting.mode] * setting.channels
    # A slice of the projection of all blocks, as the U-Net has it.
    piece = 0.1 * made(setting.batch, width + 128)[:, 64:-64] if width else None
    inputs = (plain.contiguous(memory_format=layout), weight, bias, piece)
    dy = torch.randn_like(inputs[0])
    doubles = [None if tensor is None else tensor.double() for tensor in inputs]
    fused = torch.compile(reference.gn_silu, dynamic=False)
    forms = {
        "ours": _side(setting, gn_silu, inputs, dy),
        "eager": _side(setting, reference.gn_silu, inputs, dy),
        "inductor": _side(setting, fused, inputs, dy),
    }
    if setting.last:
        forms["library"] = _side(
            setting, reference.gn_silu, (plain, *inputs[1:]), dy.contiguous()
        )  # fmt: skip
    return Roofline(
        op="gn_silu",
        shape=setting.shape,
        dtype=setting.dtype,
        bytes=norm_bytes(setting),
        flops=norm_flops(setting),
        limit="copy",
        forms=forms,
        truth=_side(setting, reference.gn_silu, doubles, dy.double()),
        error=ERRORS[setting.dtype],
    )


def _side(setting: Setting, function: Callable[..., Tensor], inputs: Inputs, dy: Tensor) -> Side:
    """A function on the inputs, with all their gradients if the setting trains."""
    named = {"groups": setting.groups, "mode": setting.mode, "silu": setting.silu}
    if not setting.trains:
        x, weight, bias, piece = inputs
        return lambda: function(x, weight, bias, piece=piece, **named)
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
    given = [leaf for leaf in leaves if leaf is not None]

    def both() -> list[Tensor]:
        x, weight, bias, piece = leaves
        y = function(x, weight, bias, piece=piece, **named)
        return [y.detach(), *torch.autograd.grad(y, given, dy)]

    return both


def _settings() -> list[Setting]:
    """Batches and single images with channels last; then gradients, and the other layout."""
    sites = [
        *(Setting(*site, mode="scale_shift") for site in CONDITIONED),
        *(Setting(*site) for site in SITES),
        *(Setting(*site, silu=False) for site in ATTENDING),
    ]
    conditioned = sites[: len(CONDITIONED)]
    return [
        *sites,
        *(replace(site, batch=1) for site in sites),
        *(replace(site, trains=True) for site in conditioned),
        *(replace(site, last=False) for site in conditioned),
        replace(sites[0], mode="add"),
        replace(sites[0], mode="add", trains=True),
    ]


def _small(setting: Setting) -> Setting:
    return replace(setting, channels=24, side=3, batch=2, groups=8, dtype=torch.float32)


def norm_cases() -> list[Case]:
    """Every norm of our U-Nets, those of the widest use first."""
    return [
        Case("gn_silu", setting.shape, partial(norm, setting), partial(norm, _small(setting)))
        for setting in _settings()
    ]
