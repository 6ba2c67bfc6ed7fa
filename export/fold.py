"""A tree for inference only: each layer's normalisation and dense matrix worked out beforehand.

    norm(conv(x)) = (gamma / sqrt(var + eps)) conv(x) + (beta - mean gamma / sqrt(var + eps))

so the scale moves into the weights and the rest is a bias; and where a convolution of a few pixels
is a matrix (see `kernels/stacked_conv`), the matrix is a constant. A layer is then one product,
which makes the graphs small and their export, whose cost is per operation, several times faster.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..kernels.stacked_conv.op import choose_form
from ..nn.codecs.chain import LeafDecoders
from ..nn.node_stack import Heads, Routers, Transformations
from ..nn.stacked import StackedConv, StackedConvTranspose, StackedLinear, StackedNorm
from ..nn.tree_vae import BottomUp, TreeVAE
from .fold_residual import GroupedConv, affine, fold_codecs


@torch.no_grad()
def fold(tree: TreeVAE) -> TreeVAE:
    """A copy of a tree in eval mode that computes the same with fewer operations."""
    tree = copy.deepcopy(tree).eval()
    _settle(tree)
    size = tree.latent_size
    for module in tree.modules():
        if isinstance(module, Transformations):
            _fold_pairs(module.convs, module.norms, size)
            _replace(module, "head", size)
        elif isinstance(module, LeafDecoders):
            _fold_pairs(module.convs, module.norms, size)
        elif isinstance(module, Heads):
            _replace(module, "narrow", size)
            if module.wide is not None:
                _replace(module, "wide", size)
        elif isinstance(module, Routers):
            if module.conv is not None:
                _replace(module, "conv", size)
            for place, (layer, norm) in enumerate(zip(module.hidden, module.norms, strict=True)):
                module.hidden[place] = FoldedLinear(layer, norm)
                module.norms[place] = Same()
        elif isinstance(module, BottomUp):
            for block in module.blocks:
                layers = cast(nn.ModuleList, block)
                half = len(layers) // 2
                for place in range(half):
                    layers[place] = FoldedConv(layers[place], layers[half + place], size)
                    layers[half + place] = Same()
    _replace(tree, "root_head", size)
    fold_codecs(tree)
    for module in list(tree.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, StackedConv | StackedConvTranspose) and len(layer.weight):
                setattr(module, name, WholeConv(layer))
    return tree


def _settle(tree: TreeVAE) -> None:
    """Weights that are worked out from others, by spectral norms, become plain ones."""
    for module in tree.modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = cast(Tensor, module.weight).detach().clone()
            del module.parametrizations
            # Not by the framework's own function, which would take the weight from the class, too,
            # and the class is shared with the tree that this is a copy of.
            module.__class__ = type(module).__bases__[0]
            module.register_parameter("weight", nn.Parameter(weight))


def _replace(module: nn.Module, name: str, size: int) -> None:
    """Folds a convolution that has no norm."""
    setattr(module, name, FoldedConv(getattr(module, name), None, size))


def _fold_pairs(convs: nn.ModuleList, norms: nn.ModuleList, size: int) -> None:
    """Folds a chain; the last convolution of a decoder has no norm."""
    for place, layer in enumerate(convs):
        norm = norms[place] if place < len(norms) else None
        convs[place] = folded = FoldedConv(layer, norm, size)
        size = folded.out_size
        if norm is not None:
            norms[place] = Same()


class Same(nn.Module):
    """In the place of a norm that was folded."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


class FoldedLinear(nn.Module):
    """Linear maps with their norm; weight: [N, in, out], bias: [N, 1, out]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        assert isinstance(layer, StackedLinear)
        scale, shift = _affine(norm, *layer.weight.shape[::2])
        self.register_buffer("weight", layer.weight * scale[:, None])
        self.register_buffer("bias", shift[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, in] -> [B, n, out]."""
        y = torch.baddbmm(self.bias, x.transpose(0, 1), self.weight)
        return y.transpose(0, 1)


class FoldedConv(nn.Module):
    """Convolutions of one map size with their norm, as matrices where the maps are small.

    Attributes:
        out_size: side of the results.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, norm: nn.Module | None, size: int) -> None:
        super().__init__()
        assert isinstance(layer, StackedConv | StackedConvTranspose)
        assert norm is None or isinstance(norm, StackedNorm)
        self.layer = GroupedConv(layer, norm)
        rows, inputs = len(layer.weight), _channels(layer)
        self.out_channels, self.out_size = self.layer.bias.shape[1], self.layer.out_size(size)
        # A graph pays for operations, as a GPU does for launches.
        form = choose_form("cuda", inputs, self.out_channels, size, self.out_size)
        self.is_matrix = form == "dense" or not rows
        if not self.is_matrix:
            return
        bias = self.layer.bias[:, None, :, None].expand(-1, -1, -1, self.out_size**2).flatten(2)
        self.register_buffer("bias", bias.contiguous())  # [N, 1, D*Q]
        shape = (rows, inputs * size**2, self.out_channels * self.out_size**2)
        matrix = _matrix(self.layer, inputs, size) if rows else torch.zeros(shape)
        self.register_buffer("matrix", matrix)
        del self.layer

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']."""
        shape = (*x.shape[:2], self.out_channels, self.out_size, self.out_size)
        if self.is_matrix:
            y = torch.baddbmm(self.bias, x.flatten(2).transpose(0, 1), self.matrix)
            return y.transpose(0, 1).reshape(shape)
        out: Tensor = self.layer(x.flatten(1, 2))
        return out.reshape(shape)


class WholeConv(nn.Module):
    """What is not folded: the convolutions of all nodes as one of so many groups."""

    def __init__(self, layer: StackedConv | StackedConvTranspose) -> None:
        super().__init__()
        self.layer = GroupedConv(layer, None)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, C, S, S] -> [B, n, D, S', S']."""
        y: Tensor = self.layer(x.flatten(1, 2))
        return y.reshape(*x.shape[:2], -1, *y.shape[2:])


def _affine(norm: nn.Module | None, rows: int, channels: int) -> tuple[Tensor, Tensor]:
    """[N, D] scale and shift of a norm in eval mode; none leaves the values as they are."""
    if norm is None:
        return torch.ones(rows, channels), torch.zeros(rows, channels)
    assert isinstance(norm, StackedNorm)
    return affine(norm)


def _channels(layer: StackedConv | StackedConvTranspose) -> int:
    return layer.weight.shape[2 if isinstance(layer, StackedConv) else 1]


def _matrix(layer: GroupedConv, channels: int, size: int) -> Tensor:
    """[N, C*P, D*Q]: what the layer makes of every unit vector, without its bias."""
    nodes, inputs = len(layer.weight), channels * size * size
    units = torch.eye(inputs).view(inputs, 1, -1, size, size).expand(-1, nodes, -1, -1, -1)
    made: Tensor = layer(units.flatten(1, 2)) - layer(torch.zeros(1, nodes * channels, size, size))
    return made.reshape(inputs, nodes, -1).transpose(0, 1).contiguous()
