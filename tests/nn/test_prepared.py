"""Prepared networks give the numbers of the plain ones, and leave them alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from treediffusion.config import UNetConfig
from treediffusion.nn import prepared as module
from treediffusion.nn.enlarge import Enlarge
from treediffusion.nn.prepared import prepared
from treediffusion.nn.unet import Norm, UNet

WIDE = UNetConfig(channels=64, multipliers=(1, 2), blocks=1, heads=4, attention=(2,))


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def network(config: UNetConfig = WIDE, *, scale_shift: bool = True) -> UNet:
    with torch.inference_mode(mode=False):
        net = UNet(1, 28, config, scale_shift=scale_shift).eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.02)
    return net


def inputs(net: UNet, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *net.image_shape), torch.randn(batch, net.embed_dim)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_numbers_are_those_of_the_plain_network(batch: int, scale_shift: bool) -> None:
    """Against float64: no further from it than ten times what float32's own rounding is."""
    net = network(scale_shift=scale_shift)
    x, emb = inputs(net, batch)
    truth = copy.deepcopy(net).double()(x.double(), emb.double())
    error = (prepared(net)(x, emb) - truth).abs().max()
    plain = (net(x, emb) - truth).abs().max()
    assert error < 10 * plain


def test_bfloat16_stays_bfloat16() -> None:
    """As near to float32 as the plain network in bfloat16."""
    net = network()
    x, emb = inputs(net)
    truth = net(x, emb)
    narrow, values = net.bfloat16(), (x.bfloat16(), emb.bfloat16())
    out = prepared(narrow)(*values)
    assert out.dtype == torch.bfloat16
    assert (out - truth).std() < 1.5 * (narrow(*values) - truth).std()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs", "side"), [(64, 96, 16), (96, 64, 20)])
def test_winograd_is_the_convolution(batch: int, inputs: int, outputs: int, side: int) -> None:
    """One image after the other, and together."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    x = torch.randn(batch, inputs, side, side + 4)
    assert module._is_large(conv, x)
    truth = copy.deepcopy(conv).double()(x.double())
    for form in (module._one_by_one, module._together):
        torch.testing.assert_close(form(conv)(x).double(), truth, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_enlarging_is_a_transposed_convolution(dtype: torch.dtype) -> None:
    layer = Enlarge(32, 48, 3, padding=1).to(dtype)
    x = torch.randn(2, 32, 4, 6, dtype=dtype)
    form = module._Conv(layer)
    for batch in (x, torch.cat([x, x])):  # also another number of images than the first time
        torch.testing.assert_close(form(batch), layer(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [4, 16, 32])
def test_norms_do_not_depend_on_the_layout(side: int, dtype: torch.dtype) -> None:
    norm = Norm(64).to(dtype)
    x = torch.randn(2, 64, side, side).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module._Norm(norm)(last), norm(x))


def test_the_network_is_left_as_it_is_and_shares_its_weights() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = prepared(net)
    assert twin is not net
    assert {id(p) for p in twin.parameters()} <= {id(p) for p in net.parameters()}
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_small_networks_and_other_dtypes_stay_plain() -> None:
    small = network(UNetConfig(channels=32, multipliers=(1, 1), blocks=1, heads=4))
    assert prepared(small) is small
    wide = network().double()
    assert prepared(wide) is wide
