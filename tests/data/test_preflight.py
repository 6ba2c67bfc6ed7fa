"""The look at a set before training: what is counted, what is found wrong, what is warned of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.upstream import write_idx
from treediffusion.data import load, preflight
from treediffusion.data.preflight import contact_sheet, inspect
from treediffusion.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)


def save(file: Path, pixels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of two classes and three sizes; one damaged, one twice."""
    folder = tmp_path / "photos"
    for number in range(4):
        save(folder / "cat" / f"{number}.png", IMAGES[number])
    save(folder / "dog" / "wide.png", IMAGES[4, :5])
    save(folder / "dog" / "grey.png", IMAGES[5, :12, :12, 0])
    save(folder / "dog" / "again.bmp", IMAGES[2])
    (folder / "dog" / "bad.png").write_bytes(b"damaged")
    return folder


def test_a_folder_is_counted_whatever_is_in_it(photos: Path) -> None:
    report = inspect(str(photos))
    assert (report.name, report.count, report.side) == ("photos", 7, None)
    assert report.sizes == {(20, 20): 5, (20, 5): 1, (12, 12): 1}
    assert report.modes == {"RGB": 6, "L": 1}
    assert report.classes == {"cat": 4, "dog": 3}
    assert [one.name for one in report.refused] == [str(photos / "dog" / "bad.png")]
    both = {str(photos / "cat" / "2.png"), str(photos / "dog" / "again.bmp")}
    assert [set(names) for names in report.duplicates] == [both]


def test_warnings_are_about_what_training_would_meet(photos: Path) -> None:
    said = " | ".join(inspect(str(photos)).warnings)
    for part in ("7 images are few", "fewer than 20 images of cat, dog", "--image-size"):
        assert part in said
    said = " | ".join(inspect(str(photos), size=16).warnings)
    assert "1 images lose more than half" in said
    assert "2 images are smaller than 16x16" in said
    assert "--image-size" not in said


def test_one_image_is_few_and_of_none_there_is_no_side(tmp_path: Path) -> None:
    save(tmp_path / "a.png", IMAGES[0])
    report = inspect(str(tmp_path))
    assert report.side == 20
    assert report.warnings[0].startswith("1 image is few")
    (tmp_path / "a.png").write_bytes(b"damaged")
    report = inspect(str(tmp_path))
    assert (report.count, report.side, len(report.refused)) == (0, None, 1)
    assert report.warnings[0].startswith("no images are few")


def test_large_square_sets_are_not_warned_of(tmp_path: Path) -> None:
    labels = np.arange(1000) % 10
    images = np.random.default_rng(1).integers(0, 256, (1000, 8, 8), dtype=np.uint8)
    write_idx(tmp_path, "train", images, labels)
    report = inspect(str(tmp_path))
    assert report.warnings == ()
    assert report.duplicates == ()
    assert (report.side, report.count) == (8, 1000)
    assert report.classes == {str(k): 100 for k in range(10)}


def test_oblong_images_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", IMAGES[:, :10])
    assert any("oblong" in said for said in inspect(str(tmp_path / "a.npy")).warnings)
    monkeypatch.setattr(preflight, "MEMORY", 2**20)
    assert any("memory" in said for said in inspect("digits", size=32).warnings)
    assert not any("memory" in said for said in inspect("digits").warnings)


def test_equal_images_are_found_in_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES[[0, 1, 0, 2, 1, 0]])
    found = inspect(str(tmp_path / "a.npy")).duplicates
    assert found == (("image 0", "image 2", "image 5"), ("image 1", "image 4"))


def test_a_named_set_is_compared_with_its_description(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", IMAGES[..., 0], np.arange(8))
    with pytest.raises(DataError, match="60000"):
        inspect(f"mnist:{tmp_path}")
    assert inspect("digits").classes == dict(
        zip("0123456789", [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], strict=True)
    )


def test_vectors_are_counted_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(5, dtype=np.float32))
    report = inspect(str(tmp_path / "a.npy"))
    assert report.modes == {"5 x float32": 5}
    with pytest.raises(DataError, match="vectors"):
        contact_sheet(str(tmp_path / "a.npy"))


def test_the_sheet_shows_what_is_trained_on(photos: Path) -> None:
    shown = contact_sheet(str(photos), size=16)
    np.testing.assert_array_equal(shown, load(str(photos), size=16, skip_corrupt=True).images)
    digits = contact_sheet("digits")
    assert digits.shape == (64, 1, 8, 8)
    np.testing.assert_array_equal(digits[[0, -1]], load("digits").images[[0, -1]])
    for file in (photos / "cat").iterdir():
        file.unlink()
    for file in (photos / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no picture"):
        contact_sheet(str(photos))
