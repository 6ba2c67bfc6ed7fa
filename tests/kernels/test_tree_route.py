"""Routing through one table: every node's probability, and the leaves that the runtime finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from treediffusion.config import TreeConfig
from treediffusion.errors import BackendUnavailableError, ShapeError
from treediffusion.forest import Forest
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.tree_route import (
    RouteTable,
    kernel,
    log_node_prob,
    op,
    reference,
    route_table,
    tree_route,
)
from treediffusion.kernels.tree_route.table import WAY
from treediffusion.nn.node_stack import NodeStack
from treediffusion.noise import Stream, uniform
from treediffusion.runtime.routing import leaf_probabilities, route
from treediffusion.topology import TreeTopology

pytestmark = pytest.mark.usefixtures("interpreted")


def full(depth: int) -> TreeTopology:
    return TreeTopology.of(
        "r" + format(k, "b")[1:] for k in range(1, 2 ** (depth + 1)) if k.bit_length() <= depth + 1
    )


TREES = {
    "root": TreeTopology(("r",)),
    "chain": TreeTopology.of(["r", "r1", "r10", "r100"]),
    "two": TreeTopology.initial(),
    "single children": TreeTopology.of(
        ["r", "r0", "r1", "r00", "r10", "r11", "r000", "r001", "r110", "r1101"]
    ),
    "spine": TreeTopology.of(
        [name for k in range(7) for name in ("r" + "1" * k + "0", "r" + "1" * (k + 1))] + ["r"]
    ),
    "full": full(7),
}
FOREST = Forest((TREES["two"], TREES["single children"], TREES["chain"]))


def a_case(
    tree: TreeTopology | Forest, device: torch.device, *, batch: int = 5
) -> tuple[Tensor, Tensor, RouteTable]:
    routers = len(tree.routers)
    generator = torch.Generator().manual_seed(routers)
    logit = 3 * torch.randn(batch, routers, generator=generator, dtype=torch.float64)
    drawn = [uniform(3, range(batch), stream=Stream.ROUTE, step=int(row)) for row in tree.routers]
    numbers = np.stack(drawn, axis=1) if drawn else np.zeros((batch, 0), np.float32)
    table = RouteTable(*(part.to(device) for part in route_table(tree)))
    return logit.float().double().to(device), torch.from_numpy(numbers).to(device), table


@pytest.mark.parametrize("tree", [*TREES.values(), FOREST], ids=[*TREES, "forest"])
def test_edges_are_the_turns_that_names_tell(tree: TreeTopology | Forest) -> None:
    table = route_table(tree)
    names = tree.names
    for router, row in enumerate(tree.routers):
        for edge, turn in ((table.left, "0"), (table.right, "1")):
            below = [float(name.startswith(names[row] + turn)) for name in names]
            assert edge[router].tolist() == below
    for row, turns in enumerate(table.nodes[:, WAY:].tolist()):
        for turn in filter(None, turns):
            router = names[tree.routers[abs(turn) - 1]]
            assert names[row].startswith(router + "01"[turn < 0])
    assert (table.left + table.right).sum() == (table.nodes[:, WAY:] != 0).sum()


@pytest.mark.parametrize(
    ("tree", "dtype"),
    [
        *((tree, torch.float32) for tree in (*TREES.values(), FOREST)),
        *((TREES["single children"], dtype) for dtype in (torch.float64, torch.bfloat16)),
    ],
)
def test_values_and_gradients_are_those_of_float64(
    tree: TreeTopology | Forest, dtype: torch.dtype, interpreted: torch.device
) -> None:
    exact, _, table = a_case(tree, interpreted)
    exact = exact.to(dtype).double().requires_grad_()
    logit = exact.detach().to(dtype).requires_grad_()
    want = reference.log_node_prob(exact, table.left, table.right)
    weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(1))
    (of_exact,) = torch.autograd.grad((want * weight.to(interpreted)).sum(), exact)
    got = log_node_prob(logit, table)
    (of_logit,) = torch.autograd.grad((got * weight.to(interpreted)).sum(), logit)
    error = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got.double(), want, rtol=error, atol=2 * error)
    error = max(error, 1.6e-2 if dtype == torch.bfloat16 else 0)
    torch.testing.assert_close(of_logit.double(), of_exact, rtol=error, atol=2 * error)


def test_the_stack_of_nodes_asks_for_it(interpreted: torch.device) -> None:
    """With its own buffers, which follow it to other devices and types."""
    tree = TREES["single children"]
    config = TreeConfig(latent_channels=2, channels=2, levels=5)
    stack = NodeStack(tree, config, image_channels=1, image_size=8).to(interpreted)
    logit, _, table = a_case(tree, interpreted)
    want = log_node_prob(logit.float(), table)
    assert torch.equal(stack.log_node_prob(logit.float()), want)
    assert torch.equal(stack.double().log_node_prob(logit), log_node_prob(logit, table))
    with use_kernels("reference"):
        plain = stack.float().log_node_prob(logit.float())
    torch.testing.assert_close(plain, want, rtol=1e-5, atol=1e-6)
    assert not {name for name in stack.state_dict() if "edge" in name or "route_" in name}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_leaves_and_their_probabilities_are_the_runtimes(
    tree: TreeTopology, interpreted: torch.device
) -> None:
    batch = 37 if tree.num_nodes < 20 else 17
    logit, u, table = a_case(tree, interpreted, batch=batch)
    log_prob, leaf = tree_route(logit.float(), u, table)
    p_left = torch.sigmoid(logit.float()).cpu().numpy()
    want = route(tree, p_left, seed=3, images=range(batch))
    assert leaf.tolist() == want.tolist()
    found = reference.sample_leaf(logit.float(), u, table.nodes, start=0)
    assert torch.equal(found, leaf)
    probability = log_prob.exp().cpu().numpy()[:, tree.leaves]
    np.testing.assert_allclose(probability, leaf_probabilities(tree, p_left), rtol=1e-4, atol=1e-6)


def test_turns_above_the_start_are_forced(interpreted: torch.device) -> None:
    tree = TREES["single children"]
    logit, u, table = a_case(tree, interpreted, batch=9)
    for node in tree.names:
        want = route(
            tree, torch.sigmoid(logit).float().cpu().numpy(), seed=3, images=range(9), node=node
        )
        start = tree.row(node)
        assert tree_route(logit.float(), u, table, start=start)[1].tolist() == want.tolist()
        found = reference.sample_leaf(logit.float(), u, table.nodes, start=start)
        assert found.tolist() == want.tolist()


def test_decided_routers_have_no_part_in_others(interpreted: torch.device) -> None:
    tree = TREES["single children"]
    logit, u, table = a_case(tree, interpreted)
    logit[:, 0], logit[0, 1] = torch.inf, -torch.inf
    log_prob, leaf = tree_route(logit.float(), u, table)
    for row, name in enumerate(tree.names):
        assert torch.equal(log_prob[1:, row].isinf(), torch.full((4,), name.startswith("r1")))
    assert not log_prob.isnan().any()
    assert not np.isin(tree.leaves[leaf.cpu()], [tree.row("r10"), tree.row("r1101")]).any()


def test_an_empty_batch_and_strange_strides(interpreted: torch.device) -> None:
    tree = TREES["single children"]
    logit, u, table = a_case(tree, interpreted)
    found = tree_route(logit[:0].float(), u[:0], table)
    assert found[0].shape == (0, tree.num_nodes)
    assert found[1].shape == (0,)
    want = tree_route(logit.float(), u, table)
    wide = torch.cat([logit.float(), logit.float()], dim=1)[:, : logit.shape[1]]
    for given in (wide, logit.float().t().contiguous().t()):
        got = tree_route(given, u.t().contiguous().t(), table)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_nothing_else_is_written(interpreted: torch.device) -> None:
    tree = TREES["single children"]
    logit, u, table = a_case(tree, interpreted)
    batch, rows = 5, tree.num_nodes
    log_prob = torch.full((batch + 2, rows), torch.nan, device=interpreted)
    leaf = torch.full((batch + 2,), -9, device=interpreted)
    op._launch(logit.float(), u, table.nodes, 0, log_prob[1:-1], leaf[1:-1])
    assert log_prob[1:-1].isfinite().all()
    assert (leaf[1:-1] >= 0).all()
    assert log_prob[[0, -1]].isnan().all()
    assert leaf[[0, -1]].tolist() == [-9, -9]


def test_compilers_know_the_operations(interpreted: torch.device) -> None:
    logit, u, table = a_case(TREES["single children"], interpreted)
    logit = logit.float().requires_grad_()
    checked: list[tuple[Any, tuple[Any, ...]]] = [
        (op._log_node_prob, (logit, *table)),
        (op._tree_route, (logit, u, *table, 0)),
        (op._backward, (log_node_prob(logit, table).detach(), logit.detach(), *table[1:])),
    ]
    for operation, arguments in checked:
        for result in torch.library.opcheck(operation, arguments).values():
            assert result == "SUCCESS"
    compiled = torch.compile(tree_route, fullgraph=True, backend="aot_eager")
    got, want = compiled(logit, u, table), tree_route(logit, u, table)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    gradients = (torch.autograd.grad(found[0].sum(), logit)[0] for found in (got, want))
    assert torch.equal(*gradients)


class Route(torch.nn.Module):
    def __init__(self, table: RouteTable) -> None:
        super().__init__()
        self.table = table

    def forward(self, logit: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return tree_route(logit, u, self.table)


@pytest.mark.parametrize("tree", ["chain", "single children"])
def test_it_exports_as_the_reference_or_if_forced_as_one_operation(
    tree: str, interpreted: torch.device
) -> None:
    logit, u, table = a_case(TREES[tree], interpreted)
    case = (logit.float(), u)
    forced = torch.export.export(Route(table), case)
    with use_kernels("auto"):
        plain = torch.export.export(Route(table), case)
    for program, expected in ((forced, True), (plain, False)):
        targets = [str(node.target) for node in program.graph.nodes]
        assert any("treediffusion" in target for target in targets) == expected
        log_prob, leaf = program.module()(*case)
        want = tree_route(*case, table)
        torch.testing.assert_close(log_prob, want[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(leaf, want[1])


def test_what_does_not_fit_is_refused(interpreted: torch.device) -> None:
    logit, u, table = a_case(TREES["two"], interpreted)
    with pytest.raises(ShapeError, match="one per router"):
        log_node_prob(logit[:, :0], table)
    with pytest.raises(ShapeError, match="uniform"):
        tree_route(logit, u[:2], table)
    with pytest.raises(ShapeError, match="start"):
        tree_route(logit, u, table, start=3)
    with pytest.raises(BackendUnavailableError, match="int64"):
        log_node_prob(logit.long(), table)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_it_compiles(compiled: Callable[..., dict[str, dict[str, Any]]], ones: bool) -> None:
    report = compiled("treediffusion.kernels.tree_route.kernel", arch=90, ones=ones)
    assert len(report) == len(kernel.VARIANTS)
