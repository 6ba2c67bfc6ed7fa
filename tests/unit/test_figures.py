"""Laws of the pictures: nothing missing or overlapping, pixels exact, leaves in name order."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.evaluate import figures
from treediffusion.evaluate.figures.layout import children, node_columns
from treediffusion.evaluate.figures.style import CHOSEN, PALETTE, percent
from treediffusion.topology import TreeTopology

RNG = np.random.default_rng(0)
LEAVES = ("r10", "r000", "r001", "r011", "r0100", "r0101", "r1100", "r1101", "r1110")
# r111 has one child; the shallow r10 is the first leaf by id and the sixth from the left.
TREE = TreeTopology.of({leaf[:k] for leaf in LEAVES for k in range(1, len(leaf) + 1)})
N, L = TREE.num_nodes, TREE.num_leaves


def images(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, np.uint8)


def mass_of(topology: TreeTopology) -> NDArray[np.float64]:
    """Shares that add up: a leaf's is drawn, a parent's is the sum of its children's."""
    mass = np.zeros(topology.num_nodes)
    mass[topology.leaves] = RNG.dirichlet(np.ones(topology.num_leaves))
    for row in range(topology.num_nodes - 1, 0, -1):
        mass[topology.parent[row]] += mass[row]
    return np.clip(mass, 0, 1)


def boxes(figure: Figure, kind: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, right, top and bottom of the images of a kind; refuses two of one name."""
    found: dict[str, tuple[float, float, float, float]] = {}
    for image in figure.axes[0].images:
        gid = str(image.get_gid())
        if gid.startswith(kind + ":"):
            assert gid not in found, gid
            left, right, bottom, top = image.get_extent()
            found[gid.removeprefix(kind + ":")] = (left, right, top, bottom)
    return found


def patches(figure: Figure, kind: str) -> list[Rectangle]:
    chosen = [p for p in figure.axes[0].patches if str(p.get_gid()).startswith(kind + ":")]
    return [p for p in chosen if isinstance(p, Rectangle)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def saved(figure: Figure, folder: Path) -> NDArray[np.uint8]:
    figures.save(figure, folder / "figure.png")
    return np.asarray(Image.open(folder / "figure.png").convert("RGB"))


def page_of(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches() * figure.dpi
    return round(width), round(height)


@st.composite
def trees(draw: st.DrawFn) -> TreeTopology:
    """Grown to 2..32 leaves at most 7 deep, then pruned a little, which leaves single children."""
    tree = TreeTopology.initial()
    for _ in range(draw(st.integers(0, 30))):
        tree = tree.grow(draw(st.sampled_from([n for n in tree.leaf_names if len(n) < 8])))
    for _ in range(draw(st.integers(0, 3))):
        if tree.num_leaves > 2:
            tree = tree.prune(draw(st.sampled_from(tree.leaf_names)))
    return tree


def test_leaves_go_by_name_not_by_id() -> None:
    order = figures.left_to_right(TREE)
    assert [TREE.leaf_names[leaf] for leaf in order] == sorted(TREE.leaf_names)
    assert list(order) != list(range(L))


@given(trees())
@settings(max_examples=25, deadline=None)
def test_leaves_are_evenly_spaced_and_parents_are_centred(tree: TreeTopology) -> None:
    column = node_columns(tree)
    assert sorted(column[tree.leaves]) == list(range(tree.num_leaves))
    for row in range(tree.num_nodes):
        below = children(tree, row)
        if below:
            assert column[row] == np.mean(column[below])
        if len(below) == 2:
            assert column[below[0]] < column[row] < column[below[1]]


@given(trees())
@example(TreeTopology(("r", *(f"r{'0' * depth}{end}" for depth in range(7) for end in "01"))))
@settings(max_examples=8, deadline=None)
def test_every_node_is_drawn_once_on_the_page_without_overlap(tree: TreeTopology) -> None:
    samples, counts = images(tree.num_leaves, 2, 1, 8, 8), RNG.integers(0, 9, (tree.num_leaves, 3))
    nodes = images(tree.num_nodes, 1, 8, 8)
    figure = figures.tree_picture(tree, nodes, mass_of(tree), samples, counts, title="t")
    width, height = page_of(figure)
    assert width / figure.dpi <= 17
    assert height / figure.dpi <= 14
    assert set(boxes(figure, "node")) == set(tree.names)
    drawn = [*boxes(figure, "node").values(), *boxes(figure, "sample").values()]
    assert len(drawn) == tree.num_nodes + 2 * tree.num_leaves
    for k, (left, right, top, bottom) in enumerate(drawn):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        for left_2, right_2, top_2, bottom_2 in drawn[:k]:
            assert right <= left_2 or right_2 <= left or bottom <= top_2 or bottom_2 <= top
    assert all(texts(figure).count(name) == 1 for name in tree.names)


def test_the_bottom_row_holds_all_leaves_with_their_own_samples_below() -> None:
    samples = images(L, 3, 1, 8, 8)
    figure = figures.tree_picture(TREE, images(N, 1, 8, 8), mass_of(TREE), samples)
    node, sample = boxes(figure, "node"), boxes(figure, "sample")
    row = sorted(TREE.leaf_names, key=lambda name: node[name][0])
    assert row == sorted(TREE.leaf_names)
    assert len({node[name][2] for name in row}) == 1
    assert len({b - a for a, b in pairwise(node[name][0] for name in row)}) == 1
    for name in row:
        tops = [node[name][3], *(sample[f"{name}:{k}"][2] for k in range(3))]
        assert tops == sorted(set(tops))
        assert sum(sample[f"{name}:0"][:2]) == sum(node[name][:2])
    for leaf, name in enumerate(TREE.leaf_names):
        shown = {str(i.get_gid()): i.get_array() for i in figure.axes[0].images}
        assert np.array_equal(shown[f"sample:{name}:1"][..., 0], samples[leaf, 1, 0])


def test_edges_are_as_wide_as_the_share_that_takes_them() -> None:
    mass = mass_of(TREE)
    figure = figures.tree_picture(TREE, images(N, 1, 8, 8), mass)
    edges = [p for p in figure.axes[0].patches if isinstance(p, PathPatch)]
    width = {str(p.get_gid()).removeprefix("edge:"): p.get_linewidth() for p in edges}
    assert set(width) == set(TREE.names[1:])
    ratios = [width[n] / mass[row] for row, n in enumerate(TREE.names) if row and mass[row] > 0.05]
    assert np.ptp(ratios) < 1e-9
    assert min(width.values()) > 0.5


def test_class_bars_are_proportions_in_the_legends_colours() -> None:
    counts = np.zeros((L, 4), int)
    counts[0] = 5, 0, 10, 5
    counts[1:, 3] = 7
    figure = figures.tree_picture(TREE, images(N, 1, 8, 8), mass_of(TREE), None, counts)
    legend = [to_hex(p.get_facecolor()) for p in patches(figure, "class")]
    assert legend == [colour.lower() for colour in PALETTE[:4]]
    bar = [p for p in patches(figure, "bar") if str(p.get_gid()).startswith("bar:0:")]
    left, right, *_ = boxes(figure, "node")[TREE.leaf_names[0]]
    shares = [p.get_width() / (right - left) for p in bar]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=1 / (right - left))
    assert [to_hex(p.get_facecolor()) for p in bar] == [legend[0], legend[2], legend[3]]
    assert sum(str(p.get_gid()).startswith("bar:1:") for p in patches(figure, "bar")) == 1


def test_of_many_classes_the_largest_keep_a_colour() -> None:
    counts = np.ones((L, 30), int)
    counts[:, 20:29] = 50
    figure = figures.tree_picture(TREE, images(N, 1, 8, 8), mass_of(TREE), None, counts)
    labels = [str(p.get_gid()).removeprefix("class:") for p in patches(figure, "class")]
    assert labels == [*map(str, range(20, 29)), "other"]


def test_no_words_overlap_on_the_fullest_page() -> None:
    """32 leaves, each with a name of eight letters."""
    deep = [f"r{side}{k:06b}" for side in (0, 1) for k in range(16)]
    tree = TreeTopology.of({name[:k] for name in deep for k in range(1, 9)})
    nodes, mass = images(tree.num_nodes, 1, 28, 28), mass_of(tree)
    shares = RNG.dirichlet(np.ones(32), 2)
    for figure in (
        figures.tree_picture(tree, nodes, mass, None, np.ones((32, 10))),
        figures.all_leaf_sheet(images(2, 32, 1, 28, 28), shares, tree, title="t"),
    ):
        assert overlapping(figure.axes[0].texts) == []


def overlapping(words: list[Text]) -> list[tuple[str, str]]:
    areas = [(word.get_text(), word.get_window_extent()) for word in words]
    return [
        (a, b)
        for k, (a, area) in enumerate(areas)
        for b, other in areas[:k]
        if area.overlaps(other)
    ]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 20)], ids=str)
def test_pixels_in_the_file_are_those_of_the_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Whole factors, no smoothing, fixed grey range: each pixel is a block of its own colour."""
    nodes = images(N, *shape)
    nodes[0] = 90  # a flat image would become black if its range were stretched
    levels = np.arange(256, dtype=np.uint8)
    nodes[1:5].reshape(-1)[:256] = levels  # every level occurs
    figure = figures.tree_picture(TREE, nodes, mass_of(TREE))
    page = saved(figure, tmp_path)
    for row, name in enumerate(TREE.names):
        left, right, top, bottom = (round(side) for side in boxes(figure, "node")[name])
        factor = (right - left) // shape[2]
        block = nodes[row].repeat(factor, 1).repeat(factor, 2).transpose(1, 2, 0)
        assert np.array_equal(
            page[top:bottom, left:right], np.broadcast_to(block, (*block.shape[:2], 3))
        )


def test_a_sheet_has_a_column_per_leaf_and_marks_the_likeliest() -> None:
    sheet, prob = images(4, L, 1, 8, 8), RNG.dirichlet(np.ones(L), 4)
    figure = figures.all_leaf_sheet(sheet, prob, TREE, title="t")
    shown = {str(i.get_gid()): i.get_array() for i in figure.axes[0].images}
    place = boxes(figure, "image")
    frames = {str(p.get_gid()): p for p in patches(figure, "frame")}
    for k in range(4):
        row = sorted(TREE.leaf_names, key=lambda name, k=k: place[f"{k}:{name}"][0])
        assert row == sorted(TREE.leaf_names)
        colour = [to_hex(frames[f"frame:{k}:{name}"].get_facecolor()) for name in TREE.leaf_names]
        assert [leaf for leaf, hue in enumerate(colour) if hue == CHOSEN] == [prob[k].argmax()]
        for leaf, name in enumerate(TREE.leaf_names):
            assert np.array_equal(shown[f"image:{k}:{name}"][..., 0], sheet[k, leaf, 0])
            assert percent(prob[k, leaf]) in texts(figure)


def test_likelier_leaves_have_darker_frames() -> None:
    prob = np.arange(1.0, L + 1)[None] / np.arange(1, L + 1).sum()
    figure = figures.all_leaf_sheet(images(1, L, 1, 8, 8), prob, TREE)
    light = [
        sum(p.get_facecolor()[:3])
        for name in TREE.leaf_names[:-1]
        for p in patches(figure, "frame")
        if p.get_gid() == f"frame:0:{name}"
    ]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == L - 1


def test_a_gallery_has_a_row_per_leaf_in_name_order_and_wraps_long_rows() -> None:
    gallery = images(L, 23, 3, 8, 8)
    place = boxes(figures.leaf_gallery(gallery, TREE, mass_of(TREE)), "image")
    assert len(place) == L * 23
    rows = sorted(TREE.leaf_names, key=lambda name: place[f"{name}:0"][2])
    assert rows == sorted(TREE.leaf_names)
    for above, below in pairwise(rows):
        assert max(place[f"{above}:{k}"][3] for k in range(23)) < place[f"{below}:0"][2]
    assert place["r10:20"][0] == place["r10:0"][0]


def test_treevaes_images_stand_above_those_of_the_same_root_in_one_frame() -> None:
    sheet, tree_images = images(2, L, 1, 8, 8), images(2, L, 1, 8, 8)
    prob = RNG.dirichlet(np.ones(L), 2)
    figure = figures.all_leaf_sheet(sheet, prob, TREE, tree_images=tree_images, title="t")
    lower, upper = boxes(figure, "image"), boxes(figure, "tree")
    shown = {str(i.get_gid()): i.get_array() for i in figure.axes[0].images}
    frames = {str(p.get_gid()): p for p in patches(figure, "frame")}
    assert set(lower) == set(upper)
    for place, (left, right, top, bottom) in upper.items():
        assert lower[place][:2] == (left, right)
        assert lower[place][2] > bottom
        frame = frames[f"frame:{place}"]
        assert frame.get_y() < top
        assert frame.get_y() + frame.get_height() > lower[place][3]
    for leaf, name in enumerate(TREE.leaf_names):
        assert np.array_equal(shown[f"tree:1:{name}"][..., 0], tree_images[1, leaf, 0])
        assert np.array_equal(shown[f"image:1:{name}"][..., 0], sheet[1, leaf, 0])
    assert texts(figure).count("TreeVAE") == texts(figure).count("TreeDiffusion") == 2
    assert overlapping(figure.axes[0].texts) == []


def test_a_gallerys_bars_are_as_high_as_the_shares_of_classes() -> None:
    counts = np.zeros((L, 3), int)
    counts[:, 0], counts[:, 2] = 3, 1
    counts[1], counts[2] = 0, 5
    figure = figures.leaf_gallery(
        images(L, 12, 1, 8, 8), TREE, mass_of(TREE), class_counts=counts, class_names=list("abc")
    )
    for leaf, name in enumerate(TREE.leaf_names):
        bars = [p for p in patches(figure, "bar") if str(p.get_gid()).startswith(f"bar:{name}:")]
        assert len(bars) == {1: 0, 2: 3}.get(leaf, 2)
        if len(bars) == 2:
            assert bars[0].get_height() / bars[1].get_height() == pytest.approx(3, rel=0.05)
            assert bars[0].get_x() < bars[1].get_x()
            assert {to_hex(p.get_facecolor()) for p in bars} == {
                PALETTE[0].lower(), PALETTE[2].lower()
            }  # fmt: skip
    assert texts(figure).count("75%") >= L - 2
    assert texts(figure).count("33%") <= 2, "of equal bars one is labelled"
    assert {"a", "b", "c"} <= set(texts(figure))
    assert overlapping(figure.axes[0].texts) == []


def test_reconstructions_stand_below_their_image_above_their_leaf() -> None:
    given_images, made = images(5, 1, 8, 8), images(5, 1, 8, 8)
    leaf, prob = np.array([2, 0, 8, 2, 1]), RNG.dirichlet(np.ones(L), 5)
    figure = figures.reconstruction_sheet(given_images, {"made": made}, leaf, prob, TREE)
    place = boxes(figure, "image")
    shown = {str(i.get_gid()): i.get_array() for i in figure.axes[0].images}
    for k in range(5):
        assert place[f"given:{k}"][:2] == place[f"made:{k}"][:2]
        assert place[f"given:{k}"][3] < place[f"made:{k}"][2]
        assert np.array_equal(shown[f"image:made:{k}"][..., 0], made[k, 0])
    assert [word for word in texts(figure) if word in TREE.names] == [
        TREE.leaf_names[k] for k in leaf
    ]
    assert percent(prob[2, 8]) in texts(figure)


def test_samples_stand_over_the_name_of_their_leaf() -> None:
    leaf = np.array([2, 0, 8, 2, 1, 3, 4, 5, 6, 7, 0, 0])
    figure = figures.samples_sheet(images(12, 1, 8, 8), leaf, TREE)
    assert len(boxes(figure, "image")) == 12
    assert texts(figure) == [TREE.leaf_names[k] for k in leaf]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (6, 3), (7, 3), (2, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_its_images_one_white_pixel_apart(
    count: int, columns: int, channels: int, tmp_path: Path
) -> None:
    batch = images(count, channels, 5, 4)
    sheet = figures.image_grid(batch, columns)
    figures.save_png(tmp_path / "grid.png", sheet)
    decoded = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(decoded, sheet if channels == 1 else sheet.transpose(1, 2, 0))

    rows = -(-count // columns)
    rest = sheet.reshape(channels, *sheet.shape[-2:]).copy()
    assert rest.shape == (channels, rows * 6 - 1, columns * 5 - 1)
    for k in range(count):
        y, x = k // columns * 6, k % columns * 5
        assert np.array_equal(rest[:, y : y + 5, x : x + 4], batch[k])
        rest[:, y : y + 5, x : x + 4] = 255
    assert (rest == 255).all()


def test_files_do_not_depend_on_global_settings(tmp_path: Path) -> None:
    def drawn() -> Figure:
        return figures.leaf_gallery(images(L, 2, 1, 8, 8) * 0, TREE, mass, title="t")

    mass = mass_of(TREE)
    plain = saved(drawn(), tmp_path)
    # fonts and figure.dpi are ours to fix; savefig.* would crop or scale
    changed = {
        "savefig.dpi": 37,
        "savefig.bbox": "tight",
        "figure.dpi": 55,
        "font.family": "serif",
        "image.interpolation": "bilinear",
    }
    with mpl.rc_context(changed):
        figure = drawn()
        assert np.array_equal(saved(figure, tmp_path), plain)
    assert plain.shape[1::-1] == page_of(figure)


def test_the_same_figure_is_the_same_bytes_without_a_date(tmp_path: Path) -> None:
    """Drawn anew, under other settings, and after the other kind was written."""

    def drawn() -> Figure:
        return figures.leaf_gallery(gallery, TREE, mass, class_counts=counts, title="t")

    gallery, mass, counts = images(L, 2, 1, 8, 8), mass_of(TREE), np.ones((L, 3), int)
    first = [file.read_bytes() for file in figures.save(drawn(), tmp_path / "one")]
    with mpl.rc_context({"svg.hashsalt": "x", "svg.fonttype": "none", "savefig.dpi": 37}):
        figure = drawn()
        figures.save(figure, tmp_path / "two.svg")
        again = figures.save(figure, tmp_path / "two")
        assert mpl.rcParams["svg.hashsalt"] == "x"
    assert [file.name for file in again] == ["two.png", "two.svg"]
    assert [file.read_bytes() for file in again] == first
    assert b"date" not in first[1].lower()
    ids = re.findall(rb' id="([^"]*)"', first[1])
    assert len(ids) == len(set(ids))
    assert page_of(figure) == page_of(drawn())


def test_an_svg_holds_every_image_as_it_is(tmp_path: Path) -> None:
    """Not enlarged, not joined to one picture, and not smoothed by whoever shows it."""
    samples = images(4, 1, 8, 8)
    figure = figures.samples_sheet(samples, np.arange(4), TREE)
    (file,) = figures.save(figure, tmp_path / "samples.svg")
    text = file.read_text("utf-8")
    found = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        for data in re.findall(r"data:image/png;base64,([^\"]*)", text)
    ]
    assert [image.shape for image in found] == [(8, 8)] * 4
    assert {image.tobytes() for image in found} == {image.tobytes() for image in samples}
    assert text.count("image-rendering:pixelated") == 4


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    figure = figures.samples_sheet(images(1, 1, 8, 8), np.zeros(1, int), TREE)
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        figures.save(figure, tmp_path / "figure.jpg")
    assert not list(tmp_path.iterdir())


def test_neither_pyplot_nor_torch_is_loaded() -> None:
    code = (
        "import sys, treediffusion.evaluate.figures;"
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0%"), (0.004, "<1%"), (0.01, "1%"), (0.126, "13%"), (1, "100%")]
)
def test_small_shares_stay_visible(share: float, words: str) -> None:
    assert percent(share) == words


GOOD = images(N, 1, 8, 8)
MASS = mass_of(TREE)
FAULTS: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "a node too few": (
        lambda: figures.tree_picture(TREE, GOOD[1:], MASS),
        "node_images", f"[{N - 1}, 1, 8, 8] uint8", f"[N={N}, C=1 or 3, H, W] uint8",
    ),
    "floats": (
        lambda: figures.tree_picture(TREE, GOOD / 255, MASS),
        "node_images", f"[{N}, 1, 8, 8] float64", f"[N={N}, C=1 or 3, H, W] uint8",
    ),
    "two channels": (
        lambda: figures.image_grid(images(4, 2, 8, 8), 2),
        "images", "[4, 2, 8, 8] uint8", "[n, C=1 or 3, H, W] uint8",
    ),
    "no images": (
        lambda: figures.image_grid(images(0, 1, 8, 8), 2),
        "images", "[0, 1, 8, 8] uint8", "[n, C=1 or 3, H, W] uint8",
    ),
    "mass of leaves": (
        lambda: figures.tree_picture(TREE, GOOD, MASS[:L]),
        "mass", f"[{L}] float64", f"[N={N}] numbers from 0 to 1",
    ),
    "per cent": (
        lambda: figures.tree_picture(TREE, GOOD, np.full(N, 50.0)),
        "mass", "a value of 50", f"[N={N}] numbers from 0 to 1",
    ),
    "not a number": (
        lambda: figures.leaf_gallery(images(L, 2, 1, 8, 8), TREE, np.full(N, np.nan)),
        "mass", "a value of nan", f"[N={N}] numbers from 0 to 1",
    ),
    "samples without k": (
        lambda: figures.tree_picture(TREE, GOOD, MASS, images(L, 1, 8, 8)),
        "leaf_samples", f"[{L}, 1, 8, 8] uint8", f"[L={L}, k, C=1 or 3, H, W] uint8",
    ),
    "negative counts": (
        lambda: figures.tree_picture(TREE, GOOD, MASS, None, np.full((L, 3), -1)),
        "class_counts", "a value of -1", f"[L={L}, K] numbers from 0",
    ),
    "infinite counts": (
        lambda: figures.tree_picture(TREE, GOOD, MASS, None, np.full((L, 3), np.inf)),
        "class_counts", "a value of inf", f"[L={L}, K] numbers from 0",
    ),
    "axes swapped": (
        lambda: figures.all_leaf_sheet(images(L, 4, 1, 8, 8), np.ones((4, L)), TREE),
        "images", f"[{L}, 4, 1, 8, 8] uint8", f"[n, L={L}, C=1 or 3, H, W] uint8",
    ),
    "another n": (
        lambda: figures.all_leaf_sheet(images(4, L, 1, 8, 8), np.ones((3, L)), TREE),
        "leaf_prob", f"[3, {L}] float64", f"[n=4, L={L}] numbers from 0 to 1",
    ),
    "an id too large": (
        lambda: figures.samples_sheet(images(1, 1, 8, 8), np.array([L]), TREE),
        "leaf", f"a value of {L}", f"[n=1] integers from 0 to {L - 1}",
    ),
    "ids as floats": (
        lambda: figures.samples_sheet(images(1, 1, 8, 8), np.array([0.5]), TREE),
        "leaf", "[1] float64", f"[n=1] integers from 0 to {L - 1}",
    ),
    "no columns": (
        lambda: figures.image_grid(GOOD, 0), "columns", "0", "at least 1",
    ),
    "a batch as a file": (
        lambda: figures.save_png("never.png", GOOD),
        "array", f"[{N}, 1, 8, 8] uint8", "[H, W] or [3, H, W] uint8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_array_is_named_with_what_was_expected(fault: str) -> None:
    call, name, got, expected = FAULTS[fault]
    with pytest.raises(ShapeError, match=re.escape(f"{name}: got {got}, expected {expected}")) as e:
        call()
    assert (e.value.name, str(e.value.got), e.value.expected) == (name, got, expected)
