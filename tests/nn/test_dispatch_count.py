"""How many operations a training step of a tree dispatches, which is what it costs on a GPU.

Counted are operations that do something: views, and tensors made without being filled, launch
nothing. The published networks for MNIST, in a tree of 19 nodes; the forms of convolutions are
those that a GPU gets.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from treediffusion.config import TreeConfig
from treediffusion.kernels import choice
from treediffusion.kernels.stacked_conv import op
from treediffusion.nn import stacked
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

LIMITS = {"reference": (410, 495), "triton": (300, 385)}
"""Forward and backward."""
GROWN = ("r0", "r1", "r00", "r01", "r10", "r11", "r000", "r110")
LAUNCHES_NOTHING = {"_unsafe_view", "lift_fresh", "empty", "empty_like", "new_empty"}
READS_BACK = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in LAUNCHES_NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_step(tree: TreeVAE, images: torch.Tensor) -> tuple[Counter[str], Counter[str]]:
    """Operations of the forward pass with the loss, and of the backward pass."""
    tree.zero_grad()  # or gradients would be added to those of another test
    with Counting() as forward:
        found = tree.infer(images)
        loss = tree_elbo(tree.nodes, found, images, likelihood="bernoulli").loss(1.0)
    with Counting() as backward:
        torch.autograd.backward(loss)
    return forward.counts, backward.counts


@pytest.fixture(scope="module")
def tree() -> TreeVAE:
    topology = TreeTopology.initial()
    for leaf in GROWN:
        topology = topology.grow(leaf)
    return TreeVAE(TreeConfig(), topology, image_channels=1, image_size=28)


@pytest.mark.parametrize("form", ["reference", "triton"])
def test_a_step_stays_within_its_limits(
    tree: TreeVAE, form: choice.Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager, without the optimizer, in the forms that a GPU gets; the figures are printed."""
    if form == "triton":
        pytest.importorskip("triton")
        choice._unable.cache_clear()  # a test may have asked while the environment was another
    choose = op.choose_form
    monkeypatch.setattr(op, "choose_form", lambda _, *sizes, **more: choose("cuda", *sizes, **more))
    monkeypatch.setattr(stacked, "SMALL_MAP", 0)
    with choice.use_kernels(form):
        forward, backward = count_step(tree, torch.rand(2, 1, 28, 28))
    for name, counts in (("forward", forward), ("backward", backward)):
        print(f"\n{name}: {counts.total()}", counts.most_common(12))
    assert forward.total() <= LIMITS[form][0]
    assert backward.total() <= LIMITS[form][1]


def test_a_step_waits_for_no_value(tree: TreeVAE) -> None:
    """Nothing is read back from the device, by the program or by an operation."""
    forward, backward = count_step(tree, torch.rand(2, 1, 28, 28))
    assert not READS_BACK & (forward.keys() | backward.keys())


def test_the_count_is_of_operations_that_do_something() -> None:
    x = torch.ones(2, 3)
    with Counting() as counting:
        y = x.T.unsqueeze(0)[..., 0].detach()
        y = torch.empty(3).copy_(y[0]) + 1
        y.sum().item()
    assert counting.counts == {"copy_": 1, "add": 1, "sum": 1, "_local_scalar_dense": 1}
