"""TreeVAE's objective: the four terms of the ELBO, and the contrastive term of prior knowledge.

    -ELBO = sum_l P(l) loss(x, leaf l)                                reconstruction
          + alpha (KL_root + sum_i P(i) KL_i + sum_i P(i) KL(q_i || p_i))   eq. 10-14

P(i) are the inference routers' probabilities; gradients flow through all of them, except where they
weigh the contrastive term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ContrastiveConfig
from ..topology import TreeTopology
from .node_stack import NodeStack, TreePass
from .tree_vae import Inference

KL_LIMIT = 1000.0
"""Nats at which the published code cuts a node's weighted KL of one image."""


@dataclass(frozen=True)
class Elbo:
    """Batch means in nats per image; each a scalar tensor."""

    reconstruction: Tensor
    kl_root: Tensor
    kl_nodes: Tensor
    kl_decisions: Tensor

    @property
    def kl(self) -> Tensor:
        """All divergence terms."""
        return self.kl_root + self.kl_nodes + self.kl_decisions

    def loss(self, kl_weight: float | Tensor) -> Tensor:
        """reconstruction + kl_weight * divergences; at weight 1 the negative ELBO."""
        return self.reconstruction + kl_weight * self.kl


def tree_elbo(nodes: NodeStack, found: Inference, images: Tensor, *, likelihood: str) -> Elbo:
    """The terms of a whole tree.

    Args:
        nodes: the tree's networks, for its decoders.
        found: the pass over `images`.
        images: [B, C, H, W] in 0..1; of a forest [B, S, C, H, W], whose trees' terms are added up.
        likelihood: "bernoulli" or "gaussian".
    """
    root = found.root_kl.clamp(-1, KL_LIMIT).mean(0).sum()
    return _elbo(nodes, found.nodes, images, likelihood, kl_root=root)


def subtree_elbo(
    nodes: NodeStack, found: TreePass, images: Tensor, log_prob: Tensor, *, likelihood: str
) -> Elbo:
    """The terms of two growing leaves; log_prob: [B] of reaching the leaf they grow under.

    As published, no node's KL is cut here. Of a forest log_prob is [B, S] and images as in
    `tree_elbo`.
    """
    zero = images.new_zeros(())
    return _elbo(nodes, found, images, likelihood, kl_root=zero, log_prob=log_prob, limit=torch.inf)


@dataclass(frozen=True)
class LeafShares:
    """What each leaf contributes to an image's terms; all [B, L] nats."""

    reconstruction: Tensor
    elbo: Tensor


def leaf_shares(
    nodes: NodeStack, found: Inference, images: Tensor, *, likelihood: str
) -> LeafShares:
    """The negative ELBO of each image, divided among the leaves without a rest.

    What reaches a node is what reaches the leaves below it, P(i) = sum of their P(l). So

        -ELBO = sum_l P(l) (loss(x, l) + KL_root + sum_{i above or at l} KL_i + KL(q_i || p_i))

    whose terms are the leaves' shares; their first part is the reconstruction alone. KL terms have
    the weight 1 and are not cut. TreeVAE 2.5 names both, besides the number of samples, as
    criteria of which leaf to split.

    Args:
        nodes: the tree's networks, for its decoders.
        found: the pass over `images`.
        images: [B, C, H, W] in 0..1.
        likelihood: "bernoulli" or "gaussian".
    """
    tree, seen = nodes.topology, found.nodes
    assert isinstance(tree, TreeTopology)
    assert seen.node_kl is not None
    assert seen.post_logit is not None
    rows = torch.arange(tree.num_nodes, device=images.device)
    paths = torch.from_numpy(tree.paths).to(images.device)  # [L, P], filled up with -1
    on_path = (paths[:, :, None] == rows).any(1).T.to(images.dtype)  # [N, L]
    decision_kl = bernoulli_kl(seen.post_logit, seen.prior_logit)
    kl = found.root_kl[:, None] + seen.node_kl @ on_path[1:]
    kl = kl + decision_kl @ on_path[tree.routers.tolist()]
    prob = seen.log_node_prob[:, tree.leaves.tolist()].exp()
    error = image_error(nodes.decode(seen.z), images[:, None], likelihood)
    return LeafShares(reconstruction=prob * error, elbo=prob * (error + kl))


def _elbo(
    nodes: NodeStack,
    found: TreePass,
    images: Tensor,
    likelihood: str,
    *,
    kl_root: Tensor,
    log_prob: Tensor | None = None,
    limit: float = KL_LIMIT,
) -> Elbo:
    assert found.node_kl is not None
    assert found.post_logit is not None
    log_node_prob = found.log_node_prob
    if log_prob is not None:
        log_node_prob = log_node_prob + of_trees(log_prob, nodes.tree_of, dims=1)
    prob = log_node_prob.exp()  # [B, N]
    node_kl = (prob[:, nodes.topology.num_roots :] * found.node_kl).clamp(-1, limit).sum(1)
    decision_kl = prob[:, nodes.router_rows] * bernoulli_kl(found.post_logit, found.prior_logit)
    target = of_trees(images, [nodes.tree_of[row] for row in nodes.leaf_rows], dims=4)
    error = image_error(nodes.decode(found.z), target, likelihood)  # [B, L]
    return Elbo(
        reconstruction=(prob[:, nodes.leaf_rows] * error).sum(1).mean(),
        kl_root=kl_root,
        kl_nodes=node_kl.mean(),
        kl_decisions=decision_kl.sum(1).mean(),
    )


def of_trees(values: Tensor, tree_of: list[int], *, dims: int) -> Tensor:
    """What each of n rows is told of its tree: [B, S, ...] -> [B, n, ...].

    Of a single tree [B, ...], told apart by having `dims` dimensions -> [B, 1, ...].
    """
    return values[:, None] if values.dim() == dims else values[:, tree_of]


def bernoulli_kl(logit_q: Tensor, logit_p: Tensor) -> Tensor:
    """KL(q || p) in nats of Bernoullis given by their logits, exact where either saturates."""
    left = F.logsigmoid(logit_q) - F.logsigmoid(logit_p)
    right = F.logsigmoid(-logit_q) - F.logsigmoid(-logit_p)
    q = torch.sigmoid(logit_q)
    return q * left + (1 - q) * right


def image_error(output: Tensor, images: Tensor, likelihood: str) -> Tensor:
    """Summed over pixels: [..., C, H, W] -> [...].

    Bernoulli: cross entropy of logits with grey values. Gaussian: squared error, without the
    factor 1/2, as published.
    """
    if likelihood == "bernoulli":
        # Not the library's function: it would first copy the images once per leaf.
        error = F.softplus(output) - images * output
    else:
        error = (output - images) ** 2
    return error.flatten(-3).sum(-1)


def router_contrast(logit: Tensor, log_prob: Tensor) -> Tensor:
    """InfoNCE between the routers' decisions on two views, summed over routers (TreeVAE 2.6).

    Args:
        logit: [2 M, I] inference routers' logits; rows m and m + M are views of one image.
        log_prob: [2 M, I] of reaching each router; it weighs the images, without a gradient.
    """
    left = torch.sigmoid(logit).T  # [I, 2M]
    decision = F.normalize(torch.stack([left, 1 - left], dim=-1), dim=-1)
    loss = _info_nce(decision @ decision.transpose(1, 2))  # [I, 2M]
    # P_m / sum P, in logarithms: a router that nobody reaches still has weights.
    weight = log_prob.detach().T.softmax(1)
    return (loss * weight).sum()


def embedding_contrast(embedding: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE between two views' embeddings, mean over levels; embedding: [2 M, levels, 10]."""
    unit = F.normalize(embedding, dim=-1).transpose(0, 1)
    return _info_nce(unit @ unit.transpose(1, 2) / temperature).mean()


def contrastive_loss(
    config: ContrastiveConfig,
    nodes: NodeStack,
    found: TreePass,
    embedding: Tensor | None,
    *,
    log_prob: Tensor | None = None,
) -> Tensor:
    """Both contrastive terms, weighted.

    Args:
        config: weight and temperature.
        nodes: the networks that made the pass.
        found: the pass over two views, [2 M] rows.
        embedding: [2 M, levels, 10]; None for a subtree, which has no embedding term. Of a forest
            [2 M, S, levels, 10], and the trees' terms are added up.
        log_prob: [2 M] of reaching the leaf that a subtree grows under; of a forest [2 M, S].
    """
    assert found.post_logit is not None
    log_reach = found.log_node_prob[:, nodes.router_rows]
    if log_prob is not None:
        tree_of = [nodes.tree_of[row] for row in nodes.router_rows]
        log_reach = log_reach + of_trees(log_prob, tree_of, dims=1)
    loss = router_contrast(found.post_logit, log_reach)
    if embedding is not None:
        mean = embedding_contrast(embedding.flatten(1, -2), temperature=config.temperature)
        loss = loss + nodes.topology.num_roots * mean
    return config.weight * loss


def _info_nce(score: Tensor) -> Tensor:
    """[..., 2M, 2M] similarities -> [..., 2M]: -log of the partner's share among all others."""
    rows = score.shape[-1]
    itself = torch.eye(rows, dtype=torch.bool, device=score.device)
    partner = torch.arange(rows, device=score.device).roll(rows // 2)
    log_share = score.masked_fill(itself, -torch.inf).log_softmax(-1)
    target = partner.expand(score.shape[:-1])[..., None]
    return -log_share.gather(-1, target)[..., 0]
