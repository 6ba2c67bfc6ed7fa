"""All encoders and decoders in whole trees: against plain layers, and the published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.node_by_node import NodeByNodeTreeVAE
from torch.nn.utils import parametrize
from treediffusion.config import TreeConfig, load_preset
from treediffusion.errors import ConfigError
from treediffusion.nn.stacked import StackedNorm
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

TREE = TreeTopology.initial().grow("r1").grow("r10").prune("r0")
"""A single child of the root, and leaves at two depths, just above the largest one."""
LEVELS = 4
BATCH = 5

FLAT = {"latent_size": 1, "activation": "leaky_relu"}
KINDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "cnn1, relu": ({"activation": "relu"}, 1, 12),
    "cnn2": ({"codec": "cnn2", "residual": True}, 3, 8),
    "cnn2 from 32 pixels": ({"codec": "cnn2", "latent_size": 4}, 3, 32),
    "cnn2 without learned resizing": ({"codec": "cnn2", "resize": "fixed"}, 3, 8),
    "mlp": ({"codec": "mlp", **FLAT}, 7, 1),
    "mlp_cnn1": ({"codec": "mlp_cnn1", "channels": 32, **FLAT}, 1, 28),
    "mlp_omniglot": ({"codec": "mlp_omniglot", "channels": 128, **FLAT}, 1, 28),
    "mlp_cnn2": ({"codec": "mlp_cnn2", "encoder_channels": 4096, **FLAT}, 3, 32),
}


def make_tree(kind: str) -> TreeVAE:
    """A float64 tree whose norms have weights and statistics of their own."""
    settings, channels, size = KINDS[kind]
    config = TreeConfig(
        **{"latent_channels": 3, "channels": 16, "levels": LEVELS, "max_leaves": 4} | settings
    )
    torch.manual_seed(0)
    tree = TreeVAE(config, TREE, image_channels=channels, image_size=size).double()
    for module in tree.modules():
        if isinstance(module, StackedNorm | torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.3)
    return tree


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_equals_plain_layers(kind: str, training: bool) -> None:
    """Loss, every gradient and every running statistic, on a pruned tree with its deepest nodes."""
    tree = make_tree(kind).train(training)
    plain = NodeByNodeTreeVAE.from_stacked(tree)
    batch = 2 if kind == "mlp_cnn2" else BATCH  # the largest by far
    images = torch.rand(batch, *tree.image_shape, dtype=torch.float64)
    noise = torch.randn(batch, TREE.num_nodes, *tree.latent_shape, dtype=torch.float64)
    found = tree.infer(images, noise=noise)
    ours = tree_elbo(tree.nodes, found, images, likelihood="bernoulli").loss(0.6)
    truth = plain.loss(images, noise, 0.6)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    ours.backward()
    truth.backward()
    stacked = dict(tree.named_parameters()) | dict(tree.named_buffers())
    left = {name: tensor.numel() for name, tensor in tree.state_dict().items()}
    for tensor, name, part in plain.links():
        left[name] -= tensor.numel()
        theirs = stacked[name]
        torch.testing.assert_close(part(theirs.detach()), tensor.detach(), rtol=1e-9, atol=1e-9)
        if tensor.requires_grad:
            assert theirs.grad is not None, name
            scale = float(tensor.grad.abs().max()) + 1e-6
            torch.testing.assert_close(
                part(theirs.grad), tensor.grad, rtol=1e-7, atol=1e-9 * max(scale, 1)
            )
    assert not any(count for name, count in left.items() if "num_batches" not in name)


@pytest.mark.parametrize("kind", KINDS)
def test_growing_and_pruning_keep_every_row(kind: str) -> None:
    """Also where the deepest nodes have a stack of their own."""
    tree = make_tree(kind).eval()
    leaf = "r11"
    back = tree.grow(leaf, tree.new_leaves(leaf).double()).prune("r110").prune("r111")
    again = tree.prune("r11")
    assert back.topology == again.topology
    for (name, ours), truth in zip(
        back.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, truth), name


def test_leaves_at_full_depth_read_the_encoder_itself() -> None:
    """Their stack has the encoder's width; the same networks, attached, give the same samples."""
    tree = make_tree("mlp_cnn2").eval()
    children = tree.new_leaves("r11").double().eval()
    grown = tree.grow("r11", children)
    assert tree.new_leaves("r1").heads.wide is None
    assert children.heads.wide is not None
    assert children.heads.wide.weight.shape[2] == 4096
    images = torch.rand(BATCH, 3, 32, 32, dtype=torch.float64)
    noise = torch.randn(BATCH, grown.topology.num_nodes, *tree.latent_shape, dtype=torch.float64)
    found = grown.infer(images, noise=noise)
    row = grown.topology.row("r11")
    rows = [grown.topology.row(name) for name in ("r110", "r111")]
    below = children(found.nodes.z[:, [row]], found.features[:, None, 2:4], noise=noise[:, rows])
    torch.testing.assert_close(below.z[:, 1:], found.nodes.z[:, rows], rtol=1e-12, atol=1e-12)


PUBLISHED = {
    "paper-mnist": (1, 28, 396_118, 1_017_206),
    "paper-fashion": (1, 28, 396_118, 1_017_206),
    "paper-cifar10": (3, 32, 5_446_286, 14_258_590),
    "paper-cubicc": (3, 64, 5_803_292, 15_184_548),
    "paper-celeba": (3, 64, 5_803_292, 15_184_548),
    "treevae-mnist": (1, 28, 181_324, 749_604),
    "treevae-fashion": (1, 28, 181_324, 749_604),
    "treevae-omniglot5": (1, 28, 2_137_892, 7_929_148),
    "treevae-newsgroups20": (2000, 1, 4_527_098, 16_622_474),
    "treevae-cifar10": (3, 32, 10_975_016, 27_501_136),
    "treevae-cifar100": (3, 32, 10_975_016, 27_501_136),
    "treevae-celeba": (3, 64, 14_518_568, 40_494_160),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    """Less what the published code makes and never reads.

    That is the bottom-up blocks' heads of mean and variance, and each embedding's second head.
    """
    channels, size, *published = PUBLISHED[name]
    config = load_preset(name).tree
    taps, bias = (1, 1) if config.is_mlp else (9, 0)
    unused = (config.levels - 1) * 2 * config.latent_channels * (config.channels * taps + bias)
    if config.contrastive.weight:
        hidden, embedding = (512, 64) if config.is_mlp else (128, 10)
        unused += config.levels * (hidden + 1) * embedding
    topology = TreeTopology.initial()
    for leaves, count in zip((2, 10), published, strict=True):
        while topology.num_leaves < leaves:
            topology = topology.grow(topology.leaf_names[0])
        with torch.device("meta"):
            tree = TreeVAE(config, topology, image_channels=channels, image_size=size)
        assert sum(weight.numel() for weight in tree.parameters()) == count - unused


def test_spectral_norms_are_where_the_published_code_has_them() -> None:
    """The encoder and the first two convolutions of a bottom-up block; every norm is then one."""
    config = TreeConfig(codec="cnn2", channels=8, latent_channels=4, spectral_norm=True)
    tree = TreeVAE(config, TREE, image_channels=3, image_size=8)
    images = torch.rand(BATCH, 3, 8, 8)
    for _ in range(60):  # each pass is a step of the power iteration
        tree.bottom_up(images)
    normed = [name for name, part in tree.named_modules() if parametrize.is_parametrized(part)]
    assert all(name.startswith("bottom_up.") for name in normed)
    assert [n for n in normed if n.startswith("bottom_up.blocks.0")] == [
        "bottom_up.blocks.0.0",
        "bottom_up.blocks.0.1",
    ]
    for name in normed:
        weight = tree.get_submodule(name).weight.detach()
        matrix = (weight[0] if weight.dim() == 5 else weight).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1, abs=1e-3), name


@pytest.mark.parametrize(
    ("settings", "channels", "size", "what"),
    [
        ({"codec": "cnn2", "latent_size": 4}, 3, 28, "power of two"),
        ({"codec": "mlp", **FLAT}, 1, 28, "vectors"),
        ({"codec": "mlp_cnn1", "channels": 32, **FLAT}, 1, 32, "28 pixels"),
        ({"codec": "mlp_omniglot", "channels": 64, **FLAT}, 1, 28, "128 for mlp_omniglot"),
        ({"codec": "mlp_cnn2", **FLAT}, 3, 32, "4096"),
        ({"codec": "mlp_cnn2", "encoder_channels": 4096, **FLAT}, 3, 128, "at most 64"),
    ],
)
def test_images_that_a_codec_cannot_read_are_refused(
    settings: dict[str, Any], channels: int, size: int, what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        TreeVAE(TreeConfig(**settings), TREE, image_channels=channels, image_size=size)
