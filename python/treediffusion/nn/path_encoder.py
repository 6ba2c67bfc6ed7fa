"""The condition: the latents of a root-to-leaf path, and where they sit, as one vector.

``y = sum over the path of f_embed(z_i) + f_node(i)``, both f being Linear, SiLU, Linear. The second
layers are linear, so they see the sum over the path instead of every slot:
``y = W2 (sum_i silu(W1 z_i + b1)) + P b2 + the same for the node ids``, P being the path's length.
The other published signals are paths of one slot, the leaf, with one of the two or with both.

As published, a sum and not a mean, and a node's id enters as one raw number.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.path_silu_sum import path_silu_sum


class PathEncoder(nn.Module):
    """Paths in, vectors out."""

    def __init__(
        self, latent_size: int, embed_dim: int, *, latents: bool = True, ids: bool = True
    ) -> None:
        """Builds the MLPs; without either of them every vector is zero.

        Args:
            latent_size: D, numbers in a node's flattened latent.
            embed_dim: E, width of the vector.
            latents: whether latents count.
            ids: whether ids count.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.embed_in = nn.Linear(latent_size, embed_dim) if latents else None
        self.embed_out = nn.Linear(embed_dim, embed_dim) if latents else None
        self.node_in = nn.Linear(1, embed_dim) if ids else None
        self.node_out = nn.Linear(embed_dim, embed_dim) if ids else None

    def forward(self, z_path: Tensor, nodes: Tensor) -> Tensor:
        """The vector of each path.

        Args:
            z_path: [B, P, D] float, flattened latents of the nodes on the path; whatever an
                absent slot holds, NaN included, has no effect on values or gradients.
            nodes: [B, P] int64, their ids; -1 for a slot that the path does not use.

        Returns:
            [B, E] float.
        """
        absent = (nodes < 0)[:, :, None]
        length = (nodes >= 0).sum(dim=1, keepdim=True).to(z_path.dtype)
        parts = []
        if self.embed_in is not None and self.embed_out is not None:
            # What is absent counts for nothing in the sum; here it must not in a gradient.
            parts.append((self.embed_in(z_path.masked_fill(absent, 0.0)), self.embed_out))
        if self.node_in is not None and self.node_out is not None:
            parts.append((self.node_in(nodes[:, :, None].to(z_path.dtype)), self.node_out))
        if not parts:
            return (0 * nodes[:, :1]).to(z_path.dtype).expand(-1, self.embed_dim)
        sums = [F.linear(path_silu_sum(hidden, nodes), out.weight) for hidden, out in parts]
        biases = [out.bias for _, out in parts]
        y: Tensor = sum(sums[1:], sums[0]) + length * sum(biases[1:], biases[0])
        return y
