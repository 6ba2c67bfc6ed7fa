"""Convolutions through a table of tiles: each map meets its own node's weights, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from treediffusion.errors import BackendUnavailableError, ConfigError, ShapeError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.stacked_conv import stacked_conv
from treediffusion.kernels.tree_conv3x3 import (
    Tiles,
    kernel,
    level_tiles,
    op,
    pack_conv,
    path_tiles,
    reference,
    tree_conv3x3,
)
from treediffusion.kernels.tree_conv3x3.reference import Activation
from treediffusion.kernels.tree_conv3x3.tiles import maps_of_tile

pytestmark = pytest.mark.usefixtures("interpreted")

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}
# (side, C, D, B): 2x2 maps, more than one block of results, one image, one map per tile, one pixel.
SHAPES = [(2, 16, 32, 5), (4, 12, 70, 9), (3, 5, 3, 1), (7, 70, 9, 2), (1, 4, 4, 67), (11, 3, 2, 2)]
PARENTS = [0, 0, 1]


def a_layer(channels: int, out_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """[3, D, C, 3, 3] weights, [3, D] scales and shifts."""
    generator = torch.Generator().manual_seed(channels)
    shape = (3, out_channels, channels, 3, 3)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    scale, shift = torch.randn(2, 3, out_channels, generator=generator, dtype=torch.float64)
    return weight / (3 * channels**0.5), scale, shift


def maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def check(
    x: Tensor, tiles: Tiles, want: Tensor, layer: tuple[Tensor, ...], activation: Activation
) -> None:
    """The reference in float64, and the kernel in every type, against what is wanted."""
    weight, bias = pack_conv(layer[0], scale=layer[1], shift=layer[2])
    got = reference.tree_conv3x3(x, weight, bias, tiles, activation=activation)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for dtype, error in ERRORS.items():
        found = tree_conv3x3(
            x.to(dtype), weight.to(dtype), bias.float(), tiles, activation=activation
        )
        torch.testing.assert_close(found.double(), want, rtol=error, atol=2 * error)


@pytest.mark.parametrize(
    ("shape", "activation"),
    [*((shape, "silu") for shape in SHAPES), *((SHAPES[2], name) for name in get_args(Activation))],
)
def test_all_nodes_of_a_level(
    shape: tuple[int, int, int, int], activation: Activation, interpreted: torch.device
) -> None:
    side, channels, out_channels, batch = shape
    layer = [part.to(interpreted) for part in a_layer(channels, out_channels)]
    x = maps(batch, 2, channels, side, side).to(interpreted)
    want = stacked_conv(x[:, PARENTS], layer[0], padding=1)
    want = want * layer[1][..., None, None] + layer[2][..., None, None]
    tiles = level_tiles(PARENTS, 2, batch=batch, pixels=side * side, device=interpreted)
    want = reference.activate(want, activation).flatten(0, 1)
    check(x.flatten(0, 1), tiles, want, tuple(layer), activation)


@pytest.mark.parametrize("node", [[2, 0, -1, 2, 2, 1, 0], [1] * 9, [-1, -1], [0]])
@pytest.mark.parametrize("side", [2, 4, 5])
def test_sampled_paths(node: list[int], side: int, interpreted: torch.device) -> None:
    """With nodes that no image reaches, and images that have arrived."""
    layer = [part.to(interpreted) for part in a_layer(6, 20)]
    x = maps(len(node), 6, side, side).to(interpreted)
    want = torch.zeros(len(node), 20, side, side, dtype=torch.float64, device=interpreted)
    for image, n in enumerate(node):
        if n >= 0:
            y = F.conv2d(x[image], layer[0][n], padding=1) * layer[1][n][:, None, None]
            want[image] = F.silu(y + layer[2][n][:, None, None])
    tiles = path_tiles(torch.tensor(node, device=interpreted), 3, pixels=side * side)
    check(x, tiles, want, tuple(layer), "silu")


@pytest.mark.parametrize("batch", [1, 4, 16, 37])
def test_tiles_cover_each_pair_once(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.randint(-1, 5, (batch,), generator=generator)
    for tiles in (
        path_tiles(drawn, 5, pixels=16),
        level_tiles([0, 2, 2, 1, 0], 3, batch=batch, pixels=16, device=torch.device("cpu")),
    ):
        assert tiles.maps == maps_of_tile(16) == 4
        seen = torch.full_like(tiles.pair_node, -1)
        for node, begin, length in zip(tiles.node, tiles.begin, tiles.length, strict=True):
            assert 0 <= length <= tiles.maps
            assert (seen[begin : begin + length] == -1).all()
            seen[begin : begin + length] = node
        assert torch.equal(seen, tiles.pair_node)
        assert sorted(tiles.slot_out.tolist()) == list(range(tiles.slots))
    path = path_tiles(drawn, 5, pixels=16)
    assert torch.equal(drawn[path.slot_in], path.pair_node.long())


def test_nothing_else_is_written_nor_read(interpreted: torch.device) -> None:
    """Results between NaN; maps and weights that no tile names are NaN, too."""
    node = torch.tensor([1, -1, 1], device=interpreted)
    layer = [part.to(interpreted).float() for part in a_layer(5, 7)]
    weight, bias = pack_conv(layer[0], scale=layer[1], shift=layer[2])
    x = maps(3, 5, 3, 3).to(interpreted).float()
    weight[[0, 2]], bias[[0, 2]], x[1] = torch.nan, torch.nan, torch.nan
    tiles = path_tiles(node, 3, pixels=9)
    y = tree_conv3x3(x, weight, bias, tiles)
    assert y.isfinite().all()
    assert not y[1].any()
    whole = torch.full((5, 9, 7), torch.nan, device=interpreted)
    sizes = kernel.blocks(tiles.maps, 9, 5, 7)
    kernel.forward[(len(tiles.node), 1)](
        x, weight, bias, tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length,
        *(x.stride(k) for k in (0, 1, 3)), whole[1:-1], SIDE=3, C=5, D=7, **sizes,
        ACTIVATION=0, LEAK=0.3, PRECISION="ieee", UPCAST=True, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    assert whole.isnan().all(dim=(1, 2)).tolist() == [True, False, True, False, True]
    assert torch.equal(whole[1:-1][[0, 2]].transpose(1, 2).unflatten(2, (3, 3)), y[[0, 2]])


def test_any_layout_and_results_with_channels_last(interpreted: torch.device) -> None:
    layer = [part.to(interpreted).float() for part in a_layer(5, 16)]
    weight, bias = pack_conv(layer[0])
    assert not bias.any()
    tiles = level_tiles(PARENTS, 2, batch=2, pixels=9, device=interpreted)
    x = maps(4, 5, 3, 3).to(interpreted).float()
    want = tree_conv3x3(x, weight, bias, tiles)
    assert want.is_contiguous(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.cat([x, x], dim=1)[:, :5]
    for given in (last, turned, wide):
        assert torch.equal(tree_conv3x3(given, weight, bias, tiles), want)


def test_compilers_know_the_operation(interpreted: torch.device) -> None:
    weight, bias = (part.float().to(interpreted) for part in pack_conv(a_layer(5, 16)[0]))
    x = maps(3, 5, 3, 3).to(interpreted).float()

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, node: Tensor) -> Tensor:
        tiles = path_tiles(node, 3, pixels=9)
        return tree_conv3x3(x, weight, bias, tiles, activation="silu")

    node = torch.tensor([2, -1, 0], device=interpreted)
    tiles = path_tiles(node, 3, pixels=9)
    tables = (tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length)
    arguments = (x, weight, bias, *tables, tiles.slots, tiles.maps, "silu")
    for result in torch.library.opcheck(op._tree_conv3x3, arguments).values():
        assert result == "SUCCESS"
    want = convolve(x, weight, bias, node)
    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias, node), want)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor, node: Tensor) -> Tensor:
            return convolve(x, weight, bias, node)

    case = (x, weight, bias, node)
    forced = torch.export.export(Layer(), case)
    with use_kernels("auto"):
        plain = torch.export.export(Layer(), case)
    for program, expected in ((forced, True), (plain, False)):
        targets = [str(node.target) for node in program.graph.nodes]
        assert any("treediffusion" in target for target in targets) == expected
        torch.testing.assert_close(program.module()(*case), want, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(interpreted: torch.device) -> None:
    weight, bias = (part.float().to(interpreted) for part in pack_conv(a_layer(5, 16)[0]))
    x = maps(4, 5, 3, 3).to(interpreted).float()
    tiles = level_tiles(PARENTS, 2, batch=2, pixels=9, device=interpreted)
    with pytest.raises(ConfigError, match="activation"):
        tree_conv3x3(x, weight, bias, tiles, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="maps"):
        tree_conv3x3(x[:, :4], weight, bias, tiles)
    with pytest.raises(ShapeError, match="tiles"):
        tree_conv3x3(x[..., :2, :2], weight, bias, tiles)
    with pytest.raises(BackendUnavailableError, match="gradients"):
        tree_conv3x3(x, weight.requires_grad_(), bias, tiles)
    with torch.no_grad():
        tree_conv3x3(x, weight, bias, tiles)
    with pytest.raises(BackendUnavailableError, match="float64"):
        tree_conv3x3(x.double(), weight.detach().double(), bias, tiles)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_it_compiles(compiled: Callable[..., dict[str, dict[str, Any]]], ones: bool) -> None:
    report = compiled("treediffusion.kernels.tree_conv3x3.kernel", arch=90, ones=ones)
    assert len(report) == len(kernel.VARIANTS)
