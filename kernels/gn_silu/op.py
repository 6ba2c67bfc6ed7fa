"""Group norm with SiLU, and a scale and shift or a sum given by a condition.

``y = silu(norm(x) * (1 + scale) + shift)`` or ``y = silu(norm(x + piece))``: one operation of
torch's library, `treediffusion::gn_silu`, and one for its gradients, each a single launch that
reads and writes every map once. Without a kernel, the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError, ShapeError
from ..choice import is_exporting, kernel_choice, takes_kernel
from . import reference
from .reference import Mode
from .tiles import RESIDENT, Tile, cut

WIDTHS = {"none": 0, "scale_shift": 2, "add": 1}  # of a piece, in units of C
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def gn_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    piece: Tensor | None = None,
    mode: Mode = "none",
    silu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Norms a map, conditions it, and activates it.

    Args:
        x: [B, C, H, W] float, maps; with channels last they stay so.
        weight: [C] float, the norm's.
        bias: [C] float, the norm's.
        groups: of channels, each with its own mean and deviation, taken in float32.
        piece: [B, 2C] float, scale and shift, or [B, C], what is added to the map. Its rows may lie
            apart, as in a slice of a wider matrix.
        mode: what the piece is.
        silu: whether SiLU follows.
        eps: added to variances.

    Returns:
        [B, C, H, W] float, of the type and layout of x.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ConfigError: a mode that is none.
        ShapeError: groups do not divide the channels, or the piece does not fit.
    """
    _check(x, groups, piece, mode)
    # What is exported has to run where there is no Triton, so it is the reference unless forced.
    exported = is_exporting() and kernel_choice() != "triton"
    if exported or not takes_kernel("gn_silu", x, unable=_unable(x, groups)):
        return reference.gn_silu(
            x, weight, bias, groups=groups, piece=piece, mode=mode, silu=silu, eps=eps
        )
    y: Tensor = _forward(_dense(x), weight, bias, piece, groups, mode, silu, eps)[0]
    return y


def _check(x: Tensor, groups: int, piece: Tensor | None, mode: str) -> None:
    if mode not in WIDTHS:
        raise ConfigError("mode", got=repr(mode), expected=f"one of {', '.join(WIDTHS)}")
    if x.dim() != 4 or x.shape[1] % groups:
        raise ShapeError("x", got=tuple(x.shape), expected=f"[B, multiple of {groups}, H, W]")
    expected = (x.shape[0], WIDTHS[mode] * x.shape[1]) if WIDTHS[mode] else None
    found = None if piece is None else tuple(piece.shape)
    if found != expected:
        raise ShapeError(f"piece of mode {mode}", got=found, expected=str(expected))


def _unable(x: Tensor, groups: int) -> str | None:
    if x.dtype not in TYPES:
        return f"numbers of type {x.dtype}"
    if x.shape[2] * x.shape[3] == 0:
        return "maps without pixels"
    if x.shape[1] // groups > RESIDENT:
        return f"groups of more than {RESIDENT} channels"
    return None


def _dense(x: Tensor) -> Tensor:
    """The map in one of the two layouts that kernels read; copies any other."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    """A tensor in the layout of a dense map."""
    if x.is_contiguous():
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("treediffusion::gn_silu", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    groups: int,
    mode: str,
    silu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The map, and its statistics [B, 2, groups]: means, and reciprocals of deviations."""
    x = _dense(x)
    y = torch.empty_like(x)
    stats = x.new_empty(x.shape[0], 2, groups, dtype=torch.float32)
    run_forward(x, weight, bias, piece, groups, mode, silu, eps, y=y, stats=stats)
    return y, stats


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    groups: int,
    mode: str,
    silu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    stats = x.new_empty(x.shape[0], 2, groups, dtype=torch.float32)
    return torch.empty_like(_dense(x)), stats


@torch.library.custom_op("treediffusion::gn_silu_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    stats: Tensor,
    mode: str,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and the piece, and each sample's part of those of weight and bias."""
    x = _dense(x)
    dx = torch.empty_like(x)
    sums, dpiece = _row_gradients(x, piece)
    run_backward(
        _like(dy, x), x, weight, bias, piece, stats, mode, silu, dx=dx, sums=sums, dpiece=dpiece
    )
    return dx, sums, dpiece


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    stats: Tensor,
    mode: str,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(_dense(x)), *_row_gradients(x, piece)


def _row_gradients(x: Tensor, piece: Tensor | None) -> tuple[Tensor, Tensor]:
    """Room for [B, 2, C] of weight and bias, and for those of the piece."""
    sums = x.new_empty(x.shape[0], 2, x.shape[1], dtype=torch.float32)
    return sums, x.new_empty(0) if piece is None else piece.new_empty(piece.shape)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:  # type: ignore[type-arg]
    x, weight, bias, piece, _, mode, silu, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, piece, output[1])
    ctx.mode, ctx.silu = mode, silu  # type: ignore[attr-defined]


def _differentiate(ctx, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    x, weight, bias, piece, stats = ctx.saved_tensors
    dx, sums, dpiece = _backward(dy, x, weight, bias, piece, stats, ctx.mode, ctx.silu)
    dweight, dbias = sums.sum(dim=0).unbind(0)
    return (
        dx,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None if piece is None else dpiece,
        *[None] * 4,
    )


_forward.register_autograd(_differentiate, setup_context=_save)


def run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    groups: int,
    mode: str,
    silu: bool,
    eps: float,
    *,
    y: Tensor,
    stats: Tensor,
) -> None:
    """Launches the forward kernel on dense maps; `y` and `stats` receive all of the results."""
    from .kernel import forward_kernel

    piece, stride = _rows(piece)
    _launch(
        forward_kernel,
        (x, weight.contiguous(), bias.contiguous(), piece, stride, eps, y, stats),
        x,
        groups,
        mode,
        silu,
    )


def run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    piece: Tensor | None,
    stats: Tensor,
    mode: str,
    silu: bool,
    *,
    dx: Tensor,
    sums: Tensor,
    dpiece: Tensor,
) -> None:
    """Launches the backward kernel on dense maps; the last three receive the results."""
    from .kernel import backward_kernel

    piece, stride = _rows(piece)
    rows = None if piece is None else dpiece
    dense = (dy, x, weight.contiguous(), bias.contiguous())
    _launch(
        backward_kernel,
        (*dense, piece, stats, stride, dx, sums, rows),
        x,
        stats.shape[2],
        mode,
        silu,
    )


def _rows(piece: Tensor | None) -> tuple[Tensor | None, int]:
    """A piece whose rows have no gaps, and how far apart they are."""
    if piece is None:
        return None, 0
    if piece.stride(1) != 1:
        piece = piece.contiguous()
    return piece, piece.stride(0)


def _launch(
    kernel: object, arguments: tuple[object, ...], x: Tensor, groups: int, mode: str, silu: bool
) -> None:
    batch, channels, height, width = x.shape
    last = not x.is_contiguous()
    deep, pixels = channels // groups, height * width
    tile: Tile = cut(batch, groups, deep, pixels, channels_last=last, itemsize=x.element_size())
    programs = batch * -(-groups // tile.groups)
    if programs == 0:
        return
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs,)](  # type: ignore[index]
            *arguments,
            D=deep,
            G=groups,
            HW=pixels,
            MODE=mode,
            SILU=silu,
            LAST=last,
            BG=tile.groups,
            BD=tile.channels,
            BP=tile.pixels,
            CHUNKS=tile.chunks,
            num_warps=tile.warps,
            num_stages=1,
            enable_fp_fusion=True,
        )
