"""VAE and LadderVAE: trees that do not branch.

    VAE         one node:                          x -> d_0 .. d_(levels-1) -> z -> x
    LadderVAE   a node for each bottom-up level:   z_0 -> z_1 -> .. -> x   (Sonderby et al., 2016)

A TreeVAE without a router is exactly that: P(i) = 1 everywhere, and its ELBO is the ladder's. So
encoder, decoder, likelihood, optimiser, annealing, checkpoints and budgets are the tree's own, and
a comparison with a tree compares trees with chains and nothing else.

Training goes through a tree's first and last phase: the first one again and again, each time with
a fresh optimiser and annealing like a tree's phases, until about as many images have passed as a
growing tree sees. Not here: contrastive terms, which the published baselines do not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import ContrastiveConfig, TreeConfig
from ..nn.gaussians import Gaussian, kl, sample
from ..nn.node_stack import TreePass
from ..nn.tree_vae import Inference, TreeVAE
from ..progress import Progress
from ..topology import TreeTopology
from ..train.grower import Grower
from ..train.images import TrainingImages
from ..train.measure import CHUNK
from ..train.plan import phase_cost
from ..train.tree_stage import TreeStage
from ..train.tree_state import Phase

Kind = Literal["vae", "ladder_vae"]
MEMBERS = 1.4
"""A split leaf's share of the images, in units of an even one; as `train.plan` has it."""


class NoNodes(nn.Module):
    """The networks of nodes that are not there: [B, ...] -> [B, 0, Z, R, R] mean and variance."""

    def __init__(self, latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_shape = latent_shape

    def forward(self, x: Tensor) -> Gaussian:
        """x: [B, ...]."""
        empty = x.new_zeros(len(x), 0, *self.latent_shape)
        return Gaussian(empty, empty)


class Chain(TreeVAE):
    """A TreeVAE whose topology is a path; a path of one node is a VAE."""

    def __init__(
        self, config: TreeConfig, topology: TreeTopology, *, image_channels: int, image_size: int
    ) -> None:
        super().__init__(config, topology, image_channels=image_channels, image_size=image_size)
        if topology.num_nodes == 1:
            self.nodes.transformations = NoNodes(self.latent_shape)  # type: ignore[assignment]
            self.nodes.heads = NoNodes(self.latent_shape)  # type: ignore[assignment]

    def infer(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Inference:
        """See `TreeVAE.infer`; a single node has nothing below it to pass through."""
        if self.topology.num_nodes > 1:
            return super().infer(images, features=features, noise=noise)
        if features is None:
            assert images is not None
            features = self.bottom_up(images)
        root = self.root_posterior(features)
        if noise is None:
            noise = torch.randn_like(root.mean)[:, None]
        unit = Gaussian(torch.zeros_like(root.mean), torch.ones_like(root.var))
        nothing = features.new_zeros(len(features), 0)
        nodes = TreePass(
            z=sample(root, noise[:, 0])[:, None],
            node_kl=nothing,
            post_logit=nothing,
            prior_logit=nothing,
            log_node_prob=features.new_zeros(len(features), 1),
        )
        return Inference(features, kl(root, unit), nodes)

    def generate(self, noise: Tensor) -> TreePass:
        """See `TreeVAE.generate`; a single node's sample is the noise."""
        if self.topology.num_nodes > 1:
            return super().generate(noise)
        nothing, sure = noise.new_zeros(len(noise), 0), noise.new_zeros(len(noise), 1)
        return TreePass(
            z=noise, node_kl=None, post_logit=None, prior_logit=nothing, log_node_prob=sure
        )


class ChainGrower(Grower):
    """A chain in training, which goes through its phases and never grows."""

    def __init__(
        self, images: TrainingImages, config: TreeConfig, path: Path, *, nodes: int
    ) -> None:
        super().__init__(images, config, path)
        self.tree = self._tree(chain_topology(nodes))

    def _next_phase(self, finished: Phase, prob: Tensor) -> Phase:
        if finished.kind == "final":
            return Phase("done")
        begun = sum(row["phase"] == "initial" for row in self.state.history)
        return Phase("initial" if begun < rounds(self.config) else "final")

    def _tree(self, topology: TreeTopology) -> TreeVAE:
        _, channels, size, _ = self.images.shape
        chain = Chain(self.config, topology, image_channels=channels, image_size=size)
        return chain.to(self.images.device)


class ChainStage(TreeStage):
    """Trains a chain; a `TreeStage` in everything else.

    Args:
        images: to train on.
        config: the settings of the tree it is compared with; see `chain_config`.
        path: the checkpoint; an existing one is continued.
        progress: told about every step, in the unit of `chain_cost`.
        kind: how many nodes.
    """

    def __init__(
        self,
        images: TrainingImages,
        config: TreeConfig,
        path: Path,
        progress: Progress | None = None,
        *,
        kind: Kind,
    ) -> None:
        self._nodes = 1 if kind == "vae" else config.levels
        super().__init__(images, chain_config(config), path, progress)

    def _make_growers(self, seeds: Sequence[int] | None) -> Iterator[Grower]:
        path = self.path.with_suffix(".json")
        yield ChainGrower(self.images, self.config, path, nodes=self._nodes)


def train_chain(
    images: TrainingImages,
    config: TreeConfig,
    path: Path,
    *,
    kind: Kind,
    seed: int,
    progress: Progress | None = None,
) -> TreeVAE:
    """A trained VAE or LadderVAE in eval mode; a finished or unfinished checkpoint is continued.

    Args:
        images: to train on.
        config: the settings of the tree it is compared with.
        path: the checkpoint.
        kind: "vae" or "ladder_vae".
        seed: of everything random.
        progress: told about every step, in the unit of `chain_cost`.

    Raises:
        OutOfTime: the progress ended the call; a checkpoint is saved.
        DataError: images that cannot be trained on.
        CheckpointError: a checkpoint that cannot be read or written.
        TrainingError: the training cannot go on.
    """
    torch.manual_seed(seed)
    (grown,) = ChainStage(images, config, path, progress, kind=kind).run()
    return grown.tree


@torch.no_grad()
def embed(chain: TreeVAE, images: TrainingImages) -> NDArray[np.float32]:
    """[n, D] float32, posterior means of the deepest latent, from which images are decoded.

    Every sample above it is its mean, too.

    Args:
        chain: a VAE or a LadderVAE.
        images: n, whose batches come to its device.
    """
    chain.eval()
    shape = (chain.topology.num_nodes, *chain.latent_shape)
    means = []
    for x in images.chunks(CHUNK):
        found = chain.infer(x, noise=x.new_zeros(len(x), *shape))
        means.append(found.nodes.z[:, -1].flatten(1).cpu())
    return torch.cat(means).numpy()


def chain_topology(nodes: int) -> TreeTopology:
    """r, r0, r00, ..: a path of so many nodes."""
    return TreeTopology.of("r" + "0" * depth for depth in range(nodes))


def chain_config(config: TreeConfig) -> TreeConfig:
    """A tree's settings without what only trees, or trees with prior knowledge, have."""
    augmentation = "none" if config.contrastive.weight else config.augmentation
    return config.model_copy(
        update={"contrastive": ContrastiveConfig(), "augmentation": augmentation, "restarts": 1}
    )


def rounds(config: TreeConfig) -> int:
    """How often a chain's first phase is gone through, so that it sees what a growing tree sees."""
    phases = config.phases
    return max(1, round((tree_epochs(config) - phases.final) / max(1, phases.initial)))


def chain_epochs(config: TreeConfig) -> int:
    """Epochs over all images that a chain is trained for."""
    return rounds(config) * config.phases.initial + config.phases.final


def tree_epochs(config: TreeConfig) -> float:
    """Images that pass through a tree while it grows, in units of all images."""
    phases, splits = config.phases, range(2, config.max_leaves)
    subtrees = sum(min(1.0, MEMBERS / leaves) for leaves in splits)
    pauses = sum(
        (leaves - 1) % phases.intermediate_every == 0 and leaves + 1 < config.max_leaves
        for leaves in splits
    )
    return phases.initial + phases.subtree * subtrees + phases.intermediate * pauses + phases.final


def chain_cost(config: TreeConfig, images: int) -> float:
    """Cost of a chain's training, in the unit of `train.plan`."""
    return phase_cost("initial", chain_epochs(config), images, 1)
