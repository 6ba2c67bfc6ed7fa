"""Group norm with SiLU in one pass: values and gradients are those of float64, whatever the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from treediffusion.config import load_preset
from treediffusion.errors import BackendUnavailableError, ConfigError, ShapeError
from treediffusion.kernels.choice import Choice, use_kernels
from treediffusion.kernels.gn_silu import gn_silu, op, reference, tiles
from treediffusion.kernels.gn_silu.reference import Mode
from treediffusion.kernels.gn_silu.tiles import CONDITIONED, SITES, cut
from treediffusion.nn.unet import ResBlock, UNet

pytestmark = pytest.mark.usefixtures("interpreted")

MODES: tuple[Mode, ...] = ("none", "scale_shift", "add")
# (B, groups, channels of a group, H, W)
SHAPES = [
    (2, 3, 1, 1, 1),
    (2, 5, 3, 3, 5),
    (3, 2, 4, 7, 7),
    (1, 2, 12, 28, 28),
]
# Relative and absolute, of maps; float32 also for whatever is not a map.
ERRORS = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (1.6e-2, 4e-3), torch.float16: (4e-3, 1e-3)}


class Case(NamedTuple):
    """One call: a map, the parameters, and a matrix whose slice is the piece."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    matrix: Tensor
    dy: Tensor
    groups: int
    mode: Mode

    def piece(self, matrix: Tensor) -> Tensor | None:
        width = op.WIDTHS[self.mode] * self.x.shape[1]
        return matrix[:, 3 : 3 + width] if width else None


def a_case(
    shape: tuple[int, int, int, int, int],
    mode: Mode,
    device: torch.device,
    *,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
    mean: float = 0.0,
) -> Case:
    batch, groups, deep, height, width = shape
    draw = torch.Generator().manual_seed(sum(shape))
    channels = groups * deep
    layout = torch.channels_last if last else torch.contiguous_format

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=draw).to(device)

    def a_map(shifted: float) -> Tensor:
        drawn = normal(batch, channels, height, width) + shifted
        return drawn.to(dtype).contiguous(memory_format=layout)

    x, dy = a_map(mean), a_map(0.0)
    matrix = normal(batch, 2 * channels + 7).to(dtype)
    return Case(x, normal(channels) + 1, normal(channels), matrix, dy, groups, mode)


Operation = Callable[..., Tensor]


def run(case: Case, operation: Operation, *, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Values, and gradients of map, weight, bias and the matrix that the piece is cut from."""
    tensors = (case.x, case.weight, case.bias, case.matrix)
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    x, weight, bias, matrix = leaves
    piece = case.piece(matrix)
    y = operation(x, weight, bias, groups=case.groups, piece=piece, mode=case.mode)
    wanted = leaves if piece is not None else leaves[:3]
    grads = torch.autograd.grad(y, wanted, case.dy.to(y.dtype))
    return [y.detach(), *grads]


def agree(case: Case, *, factor: float = 1.0) -> list[Tensor]:
    """Asserts that all results are those of float64, and gives them."""
    found, truth = run(case, gn_silu), run(case, reference.gn_silu, dtype=torch.float64)
    sources = (case.x, case.x, case.weight, case.bias, case.matrix)
    for mine, true, source in zip(found, truth, sources, strict=False):
        assert mine.dtype == source.dtype
        rtol, atol = ERRORS[mine.dtype]
        scale = max(1.0, float(true.abs().max()))
        torch.testing.assert_close(mine.double(), true, rtol=rtol, atol=factor * atol * scale)
    assert found[0].stride() == found[1].stride() == case.x.stride()
    return found


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    shape: tuple[int, int, int, int, int], mode: Mode, last: bool, interpreted: torch.device
) -> None:
    agree(a_case(shape, mode, interpreted, last=last))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_half_precision(mode: Mode, dtype: torch.dtype, interpreted: torch.device) -> None:
    """Maps and pieces narrow, parameters wide, as under autocast."""
    agree(a_case((2, 4, 3, 5, 5), mode, interpreted, last=True, dtype=dtype))


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", MODES)
def test_programs_that_share_groups_or_walk(
    mode: Mode, last: bool, interpreted: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five groups in programs of four or eight; and chunks, the last of them cut."""
    monkeypatch.setattr(tiles, "BUSY", 0)
    agree(a_case((2, 5, 3, 3, 5), mode, interpreted, last=last))
    monkeypatch.setattr(tiles, "RESIDENT", 256)
    monkeypatch.setattr(tiles, "CHUNK", 128)
    for shape in ((1, 3, 3, 7, 13), (1, 2, 4, 8, 16)):
        agree(a_case(shape, mode, interpreted, last=last, mean=10.0))


@pytest.mark.parametrize("mode", MODES)
def test_a_large_mean_does_not_swallow_the_deviation(
    mode: Mode, interpreted: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 holds 1,000 to 6e-5, so no statistics are better than that."""
    case = a_case((2, 2, 4, 9, 9), mode, interpreted, mean=1000.0)
    agree(case, factor=20.0)
    monkeypatch.setattr(tiles, "RESIDENT", 128)
    monkeypatch.setattr(tiles, "CHUNK", 64)
    agree(case, factor=20.0)


def test_without_silu(interpreted: torch.device) -> None:
    case = a_case((2, 3, 4, 5, 3), "scale_shift", interpreted)

    def plain(operation: Operation) -> Operation:
        return lambda *args, **options: operation(*args, **options, silu=False, eps=0.1)

    found = run(case, plain(gn_silu))
    truth = run(case, plain(reference.gn_silu), dtype=torch.float64)
    for mine, true in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 5, 3, 3, 5), (2, 3, 1, 1, 1)], ids=str)
def test_everything_is_written_and_nothing_else(
    shape: tuple[int, int, int, int, int], mode: Mode, last: bool, interpreted: torch.device
) -> None:
    """Results lie amid margins; all of them are NaN before."""
    case = a_case(shape, mode, interpreted, last=last)
    piece = case.piece(case.matrix)
    margin, held = 64, []

    def room(like: Tensor) -> Tensor:
        """A hole of NaN in a field of -9, laid out as another tensor is."""
        field = torch.full((like.numel() + 2 * margin,), -9.0, device=interpreted)
        field[margin : margin + like.numel()] = torch.nan
        held.append(field)
        return field.as_strided(like.shape, like.stride(), margin)

    y, dx = room(case.x), room(case.x)
    stats = room(torch.empty(shape[0], 2, case.groups))
    sums, dpiece = op._row_gradients(case.x, piece)
    sums, dpiece = room(sums), room(dpiece)
    parameters = (case.weight, case.bias, piece)
    op.run_forward(case.x, *parameters, case.groups, mode, True, 1e-5, y=y, stats=stats)
    op.run_backward(
        *(case.dy, case.x, *parameters, stats, mode, True), dx=dx, sums=sums, dpiece=dpiece
    )
    for field in held:
        assert not field.isnan().any()
        assert (field[:margin] == -9.0).all()
        assert (field[-margin:] == -9.0).all()
    truth = run(case, reference.gn_silu, dtype=torch.float64)
    torch.testing.assert_close(y.double(), truth[0], rtol=1e-5, atol=2e-5)
    # Of a group of one number the deviation is sqrt(eps), and dx the 316-fold of what cancels.
    torch.testing.assert_close(dx.double(), truth[1], rtol=1e-5, atol=2e-4)


def test_a_piece_in_any_layout(interpreted: torch.device) -> None:
    """Rows apart, columns apart, one row for all, and all samples' rows of one number."""
    case = a_case((3, 2, 2, 3, 3), "add", interpreted)
    wide = case.matrix[:, :4]
    for piece in (wide, wide.t().contiguous().t(), wide[:1].expand(3, 4)):
        arguments: dict[str, Any] = {"groups": 2, "piece": piece, "mode": "add"}
        found = gn_silu(case.x, case.weight, case.bias, **arguments)
        truth = reference.gn_silu(case.x, case.weight, case.bias, **arguments)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=2e-5)
    agree(a_case((3, 1, 1, 2, 2), "add", interpreted))


def test_maps_and_gradients_in_other_layouts(interpreted: torch.device) -> None:
    """A cut map is copied; a gradient that is one number, or has other strides, too."""
    case = a_case((2, 2, 3, 4, 6), "none", interpreted)
    cut_map = case.x[:, :, :, ::2]
    for x in (cut_map, cut_map.contiguous(memory_format=torch.channels_last)):
        for make in (torch.ones_like, lambda y: torch.ones(1, device=y.device).expand_as(y)):
            leaf = x.detach().requires_grad_()
            y = gn_silu(leaf, case.weight, case.bias, groups=2)
            (dx,) = torch.autograd.grad(y, leaf, make(y))
            true_leaf = x.detach().requires_grad_()
            true = reference.gn_silu(true_leaf, case.weight, case.bias, groups=2)
            (true_dx,) = torch.autograd.grad(true.sum(), true_leaf)
            torch.testing.assert_close(y, true, rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(dx, true_dx, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_results_repeat_and_samples_are_apart(mode: Mode, interpreted: torch.device) -> None:
    case = a_case((3, 2, 3, 5, 5), mode, interpreted)
    first, second = run(case, gn_silu), run(case, gn_silu)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    alone = case._replace(x=case.x[1:2], matrix=case.matrix[1:2], dy=case.dy[1:2])
    y, dx, *_ = run(alone, gn_silu)
    assert torch.equal(y, first[0][1:2])
    assert torch.equal(dx, first[1][1:2])


def test_nan_stays_in_its_group(interpreted: torch.device) -> None:
    case = a_case((2, 2, 3, 3, 3), "none", interpreted)
    case.x[0, 1, 0, 0] = torch.nan
    y, dx, *_ = run(case, gn_silu)
    for tensor in (y, dx):
        assert tensor[0, :3].isnan().all()
        assert not tensor[0, 3:].isnan().any()
        assert not tensor[1].isnan().any()


def test_activations_far_out(interpreted: torch.device) -> None:
    """SiLU neither overflows nor loses its sign where exp would."""
    case = a_case((1, 1, 2, 4, 4), "none", interpreted)
    case = case._replace(weight=case.weight * 1e4)
    agree(case)


def test_no_samples(interpreted: torch.device) -> None:
    case = a_case((2, 2, 3, 3, 3), "scale_shift", interpreted)
    none = case._replace(x=case.x[:0], matrix=case.matrix[:0], dy=case.dy[:0])
    y, dx, dweight, dbias, dmatrix = run(none, gn_silu)
    assert y.shape == dx.shape == (0, 6, 3, 3)
    assert dmatrix.shape == none.matrix.shape
    assert not dweight.any()
    assert not dbias.any()


@pytest.mark.parametrize("mode", ["none", "add"])
def test_torch_knows_the_operation(mode: Mode, interpreted: torch.device) -> None:
    """Schema, shapes and strides without values, autograd, and tracing with open sizes."""
    case = a_case((2, 2, 2, 3, 3), mode, interpreted, last=True)
    x, weight, bias = (t.requires_grad_() for t in (case.x, case.weight, case.bias))
    piece = case.piece(case.matrix.requires_grad_())
    torch.library.opcheck(op._forward, (x, weight, bias, piece, 2, mode, True, 1e-5))


@pytest.mark.parametrize("mode", MODES)
def test_compiled_whole(mode: Mode, interpreted: torch.device) -> None:
    case = a_case((2, 2, 3, 3, 3), mode, interpreted)
    together = torch.compile(gn_silu, fullgraph=True, backend="aot_eager")
    for mine, true in zip(run(case, together), run(case, gn_silu), strict=True):
        assert torch.equal(mine, true)


class Norm(torch.nn.Module):
    """The operation as a module calls it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = torch.nn.GroupNorm(2, channels)

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        weight, bias = self.inner.weight, self.inner.bias
        return gn_silu(x, weight, bias, groups=2, piece=piece, mode="scale_shift")


def test_exported_with_the_kernel_only_if_forced(interpreted: torch.device) -> None:
    case = a_case((2, 2, 3, 3, 3), "scale_shift", interpreted)
    norm = Norm(6).to(interpreted)
    piece = case.piece(case.matrix)
    assert piece is not None
    truth = norm(case.x, piece)
    choices: tuple[Choice, ...] = ("triton", "auto")
    for choice in choices:
        with use_kernels(choice):
            program = torch.export.export(norm, (case.x, piece))
        assert ("treediffusion.gn_silu" in str(program.graph)) == (choice == "triton")
        torch.testing.assert_close(program.module()(case.x, piece), truth, rtol=1e-5, atol=2e-5)


def test_what_does_not_fit_is_refused(interpreted: torch.device) -> None:
    case = a_case((2, 2, 3, 3, 3), "add", interpreted)
    x, weight, bias, piece = case.x, case.weight, case.bias, case.matrix[:, :6]
    with pytest.raises(ConfigError, match="scale_shift"):
        gn_silu(x, weight, bias, groups=2, mode="scale")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="multiple of 4"):
        gn_silu(x, weight, bias, groups=4)
    for mode in ("none", "scale_shift"):
        with pytest.raises(ShapeError, match=mode):
            gn_silu(x, weight, bias, groups=2, piece=piece, mode=mode)
    with pytest.raises(ShapeError, match="add"):
        gn_silu(x, weight, bias, groups=2, mode="add")
    with pytest.raises(BackendUnavailableError, match="float64"):
        gn_silu(x.double(), weight, bias, groups=2)
    with use_kernels("auto"):
        assert gn_silu(x.double(), weight.double(), bias.double(), groups=2).dtype == torch.float64


@pytest.mark.parametrize("name", ["paper-mnist", "paper-cifar10", "paper-celeba"])
def test_the_table_of_sites_is_that_of_the_networks(name: str) -> None:
    channels, side = {"paper-mnist": (1, 28), "paper-cifar10": (3, 32)}.get(name, (3, 64))
    found: set[tuple[int, int]] = set()
    conditioned: set[tuple[int, int]] = set()
    with torch.device("meta"):
        net = UNet(channels, side, load_preset(name).diffusion.unet)
        after = {id(block.norm2) for block in net.modules() if isinstance(block, ResBlock)}

        def note(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            site = (inputs[0].shape[1], inputs[0].shape[2])
            (conditioned if id(module) in after else found).add(site)

        for module in net.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_pre_hook(note)
        net(torch.zeros(1, channels, side, side), torch.zeros(1, net.embed_dim))
    assert found | conditioned <= set(SITES)
    assert conditioned <= set(CONDITIONED)


def test_no_tile_is_larger_than_the_registers_hold() -> None:
    for channels, side in SITES:
        for last in (False, True):
            for batch in (1, 256):
                for size in (2, 4):
                    tile = cut(
                        batch, 32, channels // 32, side**2, channels_last=last, itemsize=size
                    )
                    assert tile.groups * tile.channels * tile.pixels <= tiles.RESIDENT
                    assert tile.chunks * tile.pixels >= side**2
                    assert tile.channels >= channels // 32


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True], ids=["as listed", "integers of 1"])
def test_variants_compile(ones: bool, compiled: Callable[..., dict[str, Any]]) -> None:
    """Small maps, large ones, and such as are walked; all of them are built elsewhere."""
    pytest.importorskip("triton")
    some = r"scale_shift_bf16_.*_(c64_s32|c128_s4|c128_s64)$"
    built = compiled("treediffusion.kernels.gn_silu.kernel", ones=ones, only=some)
    assert len(built) == 6
    assert max(variant["shared"] for variant in built.values()) <= 99 * 1024
