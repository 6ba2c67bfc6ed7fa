"""Images share a call only where that has been seen to change no bit."""

from __future__ import annotations

import numpy as np
from treediffusion.bundle import GraphSpec, TensorSpec
from treediffusion.runtime.backends.together import Arrays, Together

SPEC = GraphSpec(
    file=None,  # type: ignore[arg-type]
    inputs=(TensorSpec("x", "float32", ("B", 3)), TensorSpec("table", "float32", ("S",)),
            TensorSpec("step", "int64", ("B",))),
    outputs=(TensorSpec("y", "float32", ("B", 3)),),
)  # fmt: skip


class Library:
    """y = x + table[step], and a rounding error in company, if it is one of that kind."""

    def __init__(self, error: float = 0.0, place: int = 0) -> None:
        self.error, self.place, self.calls = error, place, []

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        self.calls.append(len(feeds["x"]))
        y = feeds["x"] + feeds["table"][feeds["step"]][:, None]
        if len(y) > 1:
            y[self.place] += np.float32(self.error)
        return {"y": y}


def feeds(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    table = draw.standard_normal(rows).astype(np.float32)
    return {
        "x": draw.standard_normal((rows, 3)).astype(np.float32),
        "table": table,
        "step": np.arange(rows),
    }


def test_a_size_is_tried_once_and_then_trusted() -> None:
    together, library = Together(), Library()
    for seed in range(3):
        given = feeds(4, seed)
        found = together.run(SPEC, "step", given, library)["y"]
        assert np.array_equal(found, given["x"] + given["table"][:, None])
    assert library.calls == [1, 1, 1, 1, 4, 4, 4]


def test_one_row_off_by_its_last_bit_and_images_stay_alone() -> None:
    for place in (0, 3):
        together, library = Together(), Library(error=1e-7, place=place)
        for seed in range(2):
            given = feeds(4, seed)
            given["x"][:] = 1.0
            given["table"][:] = 0.0
            assert (together.run(SPEC, "step", given, library)["y"] == 1.0).all()
        assert library.calls == [1, 1, 1, 1, 4, 1, 1, 1, 1]


def test_graphs_and_sizes_are_tried_apart() -> None:
    together, library = Together(), Library()
    for role, rows in (("step", 2), ("path", 2), ("step", 4), ("step", 2), ("path", 1)):
        together.run(SPEC, role, feeds(rows), library)
    assert library.calls == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 4, 2, 1]


def test_numbers_that_are_none_agree_with_themselves() -> None:
    together, library = Together(), Library()
    given = feeds(2) | {"x": np.full((2, 3), np.nan, np.float32)}
    for _ in range(2):
        assert np.isnan(together.run(SPEC, "step", given, library)["y"]).all()
    assert library.calls == [1, 1, 2, 2]
