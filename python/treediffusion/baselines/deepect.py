"""DeepECT: an autoencoder under a growing tree of centres (Mautz, Plant, Boehm, ICDM 2019).

With z = e(x), a centre c_n for each node, s the sibling of n, and M[b, n] = 1 where image b's
nearest leaf lies in the subtree of n:

    L_rec   reconstruction error, mean over pixels
    L_nc    mean over leaves of | c_l - mean of the leaf's z |               moves leaves' centres
    L_dc    mean over b, n but the root of M |(c_n - z_b) . u_n|,            moves the encoder
            u_n = (c_n - c_s) / |c_n - c_s|

Only distances along the line between two siblings count, so that other structure stays for the
splits below. An inner centre is the mean of its children's, weighted by their sizes, which are
averages over steps with the memory 1/2; a node whose size falls below a threshold is taken out, and
its sibling takes their parent's place. The leaf with the largest sum of squared distances is split
next, by 2-means.

The autoencoder is a VAE's network without its noise, so all baselines have one encoder and decoder.
Training is `deepect_stage`. Not here: the augmented variant, DeepECT + Aug.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TreeConfig
from ..nn.tree_objective import image_error
from ..optional import require
from ..topology import TreeTopology
from .chain import Chain, chain_config, chain_topology

MEMORY = 0.5
"""Of a node's size, from one step to the next."""
SMALLEST = 0.1
"""Size, in images of a batch, below which a node is taken out."""
STARTS = 20
"""Of each 2-means."""
EXACT = "donot_use_mm_for_euclid_dist"
"""Distances as they are: a difference of squares would lose digits."""


class ClusterTree(nn.Module):
    """An autoencoder and the centres of a tree of at most L leaves.

    Attributes:
        autoencoder: a VAE, whose posterior's mean is the code.
        centres: [2 L - 1, D], a row for each node that there may be.
        size: [2 L - 1] of each node, in images of a batch.
        slot: the row of each node, by its name.
    """

    size: Tensor

    def __init__(
        self, config: TreeConfig, leaves: int, *, image_channels: int, image_size: int
    ) -> None:
        super().__init__()
        self.autoencoder = Chain(
            chain_config(config), chain_topology(1),
            image_channels=image_channels, image_size=image_size,
        )  # fmt: skip
        width = int(np.prod(self.autoencoder.latent_shape))
        self.centres = nn.Parameter(torch.zeros(2 * leaves - 1, width))
        self.register_buffer("size", torch.zeros(2 * leaves - 1))
        self.slot: dict[str, int] = {"r": 0}

    @property
    def topology(self) -> TreeTopology:
        """The tree as it stands."""
        return TreeTopology.of(self.slot)

    def encode(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D]."""
        model = self.autoencoder
        return model.root_posterior(model.bottom_up(images)).mean.flatten(1)

    def reconstruction(self, images: Tensor, z: Tensor) -> Tensor:
        """The decoder's error of codes [B, D]: mean over images and pixels, a scalar."""
        model = self.autoencoder
        output = model.nodes.decode(z.reshape(len(z), 1, *model.latent_shape))[:, 0]
        return image_error(output, images, model.config.likelihood).mean() / images[0].numel()

    def nearest(self, z: Tensor) -> Tensor:
        """[B, D] -> [B] int64, ids of the leaves with the nearest centres."""
        rows = [self.slot[name] for name in self.topology.leaf_names]
        distance = torch.cdist(z, self.centres[rows], compute_mode=EXACT)
        return distance.argmin(dim=1)

    def losses(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D] -> L_nc and L_dc, scalars; also notes the nodes' sizes."""
        tree = self.topology
        rows = [self.slot[name] for name in tree.names]
        centre = self.centres[rows]  # [N, D]
        leaf = self.nearest(z.detach())
        member = F.one_hot(leaf, tree.num_leaves).to(z.dtype)  # [B, L]
        below = torch.tensor(
            [[name.startswith(node) for name in tree.leaf_names] for node in tree.names],
            dtype=z.dtype, device=z.device,
        )  # fmt: skip
        inside = member @ below.T  # [B, N]
        with torch.no_grad():
            self.size[rows] = MEMORY * self.size[rows] + (1 - MEMORY) * inside.sum(0)
        count = member.sum(0)
        mean = (member.T @ z.detach()) / count.clamp(min=1)[:, None]
        away = torch.linalg.vector_norm(centre[tree.leaves.tolist()] - mean, dim=1)
        centring = away[count > 0].sum() / tree.num_leaves
        still = centre.detach()[1:]  # every node but the root
        line = F.normalize(still - still[_siblings(tree)], dim=1)
        along = ((still * line).sum(1) - z @ line.T).abs()  # [B, N - 1]
        compression = (inside[:, 1:] * along).sum() / max(1, along.numel())
        return centring, compression

    @torch.no_grad()
    def settle(self) -> None:
        """After a step: inner centres follow their children, and nodes without images go."""
        for name in reversed(self.topology.names):
            if name + "0" in self.slot:
                rows = [self.slot[name + turn] for turn in "01"]
                share = self.size[rows] / self.size[rows].sum().clamp(min=1e-12)
                self.centres[self.slot[name]] = share @ self.centres[rows]
        for name in self.topology.names[1:]:
            if name in self.slot and self.size[self.slot[name]] < SMALLEST:
                self._remove(name)

    @torch.no_grad()
    def split(self, codes: Tensor, *, seed: int) -> None:
        """Splits the leaf with the largest sum of squared distances; codes: [n, D] of all images.

        Nothing happens where no leaf holds two different codes.
        """
        names, leaf = self.topology.leaf_names, self.nearest(codes)
        rows = [self.slot[name] for name in names]
        square = (codes - self.centres[rows][leaf]).square().sum(1).double()
        total = torch.zeros(len(names), dtype=torch.float64, device=codes.device)
        total.index_add_(0, leaf, square)
        worst = int(total.argmax())
        members = codes[leaf == worst].cpu().numpy()
        if len(np.unique(members, axis=0)) < 2:
            return
        cluster = require("sklearn.cluster", extra="train")
        found = cluster.KMeans(2, n_init=STARTS, random_state=seed % 2**32).fit(members)
        halves = torch.from_numpy(np.asarray(found.cluster_centers_)).to(self.centres)
        free = sorted(set(range(len(self.centres))) - set(self.slot.values()))[:2]
        self.centres[free], self.size[free] = halves, 1.0
        self.slot |= dict(zip((names[worst] + "0", names[worst] + "1"), free, strict=True))

    def put_root(self, codes: Tensor) -> None:
        """Begins with all images in one node; codes: [n, D]."""
        self.slot = {"r": 0}
        with torch.no_grad():
            self.centres[0] = codes.mean(0)

    def _remove(self, name: str) -> None:
        """The sibling's subtree takes the parent's place."""
        parent, sibling = name[:-1], name[:-1] + ("1" if name[-1] == "0" else "0")
        kept = {}
        for node, row in self.slot.items():
            if node.startswith(sibling):
                kept[parent + node[len(sibling) :]] = row
            elif node != parent and not node.startswith(name):
                kept[node] = row
        self.slot = kept


def _siblings(tree: TreeTopology) -> list[int]:
    """[N - 1] for every node but the root, its sibling's position among them."""
    place = {name: position for position, name in enumerate(tree.names[1:])}
    return [place[name[:-1] + ("1" if name[-1] == "0" else "0")] for name in tree.names[1:]]
