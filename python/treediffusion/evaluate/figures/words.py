"""A tree of texts: the words that tell each node from the rest, root on the left.

    score[i, w] = m_iw ln((m_iw + a m_w) / (r_iw + a m_w))

with m_iw the mean weight of word w, such as its tf-idf, over the texts below node i, r_iw over all
other texts, and m_w over all; a = 0.1 keeps a word that occurs once from winning. Words that every
text has score near 0 however frequent they are. The root has no rest, and so no words. The tree
lies on its side, because words are wide and low.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...errors import ShapeError
from ...topology import TreeTopology
from .checks import Array, check_names, check_range
from .elbow import elbow
from .layout import children, node_columns
from .page import Page
from .style import (
    FLOW,
    GAP,
    GREY,
    HEADING,
    MARGIN,
    NARROWEST_PAGE,
    SMALL,
    percent,
    text_width,
)

LINE, INNER, BESIDE = 28, 3, 26
WIDEST_FLOW = 56
LEAF_WORDS = 5
PRIOR = 0.1


def top_words(
    topology: TreeTopology,
    vectors: Array,
    leaf: Array,
    words: Sequence[str],
    *,
    count: int = LEAF_WORDS,
) -> list[list[str]]:
    """[N] lists of the words with the highest scores, best first; empty for a node without texts.

    Args:
        topology: the tree.
        vectors: [n, D] weight of each word in each text, 0 or more.
        leaf: [n] int, the leaf each text is assigned to.
        words: [D].
        count: words of a node, fewer if no more have a score above 0.

    Raises:
        ShapeError: arrays that do not fit each other.
    """
    check_range("vectors", vectors, 0, np.inf, kinds="biuf", n=None, D=None)
    check_range("leaf", leaf, 0, topology.num_leaves - 1, kinds="iu", n=len(vectors))
    check_names("words", words, vectors.shape[1])
    everywhere = PRIOR * _mean(vectors, np.ones(len(vectors), np.bool_))
    found = []
    for name in topology.names:
        below = np.isin(leaf, topology.leaves_below(name))
        here, rest = _mean(vectors, below), _mean(vectors, ~below)
        # A word that occurs nowhere has no ratio, and no score.
        ratio = (here + everywhere) / np.where(everywhere > 0, rest + everywhere, 1.0)
        score = here * np.log(np.where(ratio > 0, ratio, 1.0))
        best = np.argsort(-score, kind="stable")[:count]
        told_apart = below.any() and not below.all()
        found.append([words[k] for k in best if score[k] > 0] if told_apart else [])
    return found


def word_tree(
    topology: TreeTopology,
    words: Sequence[Sequence[str]],
    mass: Array,
    *,
    leaf_notes: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """The tree with words at its nodes: three at an inner one, all of a leaf's beside it.

    Args:
        topology: the tree.
        words: [N] lists, best first; see `top_words`.
        mass: [N] share of the texts that reach each node.
        leaf_notes: [L] what else there is to say of a leaf, such as its main class.
        title: a line above.

    Raises:
        ShapeError: arrays that do not fit the tree.
    """
    check_range("mass", mass, 0, 1, N=topology.num_nodes)
    check_names("words", [str(k) for k in range(len(words))], topology.num_nodes)
    check_names("leaf_notes", leaf_notes, topology.num_leaves)
    if not any(words):
        raise ShapeError("words", got="none at any node", expected="lists of words")
    inner = [row for row in range(topology.num_nodes) if row not in set(topology.leaves.tolist())]
    longest = max([text_width(word, SMALL) for row in inner for word in words[row][:INNER]] + [60])
    level, slot = round(longest) + 2 * BESIDE + 2 * GAP, 2 * LINE + 3 * GAP
    notes = ["" if leaf_notes is None else leaf_notes[k] for k in range(topology.num_leaves)]
    heads = [
        "  ".join([topology.names[row], percent(float(mass[row])), notes[leaf]]).rstrip()
        for leaf, row in enumerate(topology.leaves)
    ]
    lists = [", ".join(words[row]) for row in topology.leaves]
    tail = max(text_width(line, SMALL) for line in [*heads, *lists])
    top = MARGIN + HEADING * bool(title)
    left = MARGIN + round(longest / 2) + GAP
    end = left + level * topology.max_depth
    width = max(round(end + tail) + MARGIN, NARROWEST_PAGE)
    # The root's words reach above and below the place of a tree with two leaves.
    room = max(slot * topology.num_leaves, (INNER + 1) * LINE + 2 * GAP)
    page = Page(width, top + room + MARGIN, title=title)
    depth = topology.depth.copy()
    depth[topology.leaves] = topology.max_depth
    x = left + level * depth
    y = top + room / 2 + slot * (node_columns(topology) - (topology.num_leaves - 1) / 2)
    for row in inner:
        _flow(page, topology, row, x, y, mass, reach=round(longest / 2) + GAP)
        _inner(page, x[row], y[row], topology.names[row], float(mass[row]), words[row][:INNER])
    for leaf, row in enumerate(topology.leaves):
        page.text(x[row] + GAP, y[row] - LINE / 2, heads[leaf], size=SMALL, ha="left", colour=GREY)
        page.text(x[row] + GAP, y[row] + LINE / 2, lists[leaf], size=SMALL, ha="left")
    return page.figure


def _flow(
    page: Page, topology: TreeTopology, row: int, x: Array, y: Array, mass: Array, *, reach: int
) -> None:
    below = children(topology, row)
    widths = [max(2.0, float(mass[child]) * WIDEST_FLOW) for child in below]
    start = float(y[row]) - sum(widths) / 2
    leaves = set(topology.leaves.tolist())
    for child, width in zip(below, widths, strict=True):
        stop = float(x[child]) - (GAP if child in leaves else reach)
        way = elbow(float(x[row]) + reach, start + width / 2, stop, float(y[child]), turned=True)
        page.curve(way, width, FLOW, gid=f"edge:{topology.names[child]}")
        start += width


def _inner(page: Page, x: float, y: float, name: str, share: float, words: Sequence[str]) -> None:
    lines = [f"{name}  {percent(share)}", *words]
    for k, line in enumerate(lines):
        middle = y + LINE * (k - (len(lines) - 1) / 2)
        page.text(x, middle, line, size=SMALL, colour=GREY if k == 0 else "#222222")


def _mean(vectors: Array, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    some: NDArray[np.float64] = (
        vectors[rows].mean(0, dtype=np.float64) if rows.any() else np.zeros(vectors.shape[1])
    )
    return some
