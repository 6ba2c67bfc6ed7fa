"""A folded tree computes what the tree computes, on every kind of tree."""

from __future__ import annotations

import pytest
import torch
from support.models import IRREGULAR, tiny_model
from treediffusion.export.fold import FoldedConv, fold
from treediffusion.nn.stacked import StackedConv
from treediffusion.topology import TreeTopology


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("topology", [IRREGULAR, TreeTopology.initial(), TreeTopology.of("r")])
def test_folded_equals_unfolded(topology: TreeTopology, size: int) -> None:
    """Assignments, prior and posterior samples, routers and images, for the same noise."""
    tree = tiny_model(topology, image_size=size).tree
    folded = fold(tree)
    images = torch.rand(3, 1, size, size)
    noise = torch.randn(3, topology.num_nodes, *tree.latent_shape)
    with torch.no_grad():
        for mine, theirs in (
            (folded.assign(images), tree.assign(images)),
            (folded.generate(noise).z, tree.generate(noise).z),
            (folded.generate(noise).prior_logit, tree.generate(noise).prior_logit),
            (folded.infer(images, noise=noise).nodes.z, tree.infer(images, noise=noise).nodes.z),
            (folded.decode(noise), tree.decode(noise)),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_both_forms_are_there() -> None:
    """28x28 decoders are too large for matrices, 2x2 latents are not."""
    kinds = {m.is_matrix for m in fold(tiny_model(image_size=28).tree).modules()
             if isinstance(m, FoldedConv)}  # fmt: skip
    assert kinds == {True, False}


@torch.no_grad()
def test_a_matrix_is_never_large() -> None:
    """64 -> 64 channels at 8x8 would be 67 MB a node, and 4 MB at 4x4."""
    conv = StackedConv(2, 64, 64)
    for side, is_matrix in ((2, True), (4, False), (8, False)):
        folded = FoldedConv(conv, None, side)
        assert folded.is_matrix is is_matrix
        x = torch.randn(2, 2, 64, side, side)
        torch.testing.assert_close(folded(x), conv(x), rtol=1e-4, atol=1e-4)


def test_the_tree_itself_is_left_alone() -> None:
    tree = tiny_model().tree
    before = {name: tensor.clone() for name, tensor in tree.state_dict().items()}
    fold(tree)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tree.state_dict().items())
