"""Trees for inference where kernels run: norms folded into weights, which lie in their order.

    prior     of all nodes of a level: three convolutions and the head, a launch each
    sample    of it: all of them and the sample, one launch

Where no kernel runs, the stacked layers are faster, and a tree stays as it is. Weights that change
afterwards are not seen, and there are no gradients.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from ..kernels.choice import takes_kernel
from ..kernels.tree_conv3x3 import Tiles, level_tiles, tree_conv3x3
from ..kernels.tree_conv3x3.op import DTYPES
from ..kernels.tree_conv3x3.reference import Activation
from ..kernels.tree_node_gen import NodeWeights, pack_nodes, tree_node_gen
from ..kernels.tree_node_gen.op import MOST_CHANNELS, MOST_PIXELS
from .codecs import latent_size
from .node_stack import Transformations
from .stacked import StackedConv, StackedNorm

Module = TypeVar("Module", bound=nn.Module)


def packed(module: Module) -> Module:
    """A copy of a tree, of its nodes or of a grove for a run of passes, or itself without kernels.

    Args:
        module: in evaluation mode; is left as it is and shares its weights.

    Raises:
        BackendUnavailableError: kernels are forced, and cannot do networks of this size or dtype.
    """
    plain = [child for child in module.modules() if isinstance(child, Transformations)]
    if not all(_fits(child) for child in plain):
        return module
    assert not module.training, "norms are folded with their running statistics"
    tensors = (*module.parameters(), *module.buffers())
    shared: dict[int, object] = {id(tensor): tensor for tensor in tensors}
    twin = copy.deepcopy(module, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Transformations):
                setattr(parent, name, PackedTransformations(child))
    return twin


class PackedTransformations(nn.Module):
    """`Transformations` of maps, with buffers of a row per node; see `NodeWeights`."""

    @torch.no_grad()
    def __init__(self, plain: Transformations) -> None:
        super().__init__()
        self.activation: Activation = plain.config.activation
        convs = [cast(StackedConv, conv).weight.float() for conv in plain.convs]
        norms = [_affine(cast(StackedNorm, norm)) for norm in plain.norms]
        weights = pack_nodes(convs, norms, plain.head.weight.float())
        for name, tensor in weights._asdict().items():
            # Biases stay in float32, in which the kernels add them up.
            kept = tensor if name.endswith("bias") else tensor.to(plain.head.weight.dtype)
            self.register_buffer(name, kept, persistent=False)
        self._tiles: dict[tuple[torch.Size, torch.device], Tiles] = {}

    def forward(self, z: Tensor) -> PackedPrior:
        """z: [B, N, Z, R, R] samples of the parents -> the nodes' priors."""
        weights = NodeWeights(*(self.get_buffer(name) for name in NodeWeights._fields))
        return PackedPrior(z, weights, self._tiles_of(z), self.activation)

    def _tiles_of(self, z: Tensor) -> Tiles:
        """Every node with maps of its own: kept, as a recorded graph of launches makes none.

        In a dictionary, which a compiler looks up, while it would run through a function's cache.
        """
        batch, nodes, _, side, _ = z.shape
        key = (z.shape, z.device)
        if key not in self._tiles:
            # What is kept outlives the mode it is made in.
            with torch.inference_mode(False):
                tiles = level_tiles(
                    range(nodes), nodes, batch=batch, pixels=side * side, device=z.device
                )
            self._tiles[key] = tiles
        return self._tiles[key]


@dataclass(frozen=True)
class PackedPrior:
    """Priors that are computed once it is known what for.

    Attributes:
        z: [B, n, Z, R, R] samples of the parents.
        weights: of n nodes.
        tiles: which of them does which map.
        activation: between the layers.
    """

    z: Tensor
    weights: NodeWeights
    tiles: Tiles
    activation: Activation

    @property
    def heads(self) -> Tensor:
        """[B, n, 2 Z, R, R], means, then variances before softplus."""
        weights, biases = self.weights[:4], self.weights[4:]
        maps = self.z.flatten(0, 1)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            after = self.activation if layer < 3 else "none"
            maps = tree_conv3x3(maps, weight, bias, self.tiles, activation=after)
        return maps.reshape(*self.z.shape[:2], *maps.shape[1:])

    def sample(self, noise: Tensor) -> Tensor:
        """noise: [B, n, Z, R, R] standard normal -> samples of the same shape."""
        maps, drawn = self.z.flatten(0, 1), noise.to(self.z.dtype).flatten(0, 1)
        z = tree_node_gen(maps, self.weights, drawn, self.tiles, activation=self.activation)
        return z.reshape(self.z.shape)


def _fits(plain: Transformations) -> bool:
    """Whether kernels run for networks of this size and dtype."""
    config, weight = plain.config, plain.head.weight
    if config.is_mlp:  # nothing to convolve
        return False
    side, channels = latent_size(config), max(config.channels, config.latent_channels)
    unable = None
    if weight.dtype not in DTYPES:
        unable = f"weights of {weight.dtype}"
    elif side**2 > MOST_PIXELS or channels > MOST_CHANNELS:
        unable = f"maps of {side}x{side} with {channels} channels"
    return takes_kernel("tree_node_gen", weight, unable=unable)


def _affine(norm: StackedNorm) -> tuple[Tensor, Tensor]:
    """[N, D] scale and shift of a norm in evaluation mode, float32."""
    scale = norm.weight.float() / torch.sqrt(norm.running_var.float() + norm.eps)
    return scale, norm.bias.float() - norm.running_mean.float() * scale
