"""Trees that are trained together: copies of their networks, stacked along the trees.

The trees may differ in topology. What they have below their roots is one `NodeStack` of a `Forest`;
what every tree has alike (bottom-up maps, the root's head, projections) has one more leading axis,
over which `vmap` maps the single tree's module. A step then has as many operations as one tree's.
Only a CPU, to which operations cost little, does what is alike one tree after another: its library
is faster at plain convolutions than at grouped ones. Nothing joins the trees: the gradient of their
summed loss is each tree's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ..forest import Forest
from ..topology import TreeTopology
from .gaussians import Gaussian, as_gaussian, kl, sample
from .node_stack import NodeStack
from .tree_vae import Inference, TreeVAE


class Alike(nn.Module):
    """S modules of the same shape as one: [B, S, ...] -> [B, S, ...], module s on part s.

    Args:
        modules: whose tensors are copied; without random numbers or spectral norms.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(modules))
        self._weight_names, self._buffer_names = list(weights), list(buffers)
        self.weights = nn.ParameterList(nn.Parameter(w.detach()) for w in weights.values())
        for number, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer_{number}", buffer)
        # In a list, so that its tensors are not this module's.
        self._shape = [deepcopy(modules[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, S, ...]."""
        module, tensors = self._shape[0].train(self.training), self._tensors()

        def one(tensors: dict[str, Tensor], x_s: Tensor) -> Tensor:
            y: Tensor = functional_call(module, tensors, (x_s,))
            return y

        if is_mapped(x):
            y: Tensor = vmap(one, in_dims=(0, 1), out_dims=1)(tensors, x)
            return y
        rows = zip(*(tensor.unbind(0) for tensor in tensors.values()), strict=True)
        of_trees = [dict(zip(tensors, row, strict=True)) for row in rows]
        return torch.stack(
            [one(mine, x_s) for mine, x_s in zip(of_trees, x.unbind(1), strict=True)], dim=1
        )

    @torch.no_grad()
    def give_back(self, modules: Sequence[nn.Module]) -> None:
        """Copies the tensors to the modules they came from."""
        for name, stacked in self._tensors().items():
            for module, tensor in zip(modules, stacked, strict=True):
                module.state_dict(keep_vars=True)[name].copy_(tensor)

    def _tensors(self) -> dict[str, Tensor]:
        buffers = (self.get_buffer(f"buffer_{k}") for k in range(len(self._buffer_names)))
        return dict(zip(self._weight_names, self.weights, strict=True)) | dict(
            zip(self._buffer_names, buffers, strict=True)
        )


def is_mapped(x: Tensor) -> bool:
    """Whether modules that are alike are one mapped module where x is."""
    return x.device.type != "cpu"


class Grove(nn.Module):
    """S trees as one network.

    Args:
        trees: whose networks are copied; of the same settings and images.
    """

    def __init__(self, trees: Sequence[TreeVAE]) -> None:
        super().__init__()
        self.config, self.latent_shape = trees[0].config, trees[0].latent_shape
        self.bottom_up = Alike([tree.bottom_up for tree in trees])
        self.root_head = Alike([tree.root_head for tree in trees])
        self.nodes = join([tree.nodes for tree in trees])
        heads = [tree.projections for tree in trees if tree.projections is not None]
        self.projections = Alike(heads) if heads else None

    def infer(self, images: Tensor) -> Inference:
        """A posterior sample of every node; images: [B, S, C, H, W] in 0..1, those of each tree.

        Returns:
            As of a tree, with features [B, S, levels, C_b, R, R] and root_kl [B, S].
        """
        return self.infer_from(self.bottom_up(images))

    def infer_from(self, features: Tensor, *, noise: Tensor | None = None) -> Inference:
        """The same from bottom-up maps, [B, S, levels, C_b, R, R].

        Args:
            features: the maps.
            noise: [B, N, Z, R, R] standard normal, drawn here if None.
        """
        maps = features[:, :, :1, : self.config.channels]
        root = Gaussian(*(part[:, :, 0] for part in as_gaussian(self.root_head(maps))))
        if noise is None:
            shape = (len(features), self.nodes.topology.num_nodes, *self.latent_shape)
            noise = torch.randn(shape, dtype=features.dtype, device=features.device)
        unit = Gaussian(torch.zeros_like(root.mean), torch.ones_like(root.var))
        roots = self.nodes.topology.num_roots
        root_z = sample(root, noise[:, :roots])
        nodes = self.nodes(root_z, features, noise=noise[:, roots:])
        return Inference(features, kl(root, unit), nodes)

    def give_back(self, trees: Sequence[TreeVAE]) -> None:
        """Copies the networks to the trees they came from."""
        self.bottom_up.give_back([tree.bottom_up for tree in trees])
        self.root_head.give_back([tree.root_head for tree in trees])
        if self.projections is not None:
            heads = [tree.projections for tree in trees if tree.projections is not None]
            self.projections.give_back(heads)
        part_from(self.nodes, [tree.nodes for tree in trees])


def join(stacks: Sequence[NodeStack]) -> NodeStack:
    """The nodes of several trees, or of leaves that grow under several trees, as one stack."""
    forest = Forest(tuple(_tree(stack) for stack in stacks))
    joined = stacks[0].like(forest, root_depths=[d for s in stacks for d in s.root_depths])
    for number, stack in enumerate(stacks):
        joined.copy_from(stack, rename=partial(Forest.name, number))
    return joined


def part_from(joined: NodeStack, stacks: Sequence[NodeStack]) -> None:
    """Copies the nodes of a joined stack to those they came from."""
    for number, stack in enumerate(stacks):
        stack.copy_from(joined, rename=partial(_of_tree, number))


def _of_tree(number: int, name: str) -> str:
    """A node's name in its tree; those of other trees keep the forest's, which no tree has."""
    return name.removeprefix(Forest.name(number, ""))


def _tree(stack: NodeStack) -> TreeTopology:
    assert isinstance(stack.topology, TreeTopology)
    return stack.topology
