"""The residual codec for inference only: maps of all leaves side by side, norms as products.

    [B, n, C, S, S] -> [B, n C, S, S] -> convolutions in n groups -> [B, n, D, S', S']

A graph pays for operations. So all leaves go together, where training on a CPU takes one after
another; a norm is ``scale x + shift``, or part of the convolution before it; and nothing is
reshaped in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.codecs.residual import Crown, Down, ResidualBlock, Trunk, Up
from ..nn.stacked import StackedConv, StackedConvTranspose, StackedNorm


def fold_codecs(tree: nn.Module) -> None:
    """Puts a plain chain in the place of every residual encoder or stack of decoders of a tree."""
    for module in list(tree.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Trunk):
                parts = [child.stem, *child.layers, child.norm, child.activation]
                setattr(module, name, nn.Sequential(*map(_flat, parts)))
            elif isinstance(child, Crown):
                last = child.layers[-1]
                assert isinstance(last, StackedConv | StackedConvTranspose)
                ends = nn.Flatten(1, 2), nn.Unflatten(1, (len(last.weight), -1))
                setattr(module, name, nn.Sequential(ends[0], *map(_flat, child.layers), ends[1]))


def _flat(layer: nn.Module) -> nn.Module:
    """The same layer of maps side by side."""
    if isinstance(layer, StackedConv | StackedConvTranspose):
        return GroupedConv(layer, None, flat=True)
    if isinstance(layer, StackedNorm):
        return Affine(layer)
    if isinstance(layer, ResidualBlock):
        return _flat_block(layer)
    if isinstance(layer, Down):
        return layer.layer
    if isinstance(layer, Up):
        bilinear = nn.Upsample(scale_factor=2, mode="bilinear")
        return bilinear if layer.conv is None else GroupedConv(layer.conv, None, flat=True)
    return layer


def _flat_block(block: ResidualBlock) -> ResidualBlock:
    """All norms but the first move into the convolutions before them."""
    norms = [norm for norm in block.norms if isinstance(norm, StackedNorm)]
    for place, conv in enumerate(block.convs):
        assert isinstance(conv, StackedConv)
        after = norms[place + 1] if place + 1 < len(norms) else None
        block.convs[place] = GroupedConv(conv, after, flat=True)
    block.norms = nn.ModuleList([Affine(norms[0]), *(nn.Identity() for _ in norms[1:])])
    if block.shortcut is not None:
        short = GroupedConv(block.shortcut, None, flat=True)
        block.shortcut = short  # type: ignore[assignment]
    return block


class Affine(nn.Module):
    """A norm; scale and shift: [n C, 1, 1]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: StackedNorm) -> None:
        super().__init__()
        for name, values in zip(("scale", "shift"), affine(norm), strict=True):
            self.register_buffer(name, values.flatten()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n C, S, S] -> the same shape."""
        return self.scale * x + self.shift


class GroupedConv(nn.Module):
    """A convolution of maps side by side, with the norm that follows it.

    Its tensors are [n, D, C, K, K] and [n, D], so that a level's nodes are a slice of them; `flat`
    ones, [n D, C, K, K] and [n D], are ready for the convolution.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        layer: StackedConv | StackedConvTranspose,
        norm: StackedNorm | None,
        *,
        flat: bool = False,
    ) -> None:
        super().__init__()
        self.transposed = isinstance(layer, StackedConvTranspose)
        self.padding, self.groups = layer.padding, len(layer.weight) if flat else None
        self.stride = layer.stride if isinstance(layer, StackedConvTranspose) else 1
        self.more = layer.output_padding if isinstance(layer, StackedConvTranspose) else 0
        # Plain tensors, of which a graph may make others.
        weight: Tensor = layer.weight.detach()
        bias = torch.zeros(len(weight), weight.shape[2 if self.transposed else 1])
        if layer.bias is not None:
            bias = layer.bias.detach()
        if norm is not None:
            scale, shift = affine(norm)
            by_output = scale[:, None] if self.transposed else scale[:, :, None]
            weight, bias = weight * by_output[..., None, None], bias * scale + shift
        self.register_buffer("weight", weight.flatten(0, 1) if flat else weight)
        self.register_buffer("bias", bias.flatten() if flat else bias)

    def out_size(self, size: int) -> int:
        """S' for S."""
        kernel = self.weight.shape[-1]
        if self.transposed:
            return self.stride * (size - 1) + kernel - 2 * self.padding + self.more
        return size + 2 * self.padding - kernel + 1

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n C, S, S] -> [B, n D, S', S']."""
        weight, bias, groups = self.weight, self.bias, self.groups
        if groups is None:
            weight, bias, groups = weight.flatten(0, 1), bias.flatten(), len(weight)
        if not self.transposed:
            return F.conv2d(x, weight, bias, padding=self.padding, groups=groups)
        return F.conv_transpose2d(
            x, weight, bias, stride=self.stride, padding=self.padding,
            output_padding=self.more, groups=groups,
        )  # fmt: skip


def affine(norm: StackedNorm) -> tuple[Tensor, Tensor]:
    """[N, C] scale and shift of a norm in eval mode."""
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale
