"""The moving average against its closed form."""

from __future__ import annotations

import torch
from torch import nn
from treediffusion.nn.ema import Ema


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


def test_a_stored_average_continues_exactly() -> None:
    net = network()
    ema = Ema(net, 0.9)
    nn.init.normal_(net[0].weight)
    ema.update()
    stored = {name: value.clone() for name, value in ema.state_dict().items()}
    assert stored.keys() == net.state_dict().keys()
    resumed = Ema(net, 0.9)
    resumed.load_state_dict(stored)
    for average in (ema, resumed):
        average.update()
    assert all(map(torch.equal, ema.module.parameters(), resumed.module.parameters()))
