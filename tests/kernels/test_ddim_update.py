"""One evaluation of a solver: the kernel has the bits of the reference, and of NumPy's tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from treediffusion.errors import BackendUnavailableError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.ddim_update import ddim_update, reference
from treediffusion.solvers import SolverTable, apply_row

KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
RANGE = (-1.0, 1.0)


def table(rows: int = 4) -> SolverTable:
    """Rows of any numbers; the last adds no noise."""
    network = np.random.default_rng(rows).normal(size=(rows, 5)) + 1
    network[-1, 4] = 0.0
    mix = np.zeros((rows, 2, 6))
    return SolverTable(np.arange(rows), network, mix, np.zeros(rows), True, RANGE)


def given(*shape: int, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """State, output and noise."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, output, noise = (torch.randn(*shape, generator=generator) for _ in range(3))
    return x, output.to(kind), noise


@KINDS
@pytest.mark.parametrize("shape", [(1,), (3, 1, 7, 7), (2, 3, 28, 28), (1025,), (0, 3, 4, 4)])
@pytest.mark.parametrize("clip", [RANGE, (-0.25, 1.5), None])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_kernel_has_the_bits_of_the_reference(
    shape: tuple[int, ...],
    kind: torch.dtype,
    clip: tuple[float, float] | None,
    noisy: bool,
    interpreted: torch.device,
) -> None:
    x, output, noise = (t.to(interpreted) for t in given(*shape, kind=kind))
    drawn = noise if noisy else None
    rows = torch.from_numpy(table().network).float().to(interpreted)
    for k, row in enumerate(rows):
        expected = reference.ddim_update(x, output, row, clip_range=clip, noise=drawn)
        found = ddim_update(x, output, row, clip_range=clip, noise=drawn)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        step = torch.tensor(k, device=interpreted)
        counted = ddim_update(x, output, rows, step=step, clip_range=clip, noise=drawn)
        assert torch.equal(counted, expected)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("noisy", [False, True])
def test_it_is_what_the_tables_say(choice: Any, noisy: bool, interpreted: torch.device) -> None:
    """Bit for bit in float32, and in float64 to the last places of float32."""
    x, output, noise = given(2, 3, 9, 9)
    rows = torch.from_numpy(table().network).float().to(interpreted)
    for k in range(len(rows)):
        drawn = noise if noisy else None
        with use_kernels(choice):
            found = ddim_update(
                x.to(interpreted),
                output.to(interpreted),
                rows[k],
                clip_range=RANGE,
                noise=None if drawn is None else drawn.to(interpreted),
            ).cpu()
        arrays = [x.numpy(), output.numpy(), None if drawn is None else drawn.numpy()]
        assert np.array_equal(found.numpy(), apply_row(table(), k, *arrays))  # type: ignore[arg-type]
        wide = [None if array is None else array.astype(np.float64) for array in arrays]
        exact = apply_row(table(), k, *wide)  # type: ignore[arg-type]
        assert np.abs(found.numpy() - exact).max() < 2e-6


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_noise_that_is_not_added_has_no_effect(choice: Any, interpreted: torch.device) -> None:
    x, output, _ = (t.to(interpreted) for t in given(2, 5))
    row = torch.tensor([1.0, 0.5, 0.25, 2.0, 0.0], device=interpreted)
    nan = torch.full_like(x, float("nan"))
    with use_kernels(choice):
        found = ddim_update(x, output, row, clip_range=RANGE, noise=nan)
        assert torch.equal(found, ddim_update(x, output, row, clip_range=RANGE))


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_nan_passes_the_limits_and_infinity_does_not(
    choice: Any, interpreted: torch.device
) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5], device=interpreted)
    row = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], device=interpreted)
    with use_kernels(choice):
        y = ddim_update(x, torch.zeros_like(x), row, clip_range=RANGE)
    assert y.tolist() == pytest.approx([float("nan"), 1.0, -1.0, 0.5], nan_ok=True)


def test_any_layout_gives_the_same_and_that_of_the_state_is_kept(
    interpreted: torch.device,
) -> None:
    x, output, noise = (t.to(interpreted) for t in given(2, 3, 5, 6))
    row = torch.from_numpy(table().network[0]).float().to(interpreted)
    expected = ddim_update(x, output, row, clip_range=RANGE, noise=noise)
    last = torch.channels_last
    every_second = torch.stack([noise, noise], dim=-1)[..., 0]
    for state in (x, x.to(memory_format=last), torch.stack([x, x], dim=-1)[..., 1]):
        found = ddim_update(
            state, output.to(memory_format=last), row, clip_range=RANGE, noise=every_second
        )
        assert torch.equal(found, expected)
        assert found.stride() == torch.empty_like(state).stride()
    apart = torch.stack([row, row], dim=-1)[:, 0]
    assert torch.equal(ddim_update(x, output, apart, clip_range=RANGE, noise=noise), expected)


def test_the_kernel_writes_every_element_and_none_beyond(interpreted: torch.device) -> None:
    from treediffusion.kernels.ddim_update import kernel

    x, output, noise = (t.to(interpreted) for t in given(1031))
    row = torch.from_numpy(table().network[0]).float().to(interpreted)
    buffer = torch.full((1631,), 99.0, device=interpreted)
    out = buffer[300:1331].fill_(float("nan"))
    kernel.update(x, output, row, None, RANGE, noise, out)
    assert torch.equal(out, reference.ddim_update(x, output, row, clip_range=RANGE, noise=noise))
    out.fill_(99.0)
    assert (buffer == 99).all()


def test_what_the_kernel_cannot_do_takes_the_reference(interpreted: torch.device) -> None:
    x, output, noise = (t.to(interpreted) for t in given(2, 3, 4, 4))
    row = torch.from_numpy(table().network[0]).to(interpreted)
    learnt = output.clone().requires_grad_()
    for state, found, reason in (
        (x.double(), output, "float32"),
        (x, output[:1], "shape"),
        (x, learnt, "gradients"),
    ):
        with pytest.raises(BackendUnavailableError, match=reason):
            ddim_update(state, found, row.float(), clip_range=RANGE)
    with use_kernels("auto"):
        wide = [t.double() for t in (x, output, noise)]
        found = ddim_update(wide[0], wide[1], row, clip_range=RANGE, noise=wide[2])
        assert found.dtype == torch.float64
        narrow = ddim_update(x, output, row.float(), clip_range=RANGE, noise=noise)
        torch.testing.assert_close(narrow.double(), found, rtol=1e-5, atol=1e-5)
        one = ddim_update(x, output[:1], row.float(), clip_range=RANGE)
        assert one.shape == x.shape
        ddim_update(x, learnt, row.float(), clip_range=RANGE).sum().backward()
        assert learnt.grad is not None
    with torch.no_grad():
        ddim_update(x, learnt, row.float(), clip_range=RANGE)


def test_the_op_is_registered_soundly(interpreted: torch.device) -> None:
    x, output, noise = (t.to(interpreted) for t in given(2, 3, 4, 5))
    rows = torch.from_numpy(table().network).float().to(interpreted)
    ddim_update(x, output, rows[0], clip_range=RANGE)
    op = torch.ops.treediffusion.ddim_update.default
    last = output.to(memory_format=torch.channels_last)
    step = torch.tensor(3, device=interpreted)
    torch.library.opcheck(op, (x, last, rows, step, [-1.0, 1.0], noise))
    torch.library.opcheck(op, (x, output, rows[0], None, None, None))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_loop_compiles_whole(interpreted: torch.device) -> None:
    rows = torch.from_numpy(table().network).float().to(interpreted)

    def loop(x: Tensor, output: Tensor) -> Tensor:
        step = torch.zeros((), dtype=torch.int64, device=x.device)
        for _ in range(len(rows)):
            x = ddim_update(x, output * x, rows, step=step, clip_range=RANGE)
            step = step + 1
        return x

    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        x, output, _ = (t.to(interpreted) for t in given(batch, 3, 4))
        assert torch.equal(compiled(x, output), loop(x, output))


@pytest.mark.parametrize("through_op", [False, True])
def test_it_exports_as_plain_operations_and_as_one(
    through_op: bool, interpreted: torch.device
) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, output: Tensor, row: Tensor) -> Tensor:
            if through_op:
                op = torch.ops.treediffusion.ddim_update
                found: Tensor = op(x, output, row, None, [-1.0, 1.0], None)
                return found
            return ddim_update(x, output, row, clip_range=RANGE)

    x, output, _ = (t.to(interpreted) for t in given(2, 3, 4))
    row = torch.from_numpy(table().network[0]).float().to(interpreted)
    expected = ddim_update(x, output, row, clip_range=RANGE)
    program = torch.export.export(Net(), (x, output, row))
    assert ("treediffusion" in str(program.graph)) is through_op
    assert torch.equal(program.module()(x, output, row), expected)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_all_variants_compile(ones: bool, compiled: Callable[..., Any]) -> None:
    built = compiled("treediffusion.kernels.ddim_update.kernel", arch=90, ones=ones)
    assert len(built) == 24
