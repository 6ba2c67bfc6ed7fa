"""A folded tree computes what the tree computes, on every kind of tree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import IRREGULAR, _perturb, tiny_model
from treediffusion.config import TreeConfig
from treediffusion.export.fold import FoldedConv, fold
from treediffusion.export.fold_residual import GroupedConv
from treediffusion.export.graphs import Decode
from treediffusion.nn.stacked import StackedConv, StackedNorm
from treediffusion.nn.tree_vae import TreeVAE
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


RESIDUAL: dict[str, dict[str, Any]] = {
    "learned": {"codec": "cnn2", "latent_size": 4, "latent_channels": 32, "channels": 16},
    "fixed": {"codec": "cnn2", "resize": "fixed", "residual": True, "likelihood": "gaussian"},
    "spectral": {"codec": "cnn2", "spectral_norm": True},
    "mlp": {"codec": "mlp_cnn2", "latent_size": 1, "channels": 24, "encoder_channels": 2048},
}


def residual_tree(kind: str, topology: TreeTopology) -> TreeVAE:
    config = TreeConfig(levels=4, max_leaves=8, **RESIDUAL[kind])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tree = TreeVAE(config, topology, image_channels=3, image_size=16)
        _perturb(tree, std=0.1)
    return tree.eval()


@pytest.mark.parametrize("topology", [IRREGULAR, TreeTopology.initial()])
@pytest.mark.parametrize("kind", RESIDUAL)
def test_residual_codecs_fold_whole(kind: str, topology: TreeTopology) -> None:
    """The same numbers, from plain convolutions in as many groups as there are leaves."""
    tree = residual_tree(kind, topology)
    folded = fold(tree)
    images, noise = torch.rand(3, 3, 16, 16), torch.randn(3, topology.num_nodes, *tree.latent_shape)
    with torch.no_grad():
        for mine, theirs in (
            (folded.assign(images), tree.assign(images)),
            (folded.generate(noise).z, tree.generate(noise).z),
            (folded.infer(images, noise=noise).nodes.z, tree.infer(images, noise=noise).nodes.z),
            (folded.decode(noise), tree.decode(noise)),
        ):
            assert theirs.std() > 1e-3
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    decoders = list(folded.nodes.decoders.modules())
    groups = {m.groups or len(m.weight) for m in decoders if isinstance(m, GroupedConv)}
    assert groups == {topology.num_leaves}
    assert not [m for m in decoders if isinstance(m, StackedConv | StackedNorm)]


def test_folding_leaves_the_spectral_norms_of_the_tree_itself() -> None:
    """A parametrised weight belongs to the layer's class, which a copy of the layer shares."""
    tree = residual_tree("spectral", TreeTopology.initial())
    images = torch.rand(2, 3, 16, 16)
    before = tree.assign(images)
    fold(tree)
    assert torch.equal(tree.assign(images), before)


def test_a_graph_has_no_more_operations_for_more_leaves() -> None:
    """Leaves go together in a graph, although a CPU takes them one by one elsewhere."""
    counts = []
    for names in (["r", "r0", "r1"], ["r", "r0", "r1", "r00", "r01", "r10", "r11"]):
        tree = fold(residual_tree("learned", TreeTopology.of(names)))
        z = torch.zeros(2, len(names), *tree.latent_shape)
        decode = Decode(tree)
        counts.append(len(torch.export.export(decode, (z,), strict=False).graph.nodes))
    assert counts[0] == counts[1]


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
