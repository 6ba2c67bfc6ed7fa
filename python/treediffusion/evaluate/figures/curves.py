"""How a run was trained, and how its clusters do when the tree is cut at any number of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...errors import ShapeError
from .chart import Axes, log_rounded, rounded
from .checks import Array, check_range
from .page import Page
from .style import (
    BODY,
    GAP,
    GREY,
    HEADING,
    INK,
    LINE,
    LINES,
    MARGIN,
    NARROWEST_PAGE,
    PAGE,
    SMALL,
    fitting,
    text_width,
)

HEIGHT, LEFT, UNDER = 380, 84, 76
TERMS = {
    "reconstruction": ("reconstruction", "#9db4cc"),
    "kl_root": ("KL of the root", "#2f5d8c"),
    "kl_nodes": ("KL of the other nodes", "#44AA99"),
    "kl_decisions": ("KL of the routers", "#DDCC77"),
}
"""What adds up to the negative ELBO, from the ground upwards."""
WIDEST_BAR = 110


def history_chart(
    tree: Sequence[Mapping[str, Any]],
    diffusion: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "",
) -> Figure:
    """The tree's terms after each phase of growing, above the denoiser's loss.

    Args:
        tree: of each phase in turn its name (`phase`), the leaf that was split (`leaf`, or None),
            the number of leaves after it (`leaves`) and the terms of the negative ELBO in nats.
        diffusion: `step` and `loss`, as the training recorded them; drawn on a logarithmic scale.
        title: a line above.

    Raises:
        ShapeError: neither phases nor losses, or something that is no record of them.
    """
    if not tree and not diffusion:
        raise ShapeError("history", got="no records", expected="phases of the tree, or losses")
    _check_records("tree", tree, ("phase", "leaves", *TERMS))
    _check_records("diffusion", diffusion, ("step", "loss"))
    parts = bool(tree) + bool(diffusion)
    top = MARGIN + HEADING * bool(title)
    each = 2 * LINE + HEIGHT + UNDER
    page = Page(PAGE, top + parts * each + LINE * bool(tree) + MARGIN, title=title)
    if tree:
        _growth(page, top + 2 * LINE, tree)
    if diffusion:
        _loss(page, top + (each + LINE) * bool(tree) + 2 * LINE, diffusion)
    return page.figure


def metrics_chart(
    k: Array,
    scores: Mapping[str, Array],
    *,
    title: str = "",
    xlabel: str = "clusters, k",
    ylabel: str = "score",
    mark: float | None = None,
    mark_name: str = "",
) -> Figure:
    """Scores against the number of clusters, or of anything else that is counted.

    Args:
        k: [n] numbers in rising order.
        scores: [n] each in 0 to 1, by name; at most six.
        title: a line above.
        xlabel: what k is.
        ylabel: what the scores are.
        mark: a k that has a line of its own, such as the number of classes.
        mark_name: what is written above that line.

    Raises:
        ShapeError: arrays that do not fit each other, or no or too many scores.
    """
    check_range("k", k, -np.inf, np.inf, n=None)
    if not 1 <= len(scores) <= len(LINES):
        raise ShapeError("scores", got=f"{len(scores)} curves", expected=f"1 to {len(LINES)}")
    for name, values in scores.items():
        check_range(name, values, -1, 1, n=len(k))
    right = round(max(text_width(name, SMALL) for name in scores)) + 4 * GAP
    top = MARGIN + HEADING * bool(title) + 2 * LINE
    width = max(PAGE * 3 // 4, NARROWEST_PAGE)
    page = Page(width, top + HEIGHT * 4 // 3 + UNDER + MARGIN, title=title)
    lowest = min(0.0, float(min(values.min() for values in scores.values())))
    axes = Axes(
        page,
        (MARGIN + LEFT, top, width - 2 * MARGIN - LEFT - right, HEIGHT * 4 // 3),
        (float(k[0]), float(k[-1])),
        (rounded(lowest, 1.0)[0], 1.0),
    )
    whole = [float(value) for value in k] if len(k) <= 20 else None
    axes.draw(xlabel=xlabel, ylabel=ylabel, xticks=whole)
    if mark is not None:
        x = axes.across(mark)
        axes.rule(x, axes.box[1], x, axes.box[1] + axes.box[3], colour=GREY, gid="mark")
        if mark_name:
            # Never so far to the left that it would touch what the scale is called.
            least = axes.box[0] + text_width(ylabel, BODY) + 2 * GAP
            x = max(x, least + text_width(mark_name, SMALL) / 2)
            page.text(x, top - LINE, mark_name, size=SMALL, colour=GREY)
    for colour, (name, values) in zip(LINES, scores.items(), strict=False):
        axes.line(k, values, colour, dots=len(k) <= 40, name=name)
    axes.names({name: float(values[-1]) for name, values in scores.items()})
    return page.figure


def _growth(page: Page, top: int, phases: Sequence[Mapping[str, Any]]) -> None:
    """A column per phase, as high as the negative ELBO and divided into its terms."""
    # A term that is estimated by sampling can be a hair below 0, where a column has no room.
    terms = np.array([[max(0.0, float(phase[name])) for name in TERMS] for phase in phases])
    right = round(max(text_width(words, SMALL) for words, _ in TERMS.values())) + 4 * GAP
    box = (MARGIN + LEFT, top, PAGE - 2 * MARGIN - LEFT - right, HEIGHT)
    axes = Axes(page, box, (0.0, float(len(phases))), (0.0, rounded(0.0, terms.sum(1).max())[1]))
    axes.draw(xlabel="", ylabel="negative ELBO after each phase, nats per image", xticks=())
    slot = box[2] / len(phases)
    bar = min(slot - 2 * GAP, WIDEST_BAR)
    names = [_phase_name(phase) for phase in phases]
    letters = fitting(names, slot - GAP, largest=SMALL)
    # Of very many phases some stay without a name, which their neighbours need the room of.
    widest = max(text_width(name, letters) for name in names) + GAP
    every = max(1, math.ceil(widest / slot))
    for k, phase in enumerate(phases):
        x, ground = round(axes.across(k + 0.5) - bar / 2), 0.0
        for (name, (_, colour)), value in zip(TERMS.items(), terms[k], strict=True):
            low, high = round(axes.up(ground)), round(axes.up(ground + value))
            page.box(x, high, (round(bar), low - high), colour, gid=f"bar:{k}:{name}")
            ground += value
        middle, under = axes.across(k + 0.5), top + HEIGHT + LINE
        if k % every == 0:
            page.text(middle, under, names[k], size=letters, colour=GREY)
            page.text(middle, under + LINE, str(phase["leaves"]), size=letters, colour=INK)
    page.text(box[0] - 2 * GAP, under, "split", size=SMALL, colour=GREY, ha="right")
    page.text(box[0] - 2 * GAP, under + LINE, "leaves", size=SMALL, ha="right")
    ends = dict(zip((words for words, _ in TERMS.values()), np.cumsum(terms[-1]), strict=True))
    middles = {
        words: end - part / 2 for (words, end), part in zip(ends.items(), terms[-1], strict=True)
    }
    colours = ["#5f7f9f", "#2f5d8c", "#2f8a7c", "#8a7a1f"]
    axes.names(middles, colours)


def _phase_name(phase: Mapping[str, Any]) -> str:
    kind = str(phase["phase"])
    return str(
        phase.get("leaf") or {"intermediate": "(all)", "initial": "(start)"}.get(kind, f"({kind})")
    )


def _loss(page: Page, top: int, records: Sequence[Mapping[str, Any]]) -> None:
    steps = np.array([float(record["step"]) for record in records])
    loss = np.array([float(record["loss"]) for record in records])
    loss = np.maximum(loss, 1e-12)
    box = (MARGIN + LEFT, top, PAGE - 2 * MARGIN - LEFT - 3 * GAP, HEIGHT)
    scale = log_rounded(float(loss.min()), float(loss.max()))
    axes = Axes(page, box, (0.0, float(steps[-1])), scale, log=True, name="loss")
    axes.draw(xlabel="step", ylabel="loss of the denoiser")
    axes.line(steps, loss, LINES[0], dots=len(steps) <= 60, name="loss")


def _check_records(name: str, records: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> None:
    for record in records:
        missing = [field for field in fields if field not in record]
        if missing:
            raise ShapeError(name, got=f"a record without {missing[0]}", expected=", ".join(fields))
