"""A stack of transformations as the kernel reads it, with the norms folded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..tree_conv3x3.pack import pack_conv


class NodeWeights(NamedTuple):
    """Three convolutions with their norms, and the head, of N nodes; see `pack_conv`.

    Attributes:
        first: [N, 9, Z, Z] float.
        second: [N, 9, Z, Z] float.
        third: [N, 9, Z, C] float.
        head: [N, 9, C, 2 Z] float, means, then variances before softplus.
        first_bias: [N, Z] float.
        second_bias: [N, Z] float.
        third_bias: [N, C] float.
        head_bias: [N, 2 Z] float.
    """

    first: Tensor
    second: Tensor
    third: Tensor
    head: Tensor
    first_bias: Tensor
    second_bias: Tensor
    third_bias: Tensor
    head_bias: Tensor


def pack_nodes(
    convs: Sequence[Tensor], norms: Sequence[tuple[Tensor, Tensor]], head: Tensor
) -> NodeWeights:
    """The weights of `nn.node_stack.Transformations` that has maps.

    Args:
        convs: three of [N, D, C, 3, 3] float.
        norms: their norms in eval mode, [N, D] scale and shift each; see `pack_conv`.
        head: [N, 2 Z, C, 3, 3] float.
    """
    layers = [
        pack_conv(weight, scale=scale, shift=shift)
        for weight, (scale, shift) in zip(convs, norms, strict=True)
    ]
    weights, biases = zip(*layers, pack_conv(head), strict=True)
    return NodeWeights(*weights, *biases)
