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
from torch import Tensor
from torch.optim import Optimizer
from treediffusion.config import ContrastiveConfig, TreeConfig, load_preset
from treediffusion.nn.grove import Grove
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train.optimizer import make_adam

GROWN = ("r0", "r1", "r00", "r01", "r10", "r11", "r000", "r110")
"""Nodes that were split, in order: 10 leaves at depths 3 and 4, mean 3.4, as trained trees have."""


@dataclass(frozen=True)
class Setting:
    """A tree's settings and the images it sees.

    Attributes:
        tree: the settings.
        image_size: H and W.
        batch: images in a step.
        image_channels: C.
    """

    tree: TreeConfig
    image_size: int
    batch: int
    image_channels: int = 1


def tiny() -> Setting:
    """The preset of the small digits."""
    config = load_preset("tiny").tree
    return Setting(config, image_size=8, batch=config.batch_size)


def mnist(batch: int) -> Setting:
    """The published networks for MNIST, whose own batch is 256."""
    return Setting(TreeConfig(), image_size=28, batch=batch)


def cifar(batch: int) -> Setting:
    """The published networks for CIFAR-10 and their ELBO, whose own batch is 256 views.

    Without the contrastive terms, which both sides would have alike.
    """
    still = {"augmentation": "none", "contrastive": ContrastiveConfig()}
    config = load_preset("paper-cifar10").tree.model_copy(update=still)
    return Setting(config, image_size=32, batch=batch, image_channels=3)


def ten_leaves() -> TreeTopology:
    """The tree of every case."""
    topology = TreeTopology.initial()
    for leaf in GROWN:
        topology = topology.grow(leaf)
    return topology


def step(setting: Setting) -> Pair:
    """A whole training step: forward, loss, backward, Adam."""
    prepare()
    tree, reference = trees(setting)
    images, noise = _inputs(tree, setting)

    def our_loss() -> Tensor:
        found = tree.infer(images, noise=noise)
        terms = tree_elbo(tree.nodes, found, images, likelihood=setting.tree.likelihood)
        return terms.loss(1.0)

    rate, decay = setting.tree.learning_rate, setting.tree.weight_decay
    return Pair(
        ours=_training(our_loss, make_adam(tree.parameters(), rate, weight_decay=decay)),
        baseline=_training(
            lambda: reference.loss(images, noise, 1.0),
            torch.optim.Adam(reference.parameters(), rate, weight_decay=decay),
        ),
    )


def joined(setting: Setting, count: int) -> Pair:
    """A training step of several trees joined, against a step of each, one after another."""
    prepare()
    apart = [trees(setting)[0] for _ in range(count)]
    grove = Grove(apart)
    images, noise = _inputs(apart[0], setting)
    many = images[:, None].expand(-1, count, -1, -1, -1)
    shape = len(images), grove.nodes.topology.num_nodes, *apart[0].latent_shape
    all_noise = torch.randn(shape)
    likelihood, rate = setting.tree.likelihood, setting.tree.learning_rate

    def joined_loss() -> Tensor:
        found = grove.infer_from(grove.bottom_up(many), noise=all_noise)
        return tree_elbo(grove.nodes, found, many, likelihood=likelihood).loss(1.0)

    def loss_of(tree: TreeVAE) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            found = tree.infer(images, noise=noise)
            return tree_elbo(tree.nodes, found, images, likelihood=likelihood).loss(1.0)

        return loss

    steps = [_training(loss_of(tree), make_adam(tree.parameters(), rate)) for tree in apart]
    return Pair(
        ours=_training(joined_loss, make_adam(grove.parameters(), rate)),
        baseline=lambda: [step() for step in steps],
    )


def assign(setting: Setting) -> Pair:
    """Leaf probabilities of a batch: what they need, against the whole forward pass."""
    prepare()
    tree, reference = trees(setting)
    tree.eval()
    reference.eval()
    images, noise = _inputs(tree, setting)
    return Pair(
        ours=torch.inference_mode()(lambda: tree.assign(images)),
        baseline=torch.inference_mode()(lambda: reference(images, noise)),
    )


def draw(setting: Setting) -> Pair:
    """Path latents of a batch for the denoiser: ours from cached maps, against a whole pass.

    Both then draw a leaf for each image, and pick the latents on its path.
    """
    prepare()
    tree, reference = trees(setting)
    tree.eval()
    reference.eval()
    images, noise = _inputs(tree, setting)
    with torch.inference_mode():
        features = tree.bottom_up(images)
        leaf_prob = tree.assign(images).exp()
    paths = torch.from_numpy(tree.topology.paths).long()
    rows = torch.arange(len(images))[:, None]

    def ours() -> Tensor:
        z = tree.infer(features=features, noise=noise).nodes.z
        leaf = torch.multinomial(leaf_prob, 1)[:, 0]
        return z[rows, paths[leaf].clamp(min=0)]

    def baseline() -> list[list[Tensor]]:
        found = reference(images, noise)
        names = tree.topology.leaf_names
        prob = torch.stack([found.prob[name] for name in names], dim=1)
        leaf = torch.multinomial(prob, 1)[:, 0].tolist()
        return [
            [found.z[names[k][: depth + 1]][row] for depth in range(len(names[k]))]
            for row, k in enumerate(leaf)
        ]

    return Pair(ours=torch.inference_mode()(ours), baseline=torch.inference_mode()(baseline))


def trees(setting: Setting) -> tuple[TreeVAE, NodeByNodeTreeVAE]:
    """Ours, and the same weights node by node."""
    channels, size = setting.image_channels, setting.image_size
    tree = TreeVAE(setting.tree, ten_leaves(), image_channels=channels, image_size=size)
    return tree, NodeByNodeTreeVAE.from_stacked(tree)


def _inputs(tree: TreeVAE, setting: Setting) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] grey values in 0..1, and [B, N, Z, R, R] noise."""
    images = torch.rand(setting.batch, *tree.image_shape)
    return images, torch.randn(setting.batch, tree.topology.num_nodes, *tree.latent_shape)


def _training(loss: Callable[[], Tensor], optimizer: Optimizer) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        optimizer.step()

    return step
