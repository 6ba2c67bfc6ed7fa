"""Cases of the tree: all nodes of a level at once, against one node after another.

The baseline is the tests' own reference, `NodeByNodeTreeVAE`: the same arithmetic and weights, and
none of the published code's detours (dead heads, read-backs of the loss). Both sides get the same
images and the same noise, so drawing random numbers is in neither time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases.pair import Pair, prepare
from support.node_by_node import NodeByNodeTreeVAE
from torch import Tensor, nn
from treediffusion.config import TreeConfig, load_preset
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

GROWN = ("r0", "r1", "r00", "r01", "r10", "r11", "r000", "r110")
"""Nodes that were split, in order: 10 leaves at depths 3 and 4, mean 3.4, as trained trees have."""


@dataclass(frozen=True)
class Setting:
    """A tree's settings and the images it sees.

    Attributes:
        tree: the settings.
        image_size: H and W of grey images.
        batch: images in a step.
    """

    tree: TreeConfig
    image_size: int
    batch: int


def tiny() -> Setting:
    """The preset of the small digits."""
    config = load_preset("tiny").tree
    return Setting(config, image_size=8, batch=config.batch_size)


def mnist() -> Setting:
    """The published networks for MNIST, in a batch that two cores can bear."""
    return Setting(TreeConfig(), image_size=28, batch=64)


def ten_leaves() -> TreeTopology:
    """The tree of every case."""
    topology = TreeTopology.initial()
    for leaf in GROWN:
        topology = topology.grow(leaf)
    return topology


def step(setting: Setting) -> Pair:
    """A whole training step: forward, loss, backward, Adam."""
    prepare()
    tree, reference = _trees(setting)
    images, noise = _inputs(tree, setting)

    def our_loss() -> Tensor:
        found = tree.infer(images, noise=noise)
        terms = tree_elbo(tree.nodes, found, images, likelihood=setting.tree.likelihood)
        return terms.loss(1.0)

    return Pair(
        ours=_training(tree, our_loss, setting.tree),
        baseline=_training(reference, lambda: reference.loss(images, noise, 1.0), setting.tree),
    )


def assign(setting: Setting) -> Pair:
    """Leaf probabilities of a batch: what they need, against the whole forward pass."""
    prepare()
    tree, reference = _trees(setting)
    tree.eval()
    reference.eval()
    images, noise = _inputs(tree, setting)
    return Pair(
        ours=torch.inference_mode()(lambda: tree.assign(images)),
        baseline=torch.inference_mode()(lambda: reference(images, noise)),
    )


def _trees(setting: Setting) -> tuple[TreeVAE, NodeByNodeTreeVAE]:
    tree = TreeVAE(setting.tree, ten_leaves(), image_channels=1, image_size=setting.image_size)
    return tree, NodeByNodeTreeVAE.from_stacked(tree)


def _inputs(tree: TreeVAE, setting: Setting) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] grey values in 0..1, and [B, N, Z, R, R] noise."""
    images = torch.rand(setting.batch, *tree.image_shape)
    return images, torch.randn(setting.batch, tree.topology.num_nodes, *tree.latent_shape)


def _training(
    model: nn.Module, loss: Callable[[], Tensor], config: TreeConfig
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        optimizer.step()

    return step
