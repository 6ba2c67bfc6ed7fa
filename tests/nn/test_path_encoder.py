"""The path encoder against the sum that it abbreviates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.nn.path_encoder import PathEncoder

NODES = torch.tensor([[0, 1, 4, -1], [0, 2, -1, -1], [0, 1, 3, 8], [-1, -1, -1, -1]])


@pytest.fixture
def encoder() -> PathEncoder:
    torch.manual_seed(0)
    return PathEncoder(5, 16).double()


@pytest.fixture
def z_path() -> Tensor:
    return torch.randn(4, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def naive(encoder: PathEncoder, z_path: Tensor, nodes: Tensor) -> Tensor:
    """The sum over the path of f_embed(z_i) + f_node(i), slot by slot."""
    rows = []
    for latents, ids in zip(z_path, nodes.tolist(), strict=True):
        y = torch.zeros(16, dtype=z_path.dtype)
        for z, node in zip(latents, ids, strict=True):
            if node >= 0:
                number = torch.tensor([node], dtype=z_path.dtype)
                y = y + encoder.embed_out(F.silu(encoder.embed_in(z)))
                y = y + encoder.node_out(F.silu(encoder.node_in(number)))
        rows.append(y)
    return torch.stack(rows)


def test_equals_the_sum_of_both_mlps_over_the_path(encoder: PathEncoder, z_path: Tensor) -> None:
    """Values and gradients, to float64 rounding; the empty path gives zero."""
    out, expected = encoder(z_path, NODES), naive(encoder, z_path, NODES)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(out[3], torch.zeros_like(out[3]))
    weights = list(encoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_absent_slots_count_for_nothing(encoder: PathEncoder, z_path: Tensor, junk: float) -> None:
    """Whatever they hold, neither values nor any gradient change."""
    spoilt = z_path.masked_fill((NODES < 0)[:, :, None], junk).requires_grad_()
    clean = z_path.clone().requires_grad_()
    out, expected = encoder(spoilt, NODES), encoder(clean, NODES)
    assert torch.equal(out, expected)
    ours = torch.autograd.grad(out.square().sum(), [spoilt, *encoder.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [clean, *encoder.parameters()])
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got, want)


def test_the_order_of_slots_does_not_matter(encoder: PathEncoder, z_path: Tensor) -> None:
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(z_path[:, order], NODES[:, order]), encoder(z_path, NODES))


def test_more_absent_slots_change_nothing(encoder: PathEncoder, z_path: Tensor) -> None:
    wider = F.pad(z_path, (0, 0, 0, 3), value=7.0)
    out = encoder(wider, F.pad(NODES, (0, 3), value=-1))
    torch.testing.assert_close(out, encoder(z_path, NODES))


def test_the_same_latents_at_other_nodes_are_another_condition(
    encoder: PathEncoder, z_path: Tensor
) -> None:
    moved = torch.where(NODES > 0, NODES + 1, NODES)
    difference = encoder(z_path, moved) - encoder(z_path, NODES)
    assert (difference[:3].abs().amax(dim=1) > 1e-3).all()
