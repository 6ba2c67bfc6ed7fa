"""The moving averages against their closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from treediffusion.errors import CheckpointError, ConfigError
from treediffusion.nn.ema import Ema, average_of, prefix


def network() -> nn.Sequential:
    """Weights, running statistics, and a mode that matters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()


def test_equals_the_geometric_sum_of_all_weights() -> None:
    """s_n = d^n w_0 + (1 - d) sum_k d^(n - k) w_k."""
    net, decay, steps = network(), 0.9, 5
    ema = Ema(net, decay)
    expected = [decay**steps * weight.detach().clone() for weight in net.parameters()]
    for step in range(1, steps + 1):
        for total, weight in zip(expected, net.parameters(), strict=True):
            nn.init.normal_(weight)
            total += (1.0 - decay) * decay ** (steps - step) * weight.detach()
        ema.update()
    for kept, total in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(kept, total, rtol=1e-12, atol=1e-13)


def test_several_decays_are_as_many_averages() -> None:
    """Of weights that stay at w from a start at w_0: s_n = w + d^n (w_0 - w), for every d."""
    net, steps = network(), 7
    ema = Ema(net, 0.9, also=(0.5, 0.0, 0.99))
    begin = [weight.detach().clone() for weight in net.parameters()]
    for weight in net.parameters():
        nn.init.normal_(weight)
    for _ in range(steps):
        ema.update()
    for decay in (0.9, 0.5, 0.0, 0.99):
        kept = ema.averaged(decay).parameters()
        for average, first, last in zip(kept, begin, net.parameters(), strict=True):
            expected = last + decay**steps * (first - last)
            torch.testing.assert_close(average.data, expected.data, rtol=1e-12, atol=1e-13)
    assert ema.averaged(0.9) is ema.module
    assert all(map(torch.equal, ema.averaged(0.0).parameters(), net.parameters()))


def test_a_decay_named_twice_is_one_average() -> None:
    assert len(Ema(network(), 0.9, also=(0.9, 0.9)).state_dict()) == len(network().state_dict())


def test_another_decay_is_a_mistake_that_names_those_kept() -> None:
    with pytest.raises(ConfigError, match=r"one of 0\.9, 0\.99") as caught:
        Ema(network(), 0.9, also=(0.99,)).averaged(0.999)
    assert "ema_also" in caught.value.hint


def test_begins_as_an_independent_copy_that_evaluates() -> None:
    net = network()
    ema = Ema(net, 0.9)
    before = [weight.clone() for weight in ema.module.parameters()]
    assert all(map(torch.equal, before, net.parameters()))
    for weight in net.parameters():
        nn.init.normal_(weight)
    assert all(map(torch.equal, before, ema.module.parameters()))
    assert net.training
    assert not any(module.training for module in ema.module.modules())
    assert not any(weight.requires_grad for weight in ema.module.parameters())
    assert all(weight.requires_grad for weight in net.parameters())


def test_constant_weights_are_a_fixed_point() -> None:
    net = network()
    ema = Ema(net, 0.9999)
    ema.update()
    assert all(map(torch.equal, ema.module.parameters(), net.parameters()))


def test_buffers_are_copied_not_averaged() -> None:
    net = network()
    ema = Ema(net, 0.9)
    net(torch.randn(8, 3, dtype=torch.float64))
    ema.update()
    for kept, fresh in zip(ema.module.buffers(), net.buffers(), strict=True):
        assert torch.equal(kept, fresh)
        assert kept.data_ptr() != fresh.data_ptr()


def test_stored_averages_continue_exactly() -> None:
    """The main one goes by the same names whether others are kept or not."""
    net = network()
    ema = Ema(net, 0.9, also=(0.99, 0.5))
    nn.init.normal_(net[0].weight)
    ema.update()
    stored = {name: value.clone() for name, value in ema.state_dict().items()}
    names = list(net.state_dict())
    assert list(stored) == [
        begin + name for begin in ("ema.", "ema_0.99.", "ema_0.5.") for name in names
    ]
    resumed, alone = Ema(net, 0.9, also=(0.99, 0.5)), Ema(net, 0.9)
    for average in (resumed, alone):
        average.load_state_dict(stored | {"model.bias": torch.ones(1)})
    for average in (ema, resumed, alone):
        average.update()
    assert all(map(torch.equal, ema.module.parameters(), alone.module.parameters()))
    for decay in (0.9, 0.99, 0.5):
        mine, theirs = (each.averaged(decay).parameters() for each in (ema, resumed))
        assert all(map(torch.equal, mine, theirs))


def test_an_average_that_was_not_stored_is_an_error() -> None:
    stored = Ema(network(), 0.9).state_dict()
    with pytest.raises(CheckpointError, match="no such tensors"):
        Ema(network(), 0.9, also=(0.99,)).load_state_dict(stored)
    assert average_of(stored, prefix(0.9, main=True)).keys() == network().state_dict().keys()
