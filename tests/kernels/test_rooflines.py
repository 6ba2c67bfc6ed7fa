"""Rooflines of the kernels: counts against counts made otherwise, and the GPU's script on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from cases import kernels_level, kernels_maps, kernels_passes, kernels_rows, kernels_tree
from cases.kernels import KERNEL_GOALS, LOST, Roofline, worst_error
from cases.kernels_run import Run
from goals_list import GOALS
from treediffusion import noise

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")
SMALL = kernels_level.SMALL
ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg", "exp", "log", "sqrt", "abs"}
ARITHMETIC |= {"maximum", "minimum"}


class Count(TorchDispatchMode):
    """Elements that arithmetic writes, or sums read; where results are as large as `least`."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.flops = least, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__.rstrip("_")
        read = args[0].numel() if name == "sum" else 0
        made = found.numel() if name in ARITHMETIC else 0
        self.flops += sum(size for size in (read, made) if size >= self.least)
        return found


def counted(least: int, work: Callable[[], object]) -> int:
    with Count(least) as count:
        work()
    return count.flops


def size_of(*parts: Tensor) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


def sigmoid(z: Tensor) -> Tensor:
    return torch.div(torch.ones_like(z), torch.exp(-z) + 1)


def softplus(x: Tensor) -> Tensor:
    t = torch.exp(-x.abs())
    u = 1 + t
    return torch.maximum(x, torch.zeros_like(x)) + torch.log(u) * (t / (u - 1))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = BENCH / "gpu" / "kernels.py"
    spec = importlib.util.spec_from_file_location("gpu_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its own names
    spec.loader.exec_module(module)
    return module


# Group norm


@pytest.mark.parametrize("mode", ["none", "add", "scale_shift"])
@pytest.mark.parametrize("silu", [True, False])
def test_flops_of_a_norm_are_those_of_its_formulas(mode: Any, silu: bool) -> None:
    """Written out operation by operation, as README.md of `gn_silu` has them."""
    x, dy = torch.randn(2, 1, 4, 4, 9).double().unbind()  # [B, groups, D, P]
    row, group = torch.ones(1, 4, 4, 1).double(), torch.ones(1, 4, 1, 1).double()

    def forward() -> None:
        moved = x + row if mode == "add" else x
        moved.sum(dim=(2, 3))
        away = moved - group
        (away * away).sum(dim=(2, 3))
        z = (moved - group) * group * row + row
        if silu:
            _ = z / (torch.exp(-z) + 1)

    def backward() -> None:
        x_hat = ((x + row if mode == "add" else x) - group) * group
        dz = dy
        if silu:
            z = x_hat * row + row
            s = sigmoid(z)
            dz = dy * (s * (1 + z * (1 - s)))
        dz.sum(dim=3)
        (dz * x_hat).sum(dim=3)
        dx = group * (dz * row - group - x_hat * group)
        if mode == "add":
            dx.sum(dim=3)

    setting = kernels_maps.Setting(16, 3, mode, silu, batch=1, groups=4)
    assert kernels_maps.norm_flops(setting) == counted(x.numel(), forward)
    trains = replace(setting, trains=True)
    both = counted(x.numel(), forward) + counted(x.numel(), backward)
    assert kernels_maps.norm_flops(trains) == both


@pytest.mark.parametrize(("mode", "width"), [("none", 0), ("add", 1), ("scale_shift", 2)])
def test_bytes_of_a_norm_are_those_of_its_tensors(mode: Any, width: int) -> None:
    batch, channels, side, groups = 2, 6, 3, 3
    setting = kernels_maps.Setting(
        channels, side, mode, batch=batch, dtype=torch.float16, groups=groups
    )
    x = torch.empty(batch, channels, side, side, dtype=torch.float16)
    weight, piece = x.new_empty(2, channels), x.new_empty(batch, width * channels)
    stats, sums = torch.empty(batch, 2, groups), torch.empty(batch, 2, channels)
    forward = size_of(x, weight, piece, x, stats)
    assert kernels_maps.norm_bytes(setting) == forward
    read = size_of(x, x, weight, piece, stats, sums)
    written = size_of(x, weight, piece, sums)
    trains = replace(setting, trains=True)
    assert kernels_maps.norm_bytes(trains) == forward + read + written


# The tree


@pytest.mark.parametrize(
    ("build", "form"),
    [
        (kernels_tree.conv3x3, "eager"),
        (kernels_tree.conv3x3, "bmm"),
        (kernels_tree.node_gen, "eager"),
        (kernels_tree.stacked, "eager"),
        (kernels_passes.generation, "grouped"),
        (kernels_passes.posterior_pass, "eager"),
    ],
)
def test_flops_of_products_are_those_that_pytorch_counts(
    build: Callable[..., Roofline], form: str
) -> None:
    roofline = build(SMALL, CPU)
    with FlopCounterMode(display=False) as counter:
        roofline.forms[form]()
    assert roofline.flops == counter.get_total_flops()


def test_bytes_of_a_level_are_those_of_its_tensors() -> None:
    parents, setting = SMALL.widest, SMALL
    above, nodes = max(parents) + 1, len(parents)
    weights = kernels_level.level_weights(setting, nodes, CPU)
    tiles = setting.tiles(parents, above, CPU)
    table = size_of(tiles.node, tiles.begin, tiles.length, tiles.slot_in, tiles.slot_out)
    under, own = (setting.maps(count, setting.latent, CPU) for count in (above, nodes))
    wide = setting.maps(nodes, setting.channels, CPU)
    third = size_of(under, weights.convs[2], weights.biases[2], wide) + table
    assert kernels_tree.conv3x3(setting, CPU).bytes == third
    whole = size_of(under, *weights.packed, own, own) + table
    assert kernels_tree.node_gen(setting, CPU).bytes == whole
    assert kernels_tree.stacked(setting, CPU).bytes == size_of(own, weights.convs[0], own)


def test_bytes_of_passes_are_those_of_their_tensors() -> None:
    root, levels = kernels_passes.make_levels(SMALL, CPU)
    parts = [root]
    for level in levels:
        parts += [*level.weights.packed, level.noise, level.noise]
    assert kernels_passes.generation(SMALL, CPU).bytes == size_of(*parts)
    for level in levels:
        parts += [level.feature, level.weights.dense]
    nats = 4 * SMALL.batch * (SMALL.topology.num_nodes - 1)
    assert kernels_passes.posterior_pass(SMALL, CPU).bytes == size_of(*parts) + nats


def test_the_floors_are_those_of_the_published_tree() -> None:
    """43.5 and 65.2 GFLOP, 55 and 83 us at 790 TFLOP/s; the tree is that of the other cases."""
    from cases import treevae

    tree = kernels_level.COLOUR.topology
    assert tree == treevae.ten_leaves()
    assert (tree.num_leaves, tree.num_nodes) == (10, 19)
    pairs = 256 * (tree.num_nodes - 1)
    made = pairs * kernels_tree.node_flops(kernels_level.COLOUR)
    assert made == pytest.approx(43.5e9, rel=1e-3)
    both = made + kernels_tree.conv_flops(pairs, 16, 128, 128)
    assert both == pytest.approx(65.2e9, rel=1e-3)


def test_counts_of_the_posterior() -> None:
    roofline = kernels_tree.posterior(SMALL, CPU)
    shape = (SMALL.batch, SMALL.topology.num_nodes - 1, SMALL.latent, SMALL.pixels)
    mean_i, raw_i, mean_p, raw_p, drawn = torch.randn(5, *shape).unbind()
    eps = 1e-7

    def forward() -> None:
        var_i, var_p = softplus(raw_i) + eps, softplus(raw_p) + eps
        apart, both = mean_i - mean_p, var_i + var_p
        share_i, share_p = var_i / both, var_p / both
        _ = mean_p + apart * share_p + torch.sqrt(var_p * share_i + eps) * drawn
        more = torch.div(torch.full_like(var_p, eps), var_p)
        square = apart * share_p * (apart / both)
        (square + (more - share_p) - torch.log(share_i + more)).sum(dim=(2, 3))

    assert roofline.flops == counted(drawn.numel(), forward)
    # Five maps are read and one is written; nats of each node.
    assert roofline.bytes == 6 * size_of(drawn) + 4 * shape[0] * shape[1]


def test_counts_of_the_routes() -> None:
    """A turn's -softplus(-x), or its mirror image, is added once for each node below it."""
    roofline = kernels_tree.routing(SMALL, CPU)
    tree = SMALL.topology
    x = torch.randn(SMALL.batch)
    turn = counted(1, lambda: torch.zeros_like(x) - softplus(-x))
    assert roofline.flops == turn * int(tree.depth.sum())
    nodes, routers, batch = tree.num_nodes, len(tree.routers), SMALL.batch
    table = torch.empty(nodes, 4 + int(tree.depth.max()), dtype=torch.int32)
    floats = torch.empty(batch, 2 * routers + nodes)
    leaves = torch.empty(batch, dtype=torch.int64)
    assert roofline.bytes == size_of(table, floats, leaves)


# Small operations


def test_counts_of_the_conditions() -> None:
    setting = kernels_rows.SMALL
    time, cond = torch.randn(setting.embedding), torch.randn(setting.batch, setting.embedding)

    def silu_sum() -> None:
        z = time + cond
        _ = z / (torch.exp(-z) + 1)

    roofline = kernels_rows.condition(setting, CPU)
    assert roofline.flops == counted(1, silu_sum)
    assert roofline.bytes == size_of(time, cond, cond)


def test_counts_of_the_paths() -> None:
    setting = kernels_rows.SMALL
    roofline = kernels_rows.path_sum(setting, CPU)
    paths = kernels_level.COLOUR.topology.paths[: setting.batch]
    used = torch.randn(int((paths >= 0).sum()), setting.embedding)

    def silu_sum() -> None:
        (used / (torch.exp(-used) + 1)).sum(dim=0)

    assert roofline.flops == counted(1, silu_sum)
    result = torch.empty(setting.batch, setting.embedding)
    assert roofline.bytes == size_of(used, result, torch.empty(paths.shape, dtype=torch.int64))


def test_counts_of_the_update() -> None:
    setting = kernels_rows.SMALL
    x, output, noise_, zero = torch.randn(4, setting.batch, setting.pixels).unbind()
    a, b, c, e, tau = torch.randn(5).unbind()

    def step() -> None:
        x0 = torch.minimum(torch.maximum(a * x - b * output, zero), zero)
        _ = c * x0 + e * output + tau * noise_

    roofline = kernels_rows.update(setting, CPU)
    assert roofline.flops == counted(1, step)
    row_and_step = 5 * 4 + 8
    assert roofline.bytes == size_of(x, output, noise_, x) + row_and_step


class Tally(np.ndarray):
    """Counts float32 results of NumPy's arithmetic."""

    flops = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Tally) else x for x in inputs]
        found = getattr(ufunc, method)(*plain, **kwargs)
        names = ("add", "subtract", "multiply", "maximum", "sqrt")
        if found.dtype == np.float32 and ufunc.__name__ in names:
            Tally.flops += found.size
        return found.view(Tally)


def test_counts_of_the_normals() -> None:
    Tally.flops = 0
    found = noise.normals_from_words(np.arange(16, dtype=np.uint64).view(Tally))
    assert Tally.flops == kernels_rows.NORMAL * found.size
    setting = kernels_rows.SMALL
    state = torch.empty(setting.batch, 5, dtype=torch.int64)
    drawn = torch.empty(setting.batch, *setting.image)
    assert kernels_rows.normals(setting, CPU).bytes == size_of(state, drawn)


# The script


def test_an_error_is_relative_to_large_values_and_huge_for_nan() -> None:
    true = torch.tensor([0.5, 100.0])
    assert worst_error(torch.tensor([0.6, 100.0]), true) == pytest.approx(0.1)
    assert worst_error([torch.tensor([0.5, 101.0])], (true,)) == pytest.approx(0.01)
    assert worst_error(torch.tensor([torch.nan, 100.0]), true) == LOST


@pytest.mark.slow
def test_every_case_runs_without_a_gpu(script: ModuleType, tmp_path: Path) -> None:
    """Ours in the interpreter against float64; other forms are called; no figure is claimed."""
    path = tmp_path / "kernels.json"
    assert script.main(["--smoke", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    sections = document["sections"]
    assert list(sections) == [name for name, *_ in script.SECTIONS]
    assert not any(section["fault"] for section in sections.values())
    checked = {row["op"] for row in sections["correctness"]["rows"]}
    assert checked == {case.op for case in script.cases()}
    assert all(row["right"] for row in sections["correctness"]["rows"])
    assert {row["op"] for row in sections["timings"]["rows"]} == checked
    assert all(row["wrong"] == 0 for row in sections["noise"]["rows"])
    assert [row["found"] for row in sections["goals"]["rows"]] == [None] * len(KERNEL_GOALS)
    assert "rates" not in document


def test_every_folder_of_kernels_has_a_roofline(script: ModuleType) -> None:
    folders = {path.parent.name for path in BENCH.parent.glob("kernels/*/op.py")}
    assert folders <= {case.op for case in script.cases()}


def test_a_section_that_fails_leaves_the_rest(script: ModuleType, tmp_path: Path) -> None:
    run = Run(CPU, smoke=False, path=tmp_path / "found.json")

    def breaks(run: Any, rows: list[Any]) -> None:
        rows.append({"right": True})
        raise RuntimeError("no such thing")

    def waits(run: Any, rows: list[Any]) -> None:
        run.check_time()

    run.section("one", 60, breaks)
    run.section("two", -1, waits)
    run.section("three", 60, waits)
    sections = json.loads(run.path.read_text())["sections"]
    assert sections["one"]["fault"] == "RuntimeError: no such thing"
    assert len(sections["one"]["rows"]) == 1
    assert "out of time" in sections["two"]["fault"]
    assert sections["three"]["fault"] is None
    assert run.broken() == ["one", "two"]


def test_goals_are_read_off_the_rows(script: ModuleType) -> None:
    """The slowest norm counts, and the least share above the cache; gradients do not."""

    def norm_row(shape: str, share: float, large: bool, **us: float) -> dict[str, object]:
        found = {"op": "gn_silu", "shape": shape, "copy_share": share, "above_l2": large}
        return found | {"us": us}

    tree = kernels_level.COLOUR.shape(18)
    rows = [
        norm_row("a", 0.9, True, ours=10.0, eager=30.0, inductor=12.0),
        norm_row("b", 0.8, True, ours=10.0, eager=15.0),
        norm_row("c", 0.1, False, ours=10.0, eager=9.0, inductor=20.0),
        norm_row("d with gradients", 0.2, True, ours=10.0, eager=1.0),
        {"op": "generation", "shape": tree, "tensor_share": 0.0, "flops": 79e9}
        | {"us": {"ours": 200.0}},
    ]
    found = script.goals_of(None, rows)
    assert found["kernels/norm-bandwidth-gpu"] == pytest.approx(80.0)
    assert found["kernels/norm-slowest-gpu"] == pytest.approx(0.9)
    assert found["kernels/generation-gpu"] == pytest.approx(50.0)
    assert "kernels/posterior-gpu" not in found


def test_without_a_gpu_the_script_says_so(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        script.main([])
    assert "--smoke" in capsys.readouterr().err


def test_the_goals_are_in_the_one_list() -> None:
    names = {goal.name for goal in GOALS if goal.measure is None}
    assert {goal.name for goal in KERNEL_GOALS} <= names
