"""Charts and tables: marks at the places of their values, words that do not touch, bad input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from treediffusion.errors import ShapeError
from treediffusion.evaluate import figures
from treediffusion.evaluate.figures.chart import log_ticks, rounded, spread_out, ticks
from treediffusion.evaluate.figures.elbow import BEND, elbow
from treediffusion.evaluate.figures.style import CHOSEN, percent
from treediffusion.topology import TreeTopology

RNG = np.random.default_rng(0)
TREE = TreeTopology.of(["r", "r0", "r1", "r00", "r01", "r010", "r011"])
TERMS = ("reconstruction", "kl_root", "kl_nodes", "kl_decisions")
FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def phases(count: int) -> list[dict[str, Any]]:
    names = ["initial", *["subtree"] * (count - 2), "final"]
    return [
        {"phase": name, "leaf": "r0" if name == "subtree" else None, "leaves": k + 2}
        | dict(zip(TERMS, (10.0 + k, 2.0, 3.0, 0.5), strict=True))
        for k, name in enumerate(names)
    ]


def patches(figure: Figure, kind: str) -> list[Rectangle]:
    return [
        p
        for p in figure.axes[0].patches
        if isinstance(p, Rectangle) and str(p.get_gid()).startswith(kind + ":")
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def touching(figure: Figure) -> list[tuple[str, str]]:
    areas = [(word.get_text(), word.get_window_extent()) for word in figure.axes[0].texts]
    return [(a, b) for k, (a, one) in enumerate(areas) for b, two in areas[:k] if one.overlaps(two)]


def outside(figure: Figure) -> list[str]:
    """Words that do not lie on the page."""
    page = figure.bbox
    return [
        word.get_text()
        for word in figure.axes[0].texts
        for area in [word.get_window_extent()]
        if area.x0 < 0 or area.y0 < 0 or area.x1 > page.width or area.y1 > page.height
    ]


@given(FINITE, st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_ticks_are_few_evenly_spaced_and_inside(low: float, length: float) -> None:
    high = low + length
    found = np.array(ticks(low, high))
    if length > 1e-6 * abs(low):
        assert 2 <= len(found) <= 12
        assert np.allclose(np.diff(found, 2), 0, atol=1e-6 * length)
        assert (found >= low - 1e-6 * length).all()
        assert (found <= high + 1e-6 * length).all()
        wide = rounded(low, high)
        assert wide[0] <= low + 1e-6 * length
        assert wide[1] >= high - 1e-6 * length


def test_logarithmic_ticks_are_one_two_and_five() -> None:
    assert log_ticks(0.02, 0.5) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert log_ticks(1e-4, 10) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_names_are_moved_apart_and_no_further_than_needed(places: list[float]) -> None:
    wanted = sorted(places)
    found = spread_out(wanted, 20)
    assert (np.diff(found) >= 20 - 1e-6).all()
    assert np.mean(found) == pytest.approx(np.mean(wanted), abs=1e-6)
    if all(b - a >= 20 for a, b in pairwise(wanted)):
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("across", [-400.0, -30.0, 0.0, 1.0, 75.0, 76.0, 300.0])
@pytest.mark.parametrize("turned", [False, True])
def test_an_edge_begins_and_ends_where_it_should_and_never_turns_back(
    across: float, turned: bool
) -> None:
    start, end = (10.0, 5.0), (10.0 + across, 5.0 + 2 * BEND + 20)
    if turned:
        start, end = start[::-1], end[::-1]
    way = elbow(*start, *end, turned=turned)
    assert tuple(way.vertices[0]) == pytest.approx(start)
    assert tuple(way.vertices[-1]) == pytest.approx(end)
    line = np.array([points[-2:] for points, _ in way.iter_segments(curves=False)])
    down, aside = (line[:, 0], line[:, 1]) if turned else (line[:, 1], line[:, 0])
    assert (np.diff(down) >= -1e-6).all()
    assert (np.diff(aside) * np.sign(across) >= -1e-6).all()


@pytest.mark.parametrize("count", [3, 12, 24, 45])
def test_a_history_stacks_the_terms_of_every_phase(count: int) -> None:
    records = phases(count)
    losses = [{"step": 100 * k, "loss": 1 / k} for k in range(1, 30)]
    figure = figures.history_chart(records, losses, title="t")
    heights = {str(p.get_gid()): p.get_height() for p in patches(figure, "bar")}
    assert len(heights) == 4 * count
    last = sum(heights[f"bar:{count - 1}:{name}"] for name in TERMS)
    unit = last / sum(records[-1][name] for name in TERMS)
    for k, record in enumerate(records):
        for name in TERMS:
            assert heights[f"bar:{k}:{name}"] == pytest.approx(unit * record[name], abs=2)
    discs = [p for p in figure.axes[0].patches if isinstance(p, Circle)]
    assert len(discs) == len(losses)
    # On a logarithmic scale 1/k falls by as much from 1 to 2 as from 2 to 4.
    y = [disc.center[1] for disc in discs]
    assert y[1] - y[0] == pytest.approx(y[3] - y[1], abs=1e-6)
    assert touching(figure) == []
    assert outside(figure) == []


def test_either_half_of_a_history_is_drawn_alone() -> None:
    whole = figures.history_chart(phases(3), [{"step": 1, "loss": 0.5}])
    for part in (
        figures.history_chart(phases(3)),
        figures.history_chart([], [{"step": 1, "loss": 2}]),
    ):
        assert part.get_size_inches()[1] < whole.get_size_inches()[1]
        assert outside(part) == []


def test_curves_go_through_their_points_and_carry_their_names() -> None:
    k = np.arange(1, 9)
    scores = {"ACC": k / 10, "NMI": k / 10 + 0.001, "ARI": np.linspace(-0.2, 0.3, 8)}
    figure = figures.metrics_chart(k, scores, title="t", mark=4)
    y = {
        str(p.get_gid()): p.center[1] for p in figure.axes[0].patches if isinstance(p, Circle)
    }  # fmt: skip
    assert len(y) == 24
    assert y["dot:ACC:0"] - y["dot:ACC:4"] == pytest.approx(y["dot:ACC:2"] - y["dot:ACC:6"])
    marks = [p for p in figure.axes[0].patches if p.get_gid() == "mark"]
    assert isinstance(marks[0], PathPatch)
    assert {"ACC", "NMI", "ARI"} <= set(texts(figure))
    assert touching(figure) == []
    assert outside(figure) == []


@pytest.mark.parametrize(("better", "best"), [("lower", "path"), ("higher", "a longer name")])
def test_bars_are_as_long_as_their_values_and_the_best_is_marked(better: Any, best: str) -> None:
    rows = [("path", 17.8, 0.4), ("a longer name", 35.6, None), ("none", 20.0)]
    figure = figures.ablation_bars(rows, measure="FID", better=better, title="t")
    bars = {str(p.get_gid()).removeprefix("bar:"): p for p in patches(figure, "bar")}
    unit = bars["a longer name"].get_width() / 35.6
    assert bars["path"].get_width() == pytest.approx(17.8 * unit, abs=1)
    (whisker,) = patches(figure, "deviation")
    middle = whisker.get_x() + whisker.get_width() / 2
    assert middle == pytest.approx(bars["path"].get_x() + bars["path"].get_width(), abs=1)
    marked = [name for name, bar in bars.items() if to_hex(bar.get_facecolor()) == CHOSEN]
    assert marked == [best]
    assert "17.8 ± 0.4" in texts(figure)
    assert touching(figure) == outside(figure) == []


@pytest.mark.parametrize("mark", [1, 2, 4, 8])
def test_a_marked_number_of_clusters_says_what_it_is(mark: int) -> None:
    k = np.arange(1, 9)
    figure = figures.metrics_chart(k, {"ACC": k / 10}, title="t", mark=mark, mark_name="8 classes")
    assert "8 classes" in texts(figure)
    assert touching(figure) == outside(figure) == []


LONG = ["Braille", "Glagolitic", "Old_Church_Slavonic_(Cyrillic)", "comp.sys.ibm.pc.hardware"]


@pytest.mark.parametrize("names", [list("abcd"), LONG, LONG * 5], ids=["short", "long", "many"])
def test_names_that_are_too_long_for_a_column_stand_slanted(names: list[str]) -> None:
    """Slanted lines are further apart than they are high, and all of them lie on the page."""
    figure = figures.class_table(np.ones((TREE.num_leaves, len(names)), int), names, TREE)
    heads = [word for word in figure.axes[0].texts if word.get_text() in names]
    assert len(heads) == len(names)
    assert outside(figure) == []
    if len(names[0]) == 1:
        assert {word.get_rotation() for word in heads} == {0.0}
        return
    assert {word.get_rotation() for word in heads} == {45.0}
    apart = np.diff([word.get_position()[0] for word in heads]) * math.sin(math.radians(45))
    assert apart.min() > 30
    cells = [area for area in patches(figure, "cell") if area.get_y() >= 0]
    lowest = max(word.get_position()[1] for word in heads)
    assert lowest < min(area.get_y() for area in cells)


def test_of_very_many_classes_the_small_ones_share_a_column() -> None:
    counts = np.ones((TREE.num_leaves, 100), int)
    counts[:, 40] = 900
    figure = figures.class_table(counts, [f"c{k}" for k in range(100)], TREE)
    words = texts(figure)
    assert {"c40", "other", "999"} <= set(words)
    assert len(patches(figure, "cell")) == TREE.num_leaves * 24
    assert touching(figure) == outside(figure) == []


def test_a_long_title_is_written_smaller_and_stays_on_the_page() -> None:
    rows = [("path", 17.8), ("none", 20.0)]
    figures_ = [
        figures.ablation_bars(rows, measure="FID", title=title) for title in ("short", "long " * 20)
    ]
    short, long = (figure.axes[0].texts[0].get_fontsize() for figure in figures_)
    assert short > long
    assert [outside(figure) for figure in figures_] == [[], []]


def test_attribute_shares_are_means_over_a_leafs_images() -> None:
    leaf = RNG.integers(0, 2, 50)
    attributes = RNG.integers(0, 2, (50, 4)).astype(np.uint8)
    found = figures.attribute_frequency(leaf, attributes, leaves=3)
    for row in (0, 1):
        assert found[row] == pytest.approx(attributes[leaf == row].mean(0))
    assert (found[2] == 0).all()


def test_attributes_that_differ_most_come_first() -> None:
    shares = np.array([[0.5, 0.0, 0.3], [0.5, 1.0, 0.4], [0.5, 0.5, 0.2], [0.5, 0.2, 0.1]])
    figure = figures.attribute_table(
        shares, ["Same_all", "Apart", "Some"], TREE, overall=shares.mean(0), most=2
    )
    words = texts(figure)
    assert "Same all" not in words
    assert words.index("Apart") < words.index("Some")
    cells = {str(p.get_gid()): sum(p.get_facecolor()[:3]) for p in patches(figure, "cell")}
    assert len(cells) == 8
    by_share = sorted(range(4), key=lambda leaf: shares[leaf, 1])
    assert sorted(range(4), key=lambda leaf: -cells[f"cell:{leaf}:1"]) == by_share
    assert percent(shares[:, 1].mean()) in words
    assert touching(figure) == []


def test_a_node_has_the_words_that_the_rest_has_not() -> None:
    """Word 0 is everywhere, word 1 + l in leaf l alone, word 5 once, word 6 nowhere."""
    leaf = np.repeat(np.arange(TREE.num_leaves), 10)
    vectors = np.zeros((len(leaf), 7))
    vectors[:, 0] = 5
    vectors[np.arange(len(leaf)), 1 + leaf] = 1
    vectors[0, 5] = 0.5
    words = ["every", "w0", "w1", "w2", "w3", "once", "never"]
    found = figures.top_words(TREE, vectors, leaf, words)
    assert found[0] == []
    for number, row in enumerate(TREE.leaves):
        assert found[row][0] == f"w{number}"
    below = {f"w{k}" for k in TREE.leaves_below("r0")}
    assert set(found[TREE.row("r0")][:3]) == below
    for some in found:
        assert "every" not in some
        assert "never" not in some
    without = figures.top_words(TREE, vectors[leaf > 0], leaf[leaf > 0], words)
    assert without[int(TREE.leaves[0])] == []


def test_a_tree_of_words_says_every_node_once_and_nothing_touches() -> None:
    deep = [f"r{side}{k:03b}" for side in (0, 1) for k in range(8)]
    tree = TreeTopology.of({name[:k] for name in deep for k in range(1, 6)})
    words = [
        [f"term{row}", "encryption", "government", "university"] for row in range(tree.num_nodes)
    ]
    mass = np.array([len(tree.leaves_below(name)) / 16 for name in tree.names])
    notes = [f"group.{k}" for k in range(16)]
    figure = figures.word_tree(tree, words, mass, leaf_notes=notes, title="t")
    joined = " ".join(texts(figure))
    for row, name in enumerate(tree.names):
        assert f"{name}  {percent(mass[row])}" in joined
        assert f"term{row}" in joined
    edges = [p for p in figure.axes[0].patches if str(p.get_gid()).startswith("edge:")]
    assert len(edges) == tree.num_nodes - 1
    assert touching(figure) == outside(figure) == []


FAULTS: dict[str, tuple[Any, str]] = {
    "no history": (lambda: figures.history_chart([]), "history: got no records"),
    "half a record": (lambda: figures.history_chart([{"phase": "initial"}]), "tree: got a record"),
    "no scores": (lambda: figures.metrics_chart(np.arange(2), {}), "scores: got 0 curves"),
    "another length": (
        lambda: figures.metrics_chart(np.arange(2), {"ACC": np.zeros(3)}), r"ACC: got \[3\]",
    ),
    "no bars": (lambda: figures.ablation_bars([], measure="FID"), "variants: got none"),
    "a bar of nan": (
        lambda: figures.ablation_bars([("a", np.nan)], measure="FID"), "variants: got a: nan",
    ),
    "names": (
        lambda: figures.attribute_table(np.zeros((4, 2)), ["a"], TREE), "attributes: got 1 names",
    ),
    "percent": (
        lambda: figures.attribute_table(np.full((4, 1), 50.0), ["a"], TREE), "a value of 50",
    ),
    "no words": (
        lambda: figures.word_tree(TREE, [[]] * 7, np.ones(7)), "words: got none at any node",
    ),
    "negative weights": (
        lambda: figures.top_words(TREE, -np.ones((2, 1)), np.zeros(2, int), ["a"]), "vectors: got",
    ),
    "class names": (
        lambda: figures.tree_picture(
            TREE, np.zeros((7, 1, 8, 8), np.uint8), np.ones(7), None, np.ones((4, 3)),
            class_names=["a"],
        ),
        "class_names: got 1 names, expected 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_drawn_is_named(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(ShapeError, match=message):
        call()
