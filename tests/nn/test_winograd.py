"""Winograd's form is the convolution and its gradients, and is used only where it can be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from treediffusion.nn import winograd
from treediffusion.nn.winograd import Conv3x3, matrices, pays

WIDE = winograd.WIDTH


def maps(batch: int, channels: int, height: int, width: int) -> Tensor:
    x = torch.randn(batch, channels, height, width)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def is_in_this_form(y: Tensor) -> bool:
    return "_Convolution" in type(y.grad_fn).__name__


def test_the_matrices_give_the_sum_of_products() -> None:
    """A' ((G g G') (B' d B)) A for one tile and one kernel, to the matrices' rounding."""
    of_map, of_kernel, of_result = (matrix.double() for matrix in matrices())
    d, g = torch.randn(36, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    found = of_result @ ((of_map @ d) * (of_kernel @ g))
    truth = F.conv2d(d.reshape(1, 1, 6, 6), g.reshape(1, 1, 3, 3)).flatten()
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "height", "width"),
    [
        (1, 64, 64, 48, 64),  # one image is more than a block
        (7, 64, 96, 16, 32),  # the last block is smaller
        (33, 128, 64, 8, 8),
        (70, 64, 128, 4, 8),
    ],
)
def test_numbers_and_gradients_are_those_of_the_convolution(
    batch: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    """Against float64, as far as float32's own sums are, within a factor of four."""
    torch.manual_seed(0)
    conv, x = Conv3x3(inputs, outputs), maps(batch, inputs, height, width)
    y = conv(x)
    assert is_in_this_form(y)
    gradient = torch.randn_like(y)
    found = y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), gradient)
    truth, plain = (
        _all_of(x.detach().to(kind), conv, gradient) for kind in (torch.float64, torch.float32)
    )
    for ours, exact, usual in zip(found, truth, plain, strict=True):
        unit = exact.abs().max()
        error, own = ((value - exact).abs().max() / unit for value in (ours, usual))
        assert error < 4 * own + 2e-6


def _all_of(x: Tensor, conv: nn.Conv2d, gradient: Tensor) -> tuple[Tensor, ...]:
    assert conv.bias is not None
    told = [value.detach().to(x.dtype).requires_grad_() for value in (x, conv.weight, conv.bias)]
    y = F.conv2d(*told, padding=1)
    return y, *torch.autograd.grad(y, told, gradient.to(x.dtype))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    conv, x = Conv3x3(WIDE, WIDE), maps(4, WIDE, 16, 32)
    conv.weight.requires_grad_(False)
    conv(x.detach()).sum().backward()
    assert x.grad is None
    assert conv.weight.grad is None
    assert conv.bias is not None
    torch.testing.assert_close(conv.bias.grad, torch.full((WIDE,), 4.0 * 16 * 32))


def test_the_same_call_gives_the_same_bits() -> None:
    conv, x = Conv3x3(WIDE, 2 * WIDE), maps(9, WIDE, 16, 16)
    runs = []
    for _ in range(2):
        y = conv(x)
        runs.append((y, *torch.autograd.grad(y.square().sum(), (x, conv.weight))))
    assert all(map(torch.equal, *runs))


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """Not a wrong number."""
    conv, x = Conv3x3(WIDE, WIDE), maps(4, WIDE, 16, 32)
    (slope,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("x", "inputs"),
    [
        (torch.randn(4, 64, 32, 32), 64),  # not channels last
        (maps(4, 32, 32, 32), 32),  # narrow
        (maps(4, 64, 30, 32), 64),  # no whole tiles
        (maps(1, 64, 16, 16), 64),  # too little work
        (maps(1, 64, 128, 128), 64),  # too many tiles for the cache
    ],
    ids=["layout", "narrow", "side", "few", "large"],
)
def test_other_maps_are_convolved_as_usual(x: Tensor, inputs: int) -> None:
    conv = Conv3x3(inputs, inputs)
    y = conv(x)
    assert not is_in_this_form(y)
    torch.testing.assert_close(y, F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_autocast_decides_the_precision() -> None:
    conv, x = Conv3x3(WIDE, WIDE), maps(4, WIDE, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16


def test_an_exported_network_has_the_plain_convolution() -> None:
    conv, x = Conv3x3(WIDE, WIDE), maps(4, WIDE, 32, 32).detach()
    with torch.no_grad():
        called = [str(node.target) for node in torch.export.export(conv, (x,)).graph.nodes]
    assert "aten.conv2d.default" in called


def test_other_layers_do_not_pay() -> None:
    """Whose kernel, stride, margin, groups or precision is another."""
    x = maps(4, WIDE, 32, 32)
    assert pays(nn.Conv2d(WIDE, WIDE, 3, padding=1), x)
    assert not pays(nn.Conv2d(WIDE, WIDE, 3, padding=1, stride=2), x)
    assert not pays(nn.Conv2d(WIDE, WIDE, 1), x)
    assert not pays(nn.Conv2d(WIDE, WIDE, 3), x)
    assert not pays(nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE), x)
    assert not pays(nn.Conv2d(WIDE, WIDE, 3, padding=1).double(), x.double())
