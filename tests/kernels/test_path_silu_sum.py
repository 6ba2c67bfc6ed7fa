"""The sum of silu over paths: the kernel against float64, and what absent slots may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.errors import BackendUnavailableError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.path_silu_sum import path_silu_sum
from treediffusion.kernels.path_silu_sum.op import SLOTS

# Interpreted bfloat16 is cut off, not rounded: one unit of its last place.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
KINDS = pytest.mark.parametrize("kind", TOLERANCE, ids=str)
SHAPES = pytest.mark.parametrize(
    ("batch", "slots", "width"),
    [(1, 1, 1), (3, 5, 100), (2, 3, 256), (5, 1, 129), (2, 17, 3), (0, 4, 8), (2, 0, 8)],
)


def paths(batch: int, slots: int) -> Tensor:
    """[B, P] ids: lengths from 0 to P, with gaps, and the first path empty if there are several."""
    generator = torch.Generator().manual_seed(batch + slots)
    nodes = torch.randint(0, 19, (batch, slots), generator=generator)
    absent = torch.rand(batch, slots, generator=generator) < 0.4
    absent[: int(batch > 1)] = True
    return nodes.masked_fill(absent, -1)


def truth(h: Tensor, nodes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Value, and gradient of its product with the weight, in float64."""
    exact = h.detach().double().cpu().requires_grad_()
    absent = (nodes.cpu() < 0)[:, :, None]
    y = F.silu(exact.masked_fill(absent, 0.0)).masked_fill(absent, 0.0).sum(1)
    (of_h,) = torch.autograd.grad((y * weight.double().cpu()).sum(), exact)
    return y.detach(), of_h


def close(got: Tensor, expected: Tensor, kind: torch.dtype) -> None:
    assert got.dtype == kind
    tolerance = TOLERANCE[kind]
    torch.testing.assert_close(
        got.detach().double().cpu(), expected, rtol=tolerance, atol=tolerance
    )


@KINDS
@SHAPES
def test_values_and_gradients_are_those_of_float64(
    batch: int, slots: int, width: int, kind: torch.dtype, interpreted: torch.device
) -> None:
    h = (3 * torch.randn(batch, slots, width)).to(interpreted, kind).requires_grad_()
    nodes = paths(batch, slots).to(interpreted)
    weight = torch.randn(batch, width).to(interpreted, kind)
    y = path_silu_sum(h, nodes)
    (of_h,) = torch.autograd.grad((y * weight).sum(), h)
    expected, expected_of_h = truth(h, nodes, weight)
    close(y, expected, kind)
    close(of_h, expected_of_h, kind)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("hostile", [float("nan"), float("inf")])
def test_what_an_absent_slot_holds_has_no_effect(
    choice: Any, hostile: float, interpreted: torch.device
) -> None:
    nodes = torch.tensor([[3, -1, 0], [-1, -1, -1]], device=interpreted)
    clean = torch.randn(2, 3, 40, device=interpreted)
    found = []
    for filling in (0.0, hostile):
        h = clean.masked_fill((nodes < 0)[:, :, None], filling).requires_grad_()
        with use_kernels(choice):
            y = path_silu_sum(h, nodes)
            (of_h,) = torch.autograd.grad(y.sum(), h)
        found.append((y, of_h))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert (found[1][1][nodes < 0] == 0).all()
    assert (found[1][0][1] == 0).all()


def test_a_nan_that_is_present_reaches_its_path_only(interpreted: torch.device) -> None:
    h = torch.zeros(2, 2, 3, device=interpreted)
    h[0, 1, 2] = float("nan")
    y = path_silu_sum(h, torch.zeros(2, 2, dtype=torch.int64, device=interpreted))
    assert y.isnan().nonzero().tolist() == [[0, 2]]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_values_are_finite(interpreted: torch.device) -> None:
    h = torch.tensor([-1e30, -100.0, 100.0, 1e30], device=interpreted).reshape(1, 1, 4)
    h.requires_grad_()
    y = path_silu_sum(h, torch.zeros(1, 1, dtype=torch.int64, device=interpreted))
    (of_h,) = torch.autograd.grad(y.sum(), h)
    torch.testing.assert_close(y, F.silu(h.detach())[:, 0])
    assert of_h.flatten().tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)


def test_kernels_write_every_element_and_none_beyond(interpreted: torch.device) -> None:
    from treediffusion.kernels.path_silu_sum import kernel

    batch, slots, width = 3, 5, 131
    h = torch.randn(batch, slots, width, device=interpreted)
    nodes = paths(batch, slots).to(interpreted)
    grad = torch.randn(batch, width, device=interpreted)
    for shape, run in (
        ((batch, width), lambda out: kernel.forward(h, nodes, out)),
        ((batch, slots, width), lambda out: kernel.backward(grad, h, nodes, out)),
    ):
        size = int(torch.tensor(shape).prod())
        buffer = torch.full((size + 400,), 7.0, device=interpreted)
        out = buffer[200 : 200 + size].fill_(float("nan")).reshape(shape)
        run(out)
        assert out.isfinite().all()
        assert (buffer[:200] == 7).all()
        assert (buffer[200 + size :] == 7).all()


@pytest.mark.parametrize("integer", [torch.int32, torch.int16])
def test_other_strides_and_integers_make_no_difference(
    integer: torch.dtype, interpreted: torch.device
) -> None:
    h = torch.randn(4, 3, 30, device=interpreted)
    nodes = paths(4, 3).to(interpreted)
    expected = path_silu_sum(h, nodes)
    apart = h.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    transposed = nodes.to(integer).t().contiguous().t()
    assert torch.equal(path_silu_sum(apart, transposed), expected)


def test_what_the_kernel_cannot_do_takes_the_reference(interpreted: torch.device) -> None:
    wide = torch.randn(1, SLOTS + 1, 2, device=interpreted)
    exact = torch.randn(2, 3, 2, device=interpreted, dtype=torch.float64)
    for h, reason in ((wide, "64 slots"), (exact, "float64")):
        nodes = torch.zeros(h.shape[:2], dtype=torch.int64, device=interpreted)
        with pytest.raises(BackendUnavailableError, match=reason):
            path_silu_sum(h, nodes)
        with use_kernels("auto"):
            torch.testing.assert_close(path_silu_sum(h, nodes), F.silu(h).sum(1))


def test_the_op_is_registered_soundly(interpreted: torch.device) -> None:
    h = torch.randn(3, 4, 5, device=interpreted, requires_grad=True)
    nodes = paths(3, 4).to(interpreted)
    path_silu_sum(h, nodes)
    ops = torch.ops.treediffusion
    torch.library.opcheck(ops.path_silu_sum.default, (h, nodes))
    grad = torch.randn(3, 5, device=interpreted)
    torch.library.opcheck(ops.path_silu_sum_backward.default, (grad, h.detach(), nodes))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_it_compiles_whole_with_its_gradient(interpreted: torch.device) -> None:
    compiled = torch.compile(path_silu_sum, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        h = torch.randn(batch, 3, 8, device=interpreted, requires_grad=True)
        nodes = paths(batch, 3).to(interpreted)
        expected = path_silu_sum(h, nodes)
        found = compiled(h, nodes)
        assert torch.equal(found, expected)
        of_h = [torch.autograd.grad(y.square().sum(), h)[0] for y in (found, expected)]
        assert torch.equal(*of_h)


@pytest.mark.parametrize("op", [path_silu_sum, None])
def test_it_exports_as_plain_operations_and_as_one(
    op: Callable[..., Tensor] | None, interpreted: torch.device
) -> None:
    class Net(torch.nn.Module):
        def forward(self, h: Tensor, nodes: Tensor) -> Tensor:
            found: Tensor = (op or torch.ops.treediffusion.path_silu_sum)(h, nodes)
            return found

    h, nodes = torch.randn(2, 3, 8, device=interpreted), paths(2, 3).to(interpreted)
    path_silu_sum(h, nodes)
    program = torch.export.export(Net(), (h, nodes))
    assert ("treediffusion" in str(program.graph)) is (op is None)
    torch.testing.assert_close(program.module()(h, nodes), path_silu_sum(h, nodes))


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_all_variants_compile(ones: bool, compiled: Callable[..., Any]) -> None:
    built = compiled("treediffusion.kernels.path_silu_sum.kernel", arch=90, ones=ones)
    assert len(built) == 30
