"""The nodes' posterior in one pass: values and gradients of float64, and of `Gaussian`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from treediffusion.errors import BackendUnavailableError, ShapeError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.node_posterior import by_hand, kernel, node_posterior, op, reference
from treediffusion.nn.gaussians import EPS, HeadGaussian, kl, merge, sample

pytestmark = pytest.mark.usefixtures("interpreted")

# (B, N, Z, R): one image and one node, a single number, nothing whole, more than a block, none.
SHAPES = [(1, 1, 1, 1), (3, 5, 7, 3), (2, 1, 16, 2), (1, 3, 5, 15), (2, 2, 65, 4), (0, 3, 4, 2)]
ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def a_case(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, *, size: float = 3
) -> Case:
    """infer, prior, noise and the gradients of z and kl; float64 numbers that dtype has, too."""
    batch, nodes, channels, side = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*sides: int, size: float = 1) -> Tensor:
        drawn = size * torch.randn(*sides, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).double().to(device)

    heads = (batch, nodes, 2 * channels, side, side)
    maps = (batch, nodes, channels, side, side)
    heads_drawn = draw(*heads, size=size), draw(*heads, size=size)
    return *heads_drawn, draw(*maps), draw(*maps), draw(batch, nodes)


def run(
    form: Callable[..., tuple[Tensor, Tensor]], case: Case, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """z, kl, and the gradients of both inputs; noise and z keep their range in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    infer, prior = (x.to(dtype).requires_grad_() for x in case[:2])
    noise, of_z, of_kl = (x.to(wide) for x in case[2:])
    z, kl = form(infer, prior, noise)
    return z, kl, *torch.autograd.grad((z, kl), (infer, prior), (of_z, of_kl))


def assert_near(got: tuple[Tensor, ...], want: tuple[Tensor, ...], error: float) -> None:
    for found, truth in zip(got, want, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=error, atol=2 * error)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype, interpreted: torch.device
) -> None:
    case = a_case(shape, interpreted, dtype)
    want = run(reference.node_posterior, case, torch.float64)
    assert_near(run(node_posterior, case, dtype), want, ERRORS[dtype])


def test_the_gradient_formulas_are_those_of_differences(interpreted: torch.device) -> None:
    infer, prior, noise, *_ = a_case((2, 2, 2, 1), interpreted, torch.float64, size=1)
    inputs = (infer.requires_grad_(), prior.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda i, p: node_posterior(i, p, noise), inputs, fast_mode=True
    )


def test_it_is_merge_sample_and_kl(interpreted: torch.device) -> None:
    assert reference.EPS == EPS
    case = a_case((3, 5, 7, 3), interpreted, torch.float64)
    want = run(by_gaussians, case, torch.float64)
    assert_near(run(reference.node_posterior, case, torch.float64), want, 1e-13)
    assert_near(run(node_posterior, case, torch.float64), want, 1e-12)


def by_gaussians(infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook: merge, sample and compare, one after another."""
    given = HeadGaussian(prior)
    node = merge(HeadGaussian(infer), given)
    return sample(node, noise), kl(node, given)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_by_hand_are_those_of_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """And values have the reference's bits."""
    case = a_case(shape, torch.device("cpu"), dtype)
    found = run(by_hand.node_posterior, case, dtype)
    assert_near(found, run(reference.node_posterior, case, torch.float64), ERRORS[dtype])
    for ours, truth in zip(found, run(reference.node_posterior, case, dtype)[:2], strict=False):
        assert torch.equal(ours, truth)


def test_gradients_by_hand_are_those_of_differences() -> None:
    infer, prior, noise, *_ = a_case((2, 2, 2, 1), torch.device("cpu"), torch.float64, size=1)
    inputs = (infer.requires_grad_(), prior.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, p: by_hand.node_posterior(i, p, noise), inputs)


def test_training_one_operation_after_another_has_its_gradients_by_hand() -> None:
    """Not where none are asked for, nor where a compiler looks, which does better by itself."""
    infer, prior, noise, *_ = (
        x.float() for x in a_case((2, 3, 4, 2), torch.device("cpu"), torch.float32)
    )
    with use_kernels("reference"):
        infer.requires_grad_()
        z, divergence = node_posterior(infer, prior, noise)
        assert "NodePosterior" in str(divergence.grad_fn)
        compiled = torch.compile(node_posterior, fullgraph=True, backend="aot_eager")
        found = compiled(infer, prior, noise)
        with torch.no_grad():
            assert torch.equal(node_posterior(infer, prior, noise)[0], z)
        assert not node_posterior(infer.detach(), prior, noise)[0].requires_grad
    wanted = torch.autograd.grad(z.sum() + divergence.sum(), infer)
    torch.testing.assert_close(
        torch.autograd.grad(found[0].sum() + found[1].sum(), infer), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("raw", [-6.0, -10.0, -16.0])
def test_gradients_keep_their_digits_where_variances_are_tiny(
    raw: float, interpreted: torch.device
) -> None:
    """In float32 against float64, in every form; the textbook loses them to a difference."""
    generator = torch.Generator().manual_seed(0)
    infer, prior = 1.0 + 1e-3 * torch.randn(2, 3, 4, 16, 2, 2, generator=generator)
    noise = torch.randn(3, 4, 8, 2, 2, generator=generator)
    for heads, apart in ((infer, 0.0), (prior, 1.0)):
        heads[:, :, 8:] = raw + apart * torch.rand(3, 4, 8, 2, 2, generator=generator)
    prior[:, :, :8] = infer[:, :, :8]
    rest = noise, torch.zeros_like(noise), torch.ones(3, 4)
    case: Case = tuple(x.double().to(interpreted) for x in (infer, prior, *rest))  # type: ignore[assignment]

    def error(form: Callable[..., tuple[Tensor, Tensor]]) -> float:
        exact = run(reference.node_posterior, case, torch.float64)[2:]
        found = run(form, case, torch.float32)[2:]
        off = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)]
        return float(max(off))

    for form in (node_posterior, by_hand.node_posterior, reference.node_posterior):
        assert error(form) < 2e-6
    assert error(by_gaussians) > (2e-3 if raw < -8 else 2e-5)


@pytest.mark.parametrize("raw", [-100.0, -16.0, -10.0, 0.0, 20.0, 90.0])
def test_variances_at_the_ends_of_the_range(raw: float, interpreted: torch.device) -> None:
    """Tiny ones keep their digits, whose logarithm the divergence is."""
    infer, prior, *rest = a_case((1, 2, 3, 2), interpreted, torch.float32, size=1)
    infer[:, :, 3:], prior[:, :, 3:] = raw, raw + torch.arange(-1.0, 2.0)[:, None, None]
    prior[:, :, :3] = infer[:, :, :3]
    case: Case = (infer, prior, *rest)
    got = run(node_posterior, case, torch.float32)
    want = run(reference.node_posterior, case, torch.float64)
    assert all(part.isfinite().all() for part in got)
    for found, truth in zip(got, want, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=2e-5)


def test_what_is_no_number_stays_in_its_node(interpreted: torch.device) -> None:
    infer, prior, noise, *_ = a_case((2, 3, 4, 2), interpreted, torch.float32)
    infer[0, 1, 5, 0, 0] = torch.nan
    z, divergence = node_posterior(infer.float(), prior.float(), noise.float())
    assert z.isnan().nonzero().tolist() == [[0, 1, 1, 0, 0]]
    assert divergence.isnan().nonzero().tolist() == [[0, 1]]


def test_nothing_else_is_written(interpreted: torch.device) -> None:
    """Outputs lie within larger ones that are full of NaN: all of them is set, nothing around."""
    infer, prior, noise, of_z, of_kl = (
        x.float() for x in a_case((3, 2, 5, 3), interpreted, torch.float32)
    )
    inputs, constants = op._arguments(infer, prior, noise)

    def within(*shape: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, device=interpreted)
        return whole, whole[1:-1]

    outputs = [within(*noise.shape), within(*of_kl.shape), within(*infer.shape)]
    outputs.append(within(*prior.shape))
    (_, z), (_, divergence), (_, of_infer), (_, of_prior) = outputs
    kernel.forward[(6,)](*inputs, z, divergence, **constants)
    kernel.backward[(6,)](of_z, of_kl, *inputs, of_infer, of_prior, **constants)
    for whole, inside in outputs:
        assert inside.isfinite().all()
        assert whole[0].isnan().all()
        assert whole[-1].isnan().all()


def test_a_levels_part_of_a_stack_is_taken_where_it_lies(interpreted: torch.device) -> None:
    infer, prior, noise, *_ = (x.float() for x in a_case((3, 5, 4, 2), interpreted, torch.float32))
    parts = [torch.split(x, [1, 4], dim=1)[1] for x in (infer, prior, noise)]
    turned = [x.transpose(3, 4).contiguous().transpose(3, 4) for x in parts]
    want = node_posterior(*(x.contiguous() for x in parts))
    assert all(op._with_plain_maps(x).data_ptr() == x.data_ptr() for x in parts)
    for given in (parts, turned):
        for found, truth in zip(node_posterior(*given), want, strict=True):
            torch.testing.assert_close(found, truth, rtol=0, atol=0)


def test_an_image_is_the_same_in_any_batch(interpreted: torch.device) -> None:
    case = [x.float() for x in a_case((4, 3, 5, 3), interpreted, torch.float32)[:3]]
    z, divergence = node_posterior(*case)
    alone = node_posterior(*(x[2:3] for x in case))
    assert torch.equal(alone[0], z[2:3])
    assert torch.equal(alone[1], divergence[2:3])


def test_compilers_know_the_operation(interpreted: torch.device) -> None:
    infer, prior, noise, *_ = (x.float() for x in a_case((2, 3, 4, 2), interpreted, torch.float32))
    infer.requires_grad_()
    for result in torch.library.opcheck(op._forward, (infer, prior, noise)).values():
        assert result == "SUCCESS"
    z, divergence = node_posterior(infer, prior, noise)
    of_inputs = (torch.ones_like(z), divergence.detach(), infer.detach(), prior, noise)
    for result in torch.library.opcheck(op._backward, of_inputs).values():
        assert result == "SUCCESS"
    compiled = torch.compile(node_posterior, fullgraph=True, backend="aot_eager")
    found = compiled(infer, prior, noise)
    assert torch.equal(found[0], z)
    assert torch.equal(found[1], divergence)
    (want,) = torch.autograd.grad(z.sum() + divergence.sum(), infer)
    (got,) = torch.autograd.grad(found[0].sum() + found[1].sum(), infer)
    assert torch.equal(got, want)


class Posterior(torch.nn.Module):
    def forward(self, infer: Tensor, prior: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return node_posterior(infer, prior, noise)


def test_it_exports_as_the_reference_or_if_forced_as_one_operation(
    interpreted: torch.device,
) -> None:
    case = tuple(x.float() for x in a_case((2, 3, 4, 2), interpreted, torch.float32)[:3])
    forced = torch.export.export(Posterior(), case)
    with use_kernels("auto"):
        plain = torch.export.export(Posterior(), case)
    for program, expected in ((forced, True), (plain, False)):
        targets = [str(node.target) for node in program.graph.nodes]
        assert any("treediffusion" in target for target in targets) == expected
        for found, truth in zip(program.module()(*case), node_posterior(*case), strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=2e-5)


def test_what_does_not_fit_is_refused(interpreted: torch.device) -> None:
    infer, prior, noise, *_ = (x.float() for x in a_case((2, 3, 4, 2), interpreted, torch.float32))
    with pytest.raises(ShapeError, match="infer"):
        node_posterior(infer[:, :2], prior, noise)
    with pytest.raises(ShapeError, match="noise"):
        node_posterior(infer, prior, noise.flatten(3))
    with pytest.raises(BackendUnavailableError, match="noise that has a gradient"):
        node_posterior(infer, prior, noise.requires_grad_())
    with pytest.raises(BackendUnavailableError, match="float64"):
        node_posterior(infer, prior.double(), noise.detach())


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_it_compiles(compiled: Callable[..., dict[str, dict[str, Any]]], ones: bool) -> None:
    report = compiled("treediffusion.kernels.node_posterior.kernel", arch=90, ones=ones)
    assert len(report) == len(kernel.VARIANTS)
