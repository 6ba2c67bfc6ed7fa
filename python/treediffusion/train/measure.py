"""What training asks a tree about all images: passes in eval mode, without gradients.

Leaf probabilities are without randomness. The ELBO and the leaves' shares of it take one sample of
each latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.tree_objective import Elbo, leaf_shares, tree_elbo
from ..nn.tree_vae import TreeVAE
from .images import TrainingImages

CHUNK = 1000
"""Images in a pass that decodes nothing."""


@torch.no_grad()
def leaf_prob(tree: TreeVAE, images: TrainingImages) -> Tensor:
    """[n, C, H, W] images -> [n, L] probabilities of the leaves."""
    tree.eval()
    return torch.cat([tree.assign(x) for x in images.chunks(CHUNK)]).exp()


@torch.no_grad()
def mean_elbo(tree: TreeVAE, images: TrainingImages) -> dict[str, float]:
    """The ELBO and its terms in nats per image."""
    tree.eval()
    config, totals = tree.config, dict.fromkeys(Elbo.__dataclass_fields__, 0.0)
    # Every leaf decodes every image here, so a pass is no larger than a step of training.
    for x in images.chunks(config.batch_size):
        terms = tree_elbo(tree.nodes, tree.infer(x), x, likelihood=config.likelihood)
        for name in totals:
            totals[name] += float(getattr(terms, name)) * len(x) / len(images)
    return totals | {"elbo": -sum(totals.values())}


@torch.no_grad()
def split_score(tree: TreeVAE, images: TrainingImages) -> Tensor | None:
    """[L] by which growth ranks the leaves, under `criterion`; None for their numbers of images.

    reconstruction: sum over images of P(l | x) loss(x, leaf l). elbo: sum over images of what the
    leaf contributes to the negative ELBO, see `leaf_shares`; both are sums, not means, so that
    large leaves come before small ones that are as bad for each image.
    """
    config = tree.config
    if config.criterion == "samples":
        return None
    tree.eval()
    score = torch.zeros(tree.topology.num_leaves, dtype=torch.float64, device=images.device)
    for x in images.chunks(config.batch_size):
        shares = leaf_shares(tree.nodes, tree.infer(x), x, likelihood=config.likelihood)
        score += getattr(shares, config.criterion).double().sum(0)
    return score
