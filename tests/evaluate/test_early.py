"""The early look: drawn from real images, measured where there are labels, never in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data import ImageSet
from treediffusion.evaluate.early import early_report, leaf_members
from treediffusion.topology import TreeTopology
from treediffusion.train.tree_state import Phase, PhaseEnd

TREE = TreeTopology.initial().grow("r0")  # leaves r1, r00, r01
LEAF = np.array([0, 1, 1, 0, 1])  # r01 has no image
END = PhaseEnd(Phase("subtree", "r0"), TREE, np.array([0.4, 0.6, 0.0]), LEAF, -3.25)


def images(labels: NDArray[np.int64] | None, *, shape: tuple[int, ...] = (1, 8, 8)) -> ImageSet:
    pixels = np.arange(5 * np.prod(shape), dtype=np.uint8).reshape(5, *shape)
    return ImageSet(pixels, labels, "test", None, "0" * 16)


def test_a_leafs_images_are_its_first_ones_and_black_where_there_are_none() -> None:
    pixels = images(None).images
    found = leaf_members(TREE, LEAF, pixels)  # type: ignore[arg-type]
    assert found.shape == (3, 4, 1, 8, 8)
    assert np.array_equal(found[0, :2], pixels[[0, 3]])
    assert np.array_equal(found[1, :3], pixels[[1, 2, 4]])
    assert not found[2].any()
    assert not found[0, 2:].any()


def test_a_picture_and_numbers_are_replaced_phase_by_phase(tmp_path: Path) -> None:
    look = early_report(tmp_path)
    look(images(np.array([7, 7, 900, 7, 900])), END)
    first = (tmp_path / "preview.png").read_bytes()
    assert min(Image.open(tmp_path / "preview.png").size) > 50
    assert json.loads((tmp_path / "metrics.json").read_text())["clustering"]["acc"] == 0.8
    look(images(LEAF), PhaseEnd(Phase("final"), TREE, END.share, LEAF, -3.0))
    assert (tmp_path / "preview.png").read_bytes() != first
    assert json.loads((tmp_path / "metrics.json").read_text())["clustering"]["acc"] == 1


@pytest.mark.parametrize("labels", [None, np.arange(5)])
def test_labels_that_compare_with_nothing_give_no_numbers(
    labels: NDArray[np.int64] | None, tmp_path: Path
) -> None:
    """None, or no two images of one class: the picture is there, and training goes on."""
    early_report(tmp_path)(images(labels), END)
    assert {path.name for path in tmp_path.iterdir()} == {"preview.png", "explorer.html"}


def test_of_several_trees_the_kept_one_is_shown_beside_all(tmp_path: Path) -> None:
    """Each finished tree with its number, then the kept one; the others leave only numbers."""
    look, labels = early_report(tmp_path), np.array([7, 7, 900, 7, 900])
    look(images(labels), replace(END, number=0))
    assert not list(tmp_path.iterdir())
    look(images(labels), replace(END, leaf=np.array([0, 0, 1, 0, 1]), number=1))
    look(images(labels), END)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["clustering"]["acc"] == 0.8
    assert found["trees"]["count"] == 2
    assert found["trees"]["mean"]["acc"] == pytest.approx(0.9)
    assert found["trees"]["deviation"]["acc"] == pytest.approx(0.2 / 2**0.5)


def test_vectors_give_no_picture(tmp_path: Path) -> None:
    early_report(tmp_path)(images(LEAF, shape=(40, 1, 1)), END)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_phase_ends_in_one_line() -> None:
    expected = "after subtree of r0: 3 leaves with 40 60 0 % of the images, ELBO -3.25"
    assert str(END) == expected
