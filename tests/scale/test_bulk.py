"""A big set without Ray: its plan, its bytes, and what is left of a unit that died."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.models import IRREGULAR, tiny_bundle
from treediffusion.cli import main
from treediffusion.data import load_images
from treediffusion.errors import CheckpointError, ConfigError
from treediffusion.progress import Progress
from treediffusion.runtime import Engine
from treediffusion.scale import bulk
from treediffusion.scale.bulk import Order, Unit, begin, draw_here, draw_unit, join, plan_units

LEAVES = IRREGULAR.leaf_names
STEPS: Any = {"num_inference_steps": 1}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        yield engine


@pytest.fixture
def order(tmp_path: Path) -> Order:
    made = Order(tiny_bundle(), tmp_path / "set", "onnxruntime", STEPS)
    begin(made)
    return made


def silent() -> Progress:
    return Progress(1, "", quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@given(
    nodes=st.lists(st.sampled_from(IRREGULAR.names), min_size=1, unique=True),
    count=st.integers(1, 300),
    offset=st.integers(0, 2**40),
    size=st.integers(1, 70),
)
def test_units_hold_every_image_once(nodes: list[str], count: int, offset: int, size: int) -> None:
    units = plan_units(nodes, count, seed=3, offset=offset, size=size)
    held = [
        (unit.node, number)
        for unit in units
        for number in range(unit.offset, unit.offset + unit.count)
    ]
    assert held == [(node, number) for node in nodes for number in range(offset, offset + count)]
    assert all(0 < unit.count <= size for unit in units)
    assert sum(unit.count < size for unit in units) <= len(nodes)
    assert len({unit.name for unit in units}) == len(units)


@given(few=st.integers(1, 200), more=st.integers(1, 200), size=st.integers(1, 70))
def test_a_larger_set_has_the_full_units_of_a_smaller_one(few: int, more: int, size: int) -> None:
    small = plan_units(["r"], few, size=size)
    large = plan_units(["r"], few + more, size=size)
    assert {unit for unit in small if unit.count == size} <= set(large)


@pytest.mark.parametrize(
    ("name", "given"),
    [("count", {"count": 0}), ("seed", {"seed": -1}), ("offset", {"offset": -1})],
)
def test_a_plan_of_impossible_numbers_is_refused(name: str, given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=name):
        plan_units(["r"], **{"count": 1, **given})


def test_a_unit_is_what_the_engine_draws(engine: Engine, order: Order) -> None:
    unit = Unit("r0", 5, 2, 3)
    assert draw_unit(engine, order, unit)
    made = engine.generate(3, node="r0", seed=5, offset=2, **STEPS)
    rows = list(csv.DictReader(join(order, [unit]).read_text().splitlines()))
    assert [row["file"] for row in rows] == [f"r0/seed5-0000{i}.png" for i in (2, 3, 4)]
    for i, row in enumerate(rows):
        pixels = np.asarray(Image.open(io.BytesIO((order.out / row["file"]).read_bytes())))
        assert np.array_equal(pixels, made.images[i, 0])
        leaf = LEAVES[made.leaf[i]]
        assert (row["seed"], row["offset"], row["leaf"]) == ("5", str(2 + i), leaf)
        assert np.float32(row["leaf_prob"]) == made.leaf_prob[i, made.leaf[i]]
        assert row["path"].split("/")[-1] == leaf
        assert set(row["path"].split("/")) <= set(IRREGULAR.names)


def test_neither_the_cut_nor_the_order_of_units_matters(
    engine: Engine, order: Order, tmp_path: Path
) -> None:
    other = Order(order.bundle, tmp_path / "other", order.backend, STEPS)
    begin(other)
    whole, cut = plan_units(LEAVES, 5), plan_units(LEAVES, 5, size=2)
    for unit in whole:
        draw_unit(engine, order, unit)
    for unit in reversed(cut):
        draw_unit(engine, other, unit)
    assert join(order, whole).read_bytes() == join(other, cut).read_bytes()
    pictures = [
        {name: data for name, data in contents(each.out).items() if name.endswith(".png")}
        for each in (order, other)
    ]
    assert len(pictures[0]) == 5 * len(LEAVES)
    assert pictures[0] == pictures[1]


def test_what_a_death_left_is_drawn_again_and_the_rest_is_not(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = plan_units(LEAVES, 4, size=2)
    written: list[str] = []
    put = bulk._put

    def dying(after: int) -> Callable[[Path, bytes], None]:
        def write(file: Path, content: bytes) -> None:
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(file.name)
            put(file, content)

        return write

    monkeypatch.setattr(bulk, "_put", dying(after=5))
    with pytest.raises(KeyboardInterrupt):
        draw_here(order, units, silent())
    assert not (order.out / "manifest.csv").exists()
    with pytest.raises(CheckpointError):
        join(order, units)

    monkeypatch.setattr(bulk, "_put", dying(after=-1))
    draw_here(order, units, silent())
    assert len(written) == 5 + 8 * len(LEAVES) // 2 - 4  # two units of two were done
    first = contents(order.out)
    draw_here(order, units, silent())
    assert contents(order.out) == first
    assert len(list(csv.DictReader(io.StringIO(first["manifest.csv"].decode())))) == 4 * len(LEAVES)


@pytest.mark.parametrize("damage", ["gone", "cut", "part"])
def test_a_damaged_unit_is_drawn_again(engine: Engine, order: Order, damage: str) -> None:
    unit = Unit("r", 0, 0, 2)
    assert draw_unit(engine, order, unit)
    before = contents(order.out)
    picture, part = order.out / "r" / "seed0-00001.png", bulk._part(order, unit)
    if damage == "gone":
        picture.unlink()
    elif damage == "cut":
        picture.write_bytes(picture.read_bytes()[:-1])
    else:
        part.write_bytes(part.read_bytes()[:-70])
    assert draw_unit(engine, order, unit)
    assert not draw_unit(engine, order, unit)
    assert contents(order.out) == before


def test_a_folder_holds_one_set(order: Order) -> None:
    begin(order)
    other = Order(order.bundle, order.out, order.backend, {"num_inference_steps": 2})
    with pytest.raises(ConfigError, match="another sampling"):
        begin(other)
    (order.out / ".parts" / "set.json").write_text("[")
    with pytest.raises(ConfigError, match="another bundle and backend and sampling"):
        begin(order)


def test_the_command_draws_so_many_of_each_leaf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its manifest is a list of pictures that can be trained on."""
    command = ["generate", "--bundle", str(tiny_bundle()), "--num-inference-steps", "1"]
    out = tmp_path / "set"
    assert main([*command, "--per-leaf", "2", "--node", "r0", "--out", str(out)]) == 0
    assert f"4 images in {out}, listed in {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "manifest.csv").read_text().splitlines()))
    below = [leaf for leaf in LEAVES if leaf.startswith("r0")]
    assert [row["leaf"] for row in rows] == [leaf for leaf in below for _ in range(2)]
    assert load_images(str(out / "manifest.csv")).images.shape == (4, 1, 8, 8)
    assert main([*command, "--per-leaf", "3", "--node", "r0", "--out", str(out)]) == 0
    assert len((out / "manifest.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--per-leaf", "0"], "--per-leaf: got 0, expected at least 1"),
        (["--per-leaf", "1", "--leaf", "r0"], "--leaf"),
        (["--per-leaf", "1", "--node", "r0101"], "r0101"),
        (["--per-leaf", "1", "--backend", "abacus"], "abacus"),
        (["--workers", "2"], "--ray"),
        (["--ray", "--workers", "0"], "workers"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--bundle", str(tiny_bundle()), "--out", str(tmp_path / "set")]
    assert main([*command, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("treediffusion: ")
    assert named in said
    assert "expected" in said
