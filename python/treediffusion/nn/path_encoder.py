"""The condition: the latents of a root-to-leaf path, and where they sit, as one vector.

``y = sum over the path of f_embed(z_i) + f_node(i)``, both f being Linear, SiLU, Linear. The second
layers are linear, so they see the sum over the path instead of every slot:
``y = W2 (sum_i silu(W1 z_i + b1)) + P b2 + the same for the node ids``, P being the path's length.

As published, a sum and not a mean, and a node's id enters as one raw number.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PathEncoder(nn.Module):
    """Paths in, vectors out."""

    def __init__(self, latent_size: int, embed_dim: int) -> None:
        """Builds the two MLPs.

        Args:
            latent_size: D, numbers in a node's flattened latent.
            embed_dim: E, width of the vector.
        """
        super().__init__()
        self.embed_in = nn.Linear(latent_size, embed_dim)
        self.embed_out = nn.Linear(embed_dim, embed_dim)
        self.node_in = nn.Linear(1, embed_dim)
        self.node_out = nn.Linear(embed_dim, embed_dim)

    def forward(self, z_path: Tensor, nodes: Tensor) -> Tensor:
        """The vector of each path.

        Args:
            z_path: [B, P, D] float, flattened latents of the nodes on the path; whatever an
                absent slot holds, NaN included, has no effect on values or gradients.
            nodes: [B, P] int64, their rows in the tree; -1 for a slot that the path does not use.

        Returns:
            [B, E] float.
        """
        absent = (nodes < 0)[:, :, None]
        length = (nodes >= 0).sum(dim=1, keepdim=True).to(z_path.dtype)
        # Once before the layer, for the gradient of its weight, and once for the sum.
        latents = F.silu(self.embed_in(z_path.masked_fill(absent, 0.0)))
        ids = F.silu(self.node_in(nodes[:, :, None].to(z_path.dtype)))
        embed_sum = latents.masked_fill(absent, 0.0).sum(dim=1)
        node_sum = ids.masked_fill(absent, 0.0).sum(dim=1)
        bias = self.embed_out.bias + self.node_out.bias
        return (
            F.linear(embed_sum, self.embed_out.weight)
            + F.linear(node_sum, self.node_out.weight)
            + length * bias
        )
