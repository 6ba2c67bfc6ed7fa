"""A node's generation in one launch: what its layers do one after another, in every tree's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from treediffusion.config import TreeConfig
from treediffusion.errors import BackendUnavailableError, ShapeError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.tree_conv3x3 import Tiles, level_tiles, path_tiles
from treediffusion.kernels.tree_node_gen import (
    NodeWeights,
    kernel,
    op,
    pack_nodes,
    reference,
    tree_node_gen,
)
from treediffusion.nn.gaussians import sample
from treediffusion.nn.node_stack import Transformations
from treediffusion.nn.stacked import StackedConv, StackedNorm

pytestmark = pytest.mark.usefixtures("interpreted")

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}
NODES, PARENTS = 3, [0, 0, 1]
# (S, Z, C, B): 2x2 and 4x4 maps, nothing whole, one image, one map per tile, one pixel, two parts.
SHAPES = [(2, 16, 32, 5), (4, 8, 20, 3), (3, 5, 7, 1), (7, 3, 4, 1), (1, 4, 4, 19), (2, 4, 70, 1)]


def transformations(latent_channels: int, channels: int, activation: str) -> Transformations:
    torch.manual_seed(latent_channels)
    config = TreeConfig.model_validate(
        {"latent_channels": latent_channels, "channels": channels, "activation": activation}
    )
    module = Transformations(NODES, config).double().eval()
    for norm in module.norms:
        for name, tensor in norm.state_dict().items():
            tensor.copy_(torch.rand_like(tensor) + (0.5 if "var" in name else 0))
    return module.requires_grad_(False)


def packed(module: Transformations, device: torch.device) -> NodeWeights:
    norms = []
    for norm in module.norms:
        assert isinstance(norm, StackedNorm)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norms.append((scale, norm.bias - norm.running_mean * scale))
    convs = [conv.weight for conv in module.convs if isinstance(conv, StackedConv)]
    found = pack_nodes(convs, norms, module.head.weight)
    return NodeWeights(*(part.to(device) for part in found))


def maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run(
    z: Tensor, weights: NodeWeights, noise: Tensor, tiles: Tiles, dtype: torch.dtype, name: Any
) -> Tensor:
    parts = [*(w.to(dtype) for w in weights[:4]), *(b.float() for b in weights[4:])]
    return tree_node_gen(z.to(dtype), NodeWeights(*parts), noise.to(dtype), tiles, activation=name)


@pytest.mark.parametrize(
    ("shape", "activation"),
    [*((shape, "silu") for shape in SHAPES), (SHAPES[2], "relu"), (SHAPES[2], "leaky_relu")],
)
def test_all_nodes_of_a_level(
    shape: tuple[int, int, int, int], activation: str, interpreted: torch.device
) -> None:
    side, latent_channels, channels, batch = shape
    module = transformations(latent_channels, channels, activation)
    z = maps(batch, 2, latent_channels, side, side)
    noise = maps(batch, NODES, latent_channels, side, side)
    want = sample(module(z[:, PARENTS]), noise).flatten(0, 1).to(interpreted)
    z, noise = (x.flatten(0, 1).to(interpreted) for x in (z, noise))
    weights = packed(module, interpreted)
    tiles = level_tiles(PARENTS, 2, batch=batch, pixels=side**2, device=interpreted)
    got = reference.tree_node_gen(z, weights, noise, tiles, activation=activation)  # type: ignore[arg-type]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for dtype, error in ERRORS.items():
        found = run(z, weights, noise, tiles, dtype, activation)
        torch.testing.assert_close(found.double(), want, rtol=error, atol=2 * error)


@pytest.mark.parametrize("node", [[2, 0, -1, 2, 2, 1, 0], [-1, -1], [1]])
def test_sampled_paths_are_parts_of_all_nodes(node: list[int], interpreted: torch.device) -> None:
    """With nodes that no image reaches; images that have arrived may hold anything."""
    batch = len(node)
    module = transformations(5, 12, "silu")
    z, noise = maps(batch, 5, 3, 3), maps(batch, 5, 3, 3)
    everyone = sample(module(z[:, None].expand(-1, NODES, -1, -1, -1)), noise[:, None])
    want = torch.stack([everyone[b, n] * (n >= 0) for b, n in enumerate(node)]).to(interpreted)
    here = torch.tensor(node, device=interpreted)
    z, noise = z.to(interpreted), noise.to(interpreted)
    z[here < 0] = noise[here < 0] = torch.nan
    tiles, weights = path_tiles(here, NODES, pixels=9), packed(module, interpreted)
    got = reference.tree_node_gen(z, weights, noise, tiles, activation="silu")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    found = run(z, weights, noise, tiles, torch.float32, "silu")
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=2e-5)


def test_what_is_no_number_stays_in_its_image(interpreted: torch.device) -> None:
    weights = packed(transformations(5, 12, "relu"), interpreted)
    z, noise = (maps(7, 5, 2, 2).to(interpreted) for _ in range(2))
    tiles = path_tiles(torch.zeros(7, dtype=torch.int64, device=interpreted), NODES, pixels=4)
    want = run(z, weights, noise, tiles, torch.float32, "relu")
    z[3, 2, 0, 1] = torch.nan
    found = run(z, weights, noise, tiles, torch.float32, "relu")
    assert found[3].isnan().any()
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[others], want[others])


def test_nothing_else_is_written(interpreted: torch.device) -> None:
    weights = NodeWeights(*(w.float() for w in packed(transformations(5, 7, "silu"), interpreted)))
    z, noise = (maps(3, 5, 3, 3).to(interpreted).float() for _ in range(2))
    tiles = path_tiles(torch.tensor([1, -1, 1], device=interpreted), NODES, pixels=9)
    whole = torch.full((5, 9, 5), torch.nan, device=interpreted)
    tables = (tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length)
    strides = [x.stride(axis) for x in (z, noise) for axis in (0, 1, 3)]
    kernel.forward[(len(tiles.node),)](
        z, *weights, noise, *tables, *strides, whole[1:-1], SIDE=3, Z=5, C=7,
        **kernel.blocks(tiles.maps, 9, 5, 7), ACTIVATION=1, LEAK=0.3, EPS=1e-7, PRECISION="ieee",
        UPCAST=True, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    assert whole.isnan().all(dim=(1, 2)).tolist() == [True, False, True, False, True]
    assert whole[[1, 3]].isfinite().all()


class Generate(torch.nn.Module):
    def __init__(self, weights: NodeWeights) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, z: Tensor, noise: Tensor, node: Tensor) -> Tensor:
        return tree_node_gen(z, self.weights, noise, path_tiles(node, NODES, pixels=9))


def test_compilers_know_the_operation(interpreted: torch.device) -> None:
    weights = NodeWeights(*(w.float() for w in packed(transformations(5, 7, "silu"), interpreted)))
    z, noise = (maps(3, 5, 3, 3).to(interpreted).float() for _ in range(2))
    node = torch.tensor([1, -1, 1], device=interpreted)
    tiles = path_tiles(node, NODES, pixels=9)
    tables = [tiles.slot_in, tiles.slot_out, tiles.node, tiles.begin, tiles.length]
    arguments = (z, list(weights), noise, tables, tiles.maps, "silu")
    for result in torch.library.opcheck(op._tree_node_gen, arguments).values():
        assert result == "SUCCESS"
    layer, case = Generate(weights), (z, noise, node)
    want = layer(*case)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*case), want)
    forced = torch.export.export(layer, case)
    with use_kernels("auto"):
        plain = torch.export.export(layer, case)
    for program, expected in ((forced, True), (plain, False)):
        targets = [str(node.target) for node in program.graph.nodes]
        assert any("treediffusion" in target for target in targets) == expected
        torch.testing.assert_close(program.module()(*case), want, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(interpreted: torch.device) -> None:
    weights = NodeWeights(*(w.float() for w in packed(transformations(5, 7, "silu"), interpreted)))
    z, noise = (maps(3, 5, 3, 3).to(interpreted).float() for _ in range(2))
    tiles = path_tiles(torch.tensor([1, -1, 1], device=interpreted), NODES, pixels=9)
    with pytest.raises(ShapeError, match="noise"):
        tree_node_gen(z, weights, noise[:2], tiles)
    with pytest.raises(ShapeError, match="head"):
        tree_node_gen(z, weights._replace(head=weights.head[..., :9]), noise, tiles)
    with pytest.raises(BackendUnavailableError, match="gradients"):
        tree_node_gen(z.requires_grad_(), weights, noise, tiles)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_it_compiles(compiled: Callable[..., dict[str, dict[str, Any]]], ones: bool) -> None:
    report = compiled("treediffusion.kernels.tree_node_gen.kernel", arch=90, ones=ones)
    assert len(report) == len(kernel.VARIANTS)
