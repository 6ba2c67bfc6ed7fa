"""silu(time + cond): the kernel against float64, one embedding for all images or one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.errors import BackendUnavailableError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.cond_silu import cond_silu

# Interpreted bfloat16 is cut off, not rounded: one unit of its last place, or two after a cast.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
KINDS = pytest.mark.parametrize("kind", TOLERANCE, ids=str)
EACH = pytest.mark.parametrize("each", [False, True], ids=["for-all", "for-each"])
SHAPES = pytest.mark.parametrize(
    ("batch", "width"), [(1, 1), (1, 256), (3, 513), (7, 100), (0, 8), (2, 1)]
)


def given(
    batch: int, width: int, device: torch.device, *, each: bool, kind: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    shape = (batch, width) if each else (width,)
    time, cond = 3 * torch.randn(shape), 3 * torch.randn(batch, width)
    return (
        time.to(device, kind).requires_grad_(),
        cond.to(device, kind).requires_grad_(),
    )


@KINDS
@EACH
@SHAPES
def test_values_and_gradients_are_those_of_float64(
    batch: int, width: int, each: bool, kind: torch.dtype, interpreted: torch.device
) -> None:
    time, cond = given(batch, width, interpreted, each=each, kind=kind)
    weight = torch.randn(batch, width).to(interpreted, kind)
    y = cond_silu(time, cond)
    grads = torch.autograd.grad((y * weight).sum(), (time, cond))
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in (time, cond)]
    expected = F.silu(exact[0] + exact[1])
    of_exact = torch.autograd.grad((expected * weight.double().cpu()).sum(), exact)
    tolerance = TOLERANCE[kind]
    pairs = zip((y, *grads), (expected.detach(), *of_exact), strict=True)
    for got, wanted in pairs:
        assert got.dtype == kind
        # A gradient that is a sum over images adds up what each was off by.
        off = tolerance * max(batch, 1) * 3
        torch.testing.assert_close(got.detach().double().cpu(), wanted, rtol=tolerance, atol=off)


def test_the_wider_dtype_is_kept_and_each_gradient_has_its_own(interpreted: torch.device) -> None:
    time, cond = given(3, 20, interpreted, each=True)
    narrow = time.detach().to(torch.bfloat16).requires_grad_()
    y = cond_silu(narrow, cond)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, F.silu(narrow.float() + cond))
    of_time, of_cond = torch.autograd.grad(y.sum(), (narrow, cond))
    assert (of_time.dtype, of_cond.dtype) == (torch.bfloat16, torch.float32)


@EACH
def test_rows_that_lie_apart_or_on_each_other_are_read_in_place(
    each: bool, interpreted: torch.device
) -> None:
    time, cond = (tensor.detach() for tensor in given(4, 33, interpreted, each=each))
    expected = cond_silu(time, cond)
    wide = torch.full((4, 90), float("nan"), device=interpreted)
    wide[:, 40:73] = cond
    assert torch.equal(cond_silu(time, wide[:, 40:73]), expected)
    assert torch.equal(cond_silu(time, cond.t().contiguous().t()), expected)
    if not each:
        assert torch.equal(cond_silu(time.expand(4, -1), cond), expected)


def test_a_gradient_that_is_one_number_everywhere_is_read_right(interpreted: torch.device) -> None:
    time, cond = given(3, 5, interpreted, each=False)
    found = torch.autograd.grad(cond_silu(time, cond).sum(), (time, cond))
    wanted = torch.autograd.grad(F.silu(time + cond).sum(), (time, cond))
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_values_are_finite_and_nan_stays_in_its_place(interpreted: torch.device) -> None:
    time = torch.zeros(5, device=interpreted, requires_grad=True)
    values = [-1e30, -100.0, 100.0, 1e30, float("nan")]
    y = cond_silu(time, torch.tensor([values], device=interpreted))
    (of_time,) = torch.autograd.grad(y.sum(), time)
    assert y[0].tolist() == pytest.approx([0, 0, 100, 1e30, float("nan")], nan_ok=True)
    assert of_time.tolist() == pytest.approx([0, 0, 1, 1, float("nan")], nan_ok=True)


def test_kernels_write_every_element_and_none_beyond(interpreted: torch.device) -> None:
    from treediffusion.kernels.cond_silu import kernel

    time, cond = (tensor.detach() for tensor in given(3, 515, interpreted, each=False))
    for run in (
        lambda out: kernel.forward(time, cond, out),
        lambda out: kernel.backward(cond, time, cond, out),
    ):
        buffer = torch.full((5, 600), 7.0, device=interpreted)
        out = buffer[1:4, 40:555].fill_(float("nan"))
        run(out)
        assert out.isfinite().all()
        out.fill_(7.0)
        assert (buffer == 7).all()


def test_what_the_kernel_cannot_do_takes_the_reference(interpreted: torch.device) -> None:
    cond = torch.randn(3, 4, device=interpreted)
    one_row = torch.randn(1, 4, device=interpreted)
    exact = torch.randn(4).double().to(interpreted)
    for time, reason in ((one_row, "neither one"), (exact, "float64")):
        with pytest.raises(BackendUnavailableError, match=reason):
            cond_silu(time, cond)
        with use_kernels("auto"):
            torch.testing.assert_close(cond_silu(time, cond), F.silu(time + cond))


@EACH
def test_the_op_is_registered_soundly(each: bool, interpreted: torch.device) -> None:
    time, cond = given(3, 6, interpreted, each=each)
    cond_silu(time, cond)
    ops = torch.ops.treediffusion
    torch.library.opcheck(ops.cond_silu.default, (time, cond))
    torch.library.opcheck(
        ops.cond_silu_backward.default, (torch.ones_like(cond), time.detach(), cond.detach())
    )


@EACH
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_it_compiles_whole_with_its_gradients(each: bool, interpreted: torch.device) -> None:
    compiled = torch.compile(cond_silu, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        time, cond = given(batch, 6, interpreted, each=each)
        expected, found = cond_silu(time, cond), compiled(time, cond)
        assert torch.equal(found, expected)
        grads = [torch.autograd.grad(y.square().sum(), (time, cond)) for y in (found, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("op", [cond_silu, None])
def test_it_exports_as_plain_operations_and_as_one(
    op: Callable[..., Tensor] | None, interpreted: torch.device
) -> None:
    class Net(torch.nn.Module):
        def forward(self, time: Tensor, cond: Tensor) -> Tensor:
            found: Tensor = (op or torch.ops.treediffusion.cond_silu)(time, cond)
            return found

    time, cond = (tensor.detach() for tensor in given(2, 6, interpreted, each=False))
    expected = cond_silu(time, cond)
    program = torch.export.export(Net(), (time, cond))
    assert ("treediffusion" in str(program.graph)) is (op is None)
    torch.testing.assert_close(program.module()(time, cond), expected)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_all_variants_compile(ones: bool, compiled: Callable[..., Any]) -> None:
    built = compiled("treediffusion.kernels.cond_silu.kernel", arch=90, ones=ones)
    assert len(built) == 6
