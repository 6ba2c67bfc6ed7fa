"""Rooflines of the small operations: what conditions the U-Net, the sampler's update, the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from cases.kernels import ERRORS, Case, Roofline, compiled, to_double
from cases.kernels_level import COLOUR
from torch import Tensor
from treediffusion.kernels.cond_silu import cond_silu
from treediffusion.kernels.cond_silu import reference as cond_reference
from treediffusion.kernels.ddim_update import ddim_update
from treediffusion.kernels.ddim_update import reference as ddim_reference
from treediffusion.kernels.path_silu_sum import path_silu_sum
from treediffusion.kernels.path_silu_sum import reference as path_reference
from treediffusion.kernels.philox_normal import normal_of, philox_state
from treediffusion.kernels.philox_normal import reference as philox_reference
from treediffusion.noise import Stream

SILU = 4
"""FLOPs of x / (1 + exp(-x))."""
NORMAL = 25
"""FLOPs of a normal, half of a pair's 50: radius 30, of which 14 are a polynomial; angle and its
square 2; sine 7, cosine 9; the products 2. Integer operations are not counted."""


@dataclass(frozen=True)
class Setting:
    """A batch for a network.

    Attributes:
        embedding: E.
        image: C x H x W.
        batch: B.
        dtype: of conditions and of the network's output.
    """

    embedding: int
    image: tuple[int, int, int]
    batch: int = 256
    dtype: torch.dtype = torch.bfloat16

    @property
    def pixels(self) -> int:
        """Numbers of an image."""
        channels, height, width = self.image
        return channels * height * width


MNIST, CIFAR = Setting(256, (1, 28, 28)), Setting(512, (3, 32, 32))
SMALL = Setting(16, (3, 4, 4), batch=2, dtype=torch.float32)


def condition(setting: Setting, device: torch.device) -> Roofline:
    """One embedded timestep and B conditions.

    Bytes: E and B E read, B E written. FLOPs of an element: the sum and SiLU.
    """
    torch.manual_seed(0)
    batch, width = setting.batch, setting.embedding
    time = torch.randn(width, device=device).to(setting.dtype)
    cond = torch.randn(batch, width, device=device).to(setting.dtype)
    return Roofline(
        op="cond_silu",
        shape=f"{batch}x{width}",
        dtype=setting.dtype,
        bytes=(1 + 2 * batch) * width * setting.dtype.itemsize,
        flops=batch * width * (1 + SILU),
        limit="copy",
        forms={
            "ours": lambda: cond_silu(time, cond),
            "eager": lambda: cond_reference.cond_silu(time, cond),
            "inductor": compiled(cond_reference.cond_silu, time, cond),
        },
        truth=lambda: cond_reference.cond_silu(time.double(), cond.double()),
        error=ERRORS[setting.dtype],
    )


def path_sum(setting: Setting, device: torch.device) -> Roofline:
    """Paths to the leaves of 10 in turn, slots that a path does not use left out.

    Bytes: E for each slot in use, an int64 for each slot, B E written. FLOPs of an element in use:
    SiLU and the sum.
    """
    torch.manual_seed(0)
    batch, width = setting.batch, setting.embedding
    tree = COLOUR.topology
    paths = torch.from_numpy(tree.paths).to(torch.int64)
    nodes = paths[torch.arange(batch) % len(paths)]
    used = int((nodes >= 0).sum())
    nodes = nodes.to(device)
    h = torch.randn(*nodes.shape, width, device=device).to(setting.dtype)
    size = setting.dtype.itemsize
    return Roofline(
        op="path_silu_sum",
        shape=f"{batch}x{nodes.shape[1]}x{width}",
        dtype=setting.dtype,
        bytes=(used + batch) * width * size + 8 * nodes.numel(),
        flops=used * width * (SILU + 1),
        limit="copy",
        forms={
            "ours": lambda: path_silu_sum(h, nodes),
            "eager": lambda: path_reference.path_silu_sum(h, nodes),
            "inductor": compiled(path_reference.path_silu_sum, h, nodes),
        },
        truth=lambda: path_reference.path_silu_sum(h.double(), nodes),
        error=ERRORS[setting.dtype],
    )


def update(setting: Setting, device: torch.device) -> Roofline:
    """A step with limits and noise, its number on the device.

    Bytes of an element: state and noise in float32 and the network's output read, the state
    written; besides, a row of five float32 and an int64. FLOPs of an element: a x - b F 3, limits
    2, c x0 + e F 3, + tau noise 2.
    """
    torch.manual_seed(0)
    shape = (setting.batch, *setting.image)
    x, noise = torch.randn(2, *shape, device=device).unbind()
    output = torch.randn(shape, device=device).to(setting.dtype)
    rows = torch.rand(50, 5, device=device)
    step = torch.tensor(7, device=device)
    given = {"step": step, "clip_range": (-1.0, 1.0), "noise": noise}

    def plain(x: Tensor, output: Tensor, rows: Tensor, noise: Tensor) -> Tensor:
        return ddim_reference.ddim_update(x, output, rows, **{**given, "noise": noise})

    true = to_double((x, output, rows, noise))
    elements = setting.batch * setting.pixels
    return Roofline(
        op="ddim_update",
        shape="x".join(map(str, shape)),
        dtype=setting.dtype,
        bytes=elements * (12 + setting.dtype.itemsize) + 28,
        flops=10 * elements,
        limit="copy",
        forms={
            "ours": lambda: ddim_update(x, output, rows, **given),
            "eager": lambda: plain(x, output, rows, noise),
            "inductor": compiled(plain, x, output, rows, noise),
        },
        truth=lambda: plain(*true),
        error=ERRORS[torch.float32],
    )


def normals(setting: Setting, device: torch.device) -> Roofline:
    """Noise of a batch, exact to the bit; the library's generator gives other numbers.

    Bytes: a float32 written for each number, five int64 read for each image. FLOPs: `NORMAL`.
    """
    images = range(setting.batch)
    state = philox_state(7, images, stream=Stream.START, device=device)
    shape = (setting.batch, *setting.image)
    elements = setting.batch * setting.pixels
    return Roofline(
        op="philox_normal",
        shape="x".join(map(str, shape)),
        dtype=torch.float32,
        bytes=4 * elements + 40 * setting.batch,
        flops=NORMAL * elements,
        limit="copy",
        forms={
            "ours": lambda: normal_of(state, setting.image),
            "library": lambda: torch.randn(shape, device=device),
        },
        truth=lambda: philox_reference.normals(state, setting.pixels).view(shape),
        error=0.0,
    )


BUILDERS: dict[str, Callable[[Setting, torch.device], Roofline]] = {
    "cond_silu": condition,
    "path_silu_sum": path_sum,
    "ddim_update": update,
    "philox_normal": normals,
}


def row_cases() -> list[Case]:
    """Every operation for both networks; a batch, and one image."""
    settings = [CIFAR, MNIST, replace(CIFAR, batch=1), replace(MNIST, batch=1)]
    return [
        Case(op, f"{setting.batch} images, {setting.pixels} numbers",
             partial(build, setting), partial(build, SMALL))
        for op, build in BUILDERS.items()
        for setting in settings
    ]  # fmt: skip
