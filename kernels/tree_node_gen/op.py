"""`tree_node_gen`: which form runs, and the kernel as an operation that compilers know."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ..choice import is_exporting, kernel_choice, takes_kernel
from ..node_posterior.reference import EPS
from ..tree_conv3x3.op import DTYPES, check_tiles, interprets, precision, with_plain_pixels
from ..tree_conv3x3.reference import LEAK, Activation
from ..tree_conv3x3.tiles import Tiles
from . import reference
from .pack import NodeWeights

MOST_PIXELS = 64
"""Of a map: one has to fit in a tile, and a tile in a program's registers."""
MOST_CHANNELS = 128


def tree_node_gen(
    z: Tensor,
    weights: NodeWeights,
    noise: Tensor,
    tiles: Tiles,
    *,
    activation: Activation = "silu",
) -> Tensor:
    """Samples of nodes' priors, given their parents' samples.

    Three 3x3 convolutions with folded norms, each followed by the nonlinearity, and a head:
    mean + sqrt(softplus(raw) + eps) noise. For inference: the kernel has no gradients.

    Args:
        z: [slots, Z, S, S] float, the parents' samples, in any layout.
        weights: of `pack_nodes`, in z's type; biases may be of any.
        noise: [tiles.slots, Z, S, S] float, standard normal, by the slot that is written.
        tiles: of `level_tiles` or `path_tiles`, for maps of S S pixels.
        activation: the nonlinearity.

    Returns:
        [tiles.slots, Z, S, S] float in z's type; zeros where no tile writes.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
        ConfigError: an activation that is none.
        ShapeError: arguments that do not fit together.
    """
    _check(z, weights, noise, tiles, activation)
    # What is exported has to run where there is no Triton, so it is the reference unless forced.
    exported = is_exporting() and kernel_choice() != "triton"
    if exported or not takes_kernel("tree_node_gen", z, unable=_unable(z, weights, noise)):
        return reference.tree_node_gen(z, weights, noise, tiles, activation=activation)
    tables = [tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length]
    y: Tensor = _tree_node_gen(z, list(weights), noise, tables, tiles.maps, activation)
    return y


def _check(z: Tensor, weights: NodeWeights, noise: Tensor, tiles: Tiles, activation: str) -> None:
    check_tiles(z, weights.first, tiles, activation)
    nodes, _, latent_channels, channels = weights.third.shape
    shapes = [(latent_channels,) * 2] * 2 + [(latent_channels, channels)]
    shapes.append((channels, 2 * latent_channels))
    for name, weight, bias, shape in zip(
        NodeWeights._fields, weights[:4], weights[4:], shapes, strict=False
    ):
        if weight.shape != (nodes, 9, *shape) or bias.shape != (nodes, shape[1]):
            got = f"{tuple(weight.shape)} and biases {tuple(bias.shape)}"
            raise ShapeError(name, got=got, expected=str((nodes, 9, *shape)))
    expected = (tiles.slots, *z.shape[1:])
    if noise.shape != expected:
        raise ShapeError("noise", got=tuple(noise.shape), expected=str(expected))


def _unable(z: Tensor, weights: NodeWeights, noise: Tensor) -> str | None:
    """Why the kernel cannot do these arguments."""
    tensors = (z, *weights, noise)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients, which it has not"
    if z.dtype not in DTYPES or any(weight.dtype != z.dtype for weight in weights[:4]):
        return f"maps of {z.dtype} and weights of {weights.first.dtype}"
    if max(weights.third.shape[2:]) > MOST_CHANNELS or z.shape[2] ** 2 > MOST_PIXELS:
        return f"maps of {z.shape[2]}x{z.shape[3]} with {max(weights.third.shape[2:])} channels"
    return None


@torch.library.custom_op("treediffusion::tree_node_gen", mutates_args=())
def _tree_node_gen(
    z: Tensor,
    weights: list[Tensor],
    noise: Tensor,
    tables: list[Tensor],
    maps: int,
    activation: str,
) -> Tensor:
    from . import kernel

    y = _zeros(z, noise)
    z, noise = with_plain_pixels(z), with_plain_pixels(noise)
    side, (latent_channels, channels) = z.shape[2], weights[2].shape[2:]
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
        kernel.forward[(len(tables[2]),)](
            z, *(weight.contiguous() for weight in weights), noise, *tables,
            *(x.stride(axis) for x in (z, noise) for axis in (0, 1, 3)),
            y,
            SIDE=side, Z=latent_channels, C=channels,
            **kernel.blocks(maps, side * side, latent_channels, channels),
            ACTIVATION=kernel.ACTIVATIONS[activation], LEAK=LEAK, EPS=EPS,
            PRECISION=precision(), UPCAST=interprets(),
            num_warps=kernel.WARPS, num_stages=kernel.STAGES, enable_fp_fusion=True,
        )  # fmt: skip
    return y


@_tree_node_gen.register_fake
def _(
    z: Tensor,
    weights: list[Tensor],
    noise: Tensor,
    tables: list[Tensor],
    maps: int,
    activation: str,
) -> Tensor:
    return _zeros(z, noise)


def _zeros(z: Tensor, noise: Tensor) -> Tensor:
    """[slots, Z, S, S] with channels last, as the next level reads them fastest."""
    y = z.new_zeros(noise.shape[0], noise.shape[2], noise.shape[3], noise.shape[1])
    return y.permute(0, 3, 1, 2)
