"""The developer's reader of data packs: what it writes is what `--data` reads."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data import load_images
from treediffusion.data.content import Content

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import packs

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 16, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 1, 0])


def write_strips(file: Path, images: NDArray[np.uint8], per_strip: int, **arrays: Any) -> Path:
    """Lossless, so that every pixel comes back."""
    encoded = []
    for start in range(0, len(images), per_strip):
        buffer = io.BytesIO()
        strip = images[start : start + per_strip].reshape(-1, *images.shape[2:])
        Image.fromarray(strip).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, encoded)])
    data = np.frombuffer(b"".join(encoded), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, data=data, offsets=offsets, hw=images.shape[1:3], **arrays)
    return file


@pytest.mark.parametrize("per_strip", [1, 4, 6])
def test_strips_are_cut_into_images(tmp_path: Path, per_strip: int) -> None:
    found, arrays = packs.strips(write_strips(tmp_path / "a.npz", IMAGES, per_strip, labels=LABELS))
    np.testing.assert_array_equal(found, IMAGES)
    assert set(arrays) == {"labels"}


def test_what_is_written_is_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = IMAGES.copy()
    images[:2, 0, 0, 0] = 0, 255
    for split, count in (("train", 6), ("test", 2)):
        write_strips(
            tmp_path / "cifar10-jpeg" / f"{split}.npz",
            images[:count],
            4,
            labels=LABELS[:count].astype(np.uint8),
            class_names=np.array(["cat", "dog"]),
        )
    small = packs.PACKS["cifar10"]._replace(counts=(6, 2), classes=2, per_class=((3, 3), (1, 1)))
    monkeypatch.setitem(packs.PACKS, "cifar10", small)
    out = tmp_path / "out.npz"
    assert packs.main(["cifar10", str(tmp_path), str(out)]) == 0
    for found, count in ((load_images(str(out)), 6), (load_images(str(out), split="test"), 2)):
        np.testing.assert_array_equal(found.images, images[:count].transpose(0, 3, 1, 2))
        assert found.labels is not None
        assert found.labels.tolist() == LABELS[:count].tolist()
        assert found.class_names == ("cat", "dog")
    assert "train_images  uint8 [6, 3, 8, 16]" in capsys.readouterr().out


def test_a_pack_that_is_not_as_described_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        file = tmp_path / "cub64" / f"{split}.npz"
        write_strips(file, IMAGES, 6, labels=LABELS, class_names=np.array(["a", "b"]))
    assert packs.main(["cub64", str(tmp_path), str(tmp_path / "out.npz")]) == 1
    assert not (tmp_path / "out.npz").exists()
    said = capsys.readouterr().err
    for part in ("6 train images, not 5994", "2 test classes, not 200"):
        assert part in said


def test_vectors_are_stored_as_vectors() -> None:
    vectors = np.eye(3, dtype=np.float32)
    part = Content(vectors[:, :, np.newaxis, np.newaxis], np.arange(3), None)
    arrays = packs.to_arrays(part, part)
    np.testing.assert_array_equal(arrays["test_images"], vectors)
    assert "class_names" not in arrays


def test_faces_are_cut_symmetrically() -> None:
    """Left and right margins are equal, as those of 148 of 178 pixels are."""
    left, top, right, bottom = packs.CELEBA_BOX
    assert (left, 89 - right) == (7.5, 7.5)
    assert (right - left, bottom - top) == (74, 74)
