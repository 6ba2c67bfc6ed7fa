"""Omniglot-5: the division by character, the polarity, and archives that are not whole."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data import RECIPES, load_images, omniglot
from treediffusion.data.content import Content
from treediffusion.data.omniglot import CHARACTERS, omniglot5
from treediffusion.errors import DataError

SMALL = dict.fromkeys(CHARACTERS, 2)
EVALUATION = ("Glagolitic", "Oriya")


def drawings(counts: dict[str, int]) -> tuple[NDArray[np.uint8], list[str], list[int]]:
    """20 drawings per character; the first pixels spell the drawing's number."""
    alphabets = [name for name, count in counts.items() for _ in range(20 * count)]
    images = np.zeros((len(alphabets), 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(images)), 256)
    return images, alphabets, (np.arange(len(images)) // 20).tolist()


def numbers(part: Content) -> NDArray[np.int64]:
    spelt = part.images[:, 0, 0, :2].astype(np.int64)
    return spelt[:, 0] * 256 + spelt[:, 1]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive's folders with two characters per alphabet, black strokes on white."""
    changed = replace(
        RECIPES["omniglot5"],
        counts=(16 * sum(SMALL.values()), 4 * sum(SMALL.values())),
        read=partial(omniglot._read, expected=SMALL),
    )
    monkeypatch.setitem(RECIPES, "omniglot5", changed)
    random = np.random.default_rng(0)
    for alphabet, count in SMALL.items():
        part = "images_evaluation" if alphabet in EVALUATION else "images_background"
        for character in range(1, count + 1):
            folder = tmp_path / part / alphabet / f"character{character:02}"
            folder.mkdir(parents=True)
            for drawer in range(1, 21):
                ink = random.random((105, 105)) > 0.1
                Image.fromarray(ink).save(folder / f"0001_{drawer:02}.png")
    return tmp_path


def fault(source: str) -> DataError:
    with pytest.raises(DataError) as caught:
        load_images(source)
    return caught.value


def test_of_every_character_16_drawings_train_and_4_test() -> None:
    train, test = omniglot5(*drawings(CHARACTERS), seed=0)
    assert train.images.shape == (3328, 1, 28, 28)
    assert test.images.shape == (832, 1, 28, 28)
    for part, count in ((train, 16), (test, 4)):
        assert np.bincount(numbers(part) // 20).tolist() == [count] * 208
        assert part.class_names == tuple(CHARACTERS)
        assert part.labels is not None
        per_alphabet = [count * characters for characters in CHARACTERS.values()]
        assert np.bincount(part.labels).tolist() == per_alphabet
    assert sorted([*numbers(train), *numbers(test)]) == list(range(4160))


def test_the_seed_decides_and_the_first_division_never_changes() -> None:
    """A model and its score may be made by different versions of NumPy."""
    found = [numbers(omniglot5(*drawings(SMALL), seed=seed)[1]).tolist() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0][:8] == [2, 3, 11, 13, 20, 21, 32, 35]


def test_other_alphabets_change_nothing() -> None:
    images, alphabets, characters = drawings({"Greek": 3} | CHARACTERS)
    train, _ = omniglot5(images, alphabets, characters, seed=0)
    expected, _ = omniglot5(*drawings(CHARACTERS), seed=0)
    np.testing.assert_array_equal(numbers(train) - 60, numbers(expected))


def test_a_missing_alphabet_is_named() -> None:
    without = {name: 1 for name in CHARACTERS if name != "Oriya"} | {"Cyrillic": 1}
    with pytest.raises(DataError, match="no Oriya"):
        omniglot5(*drawings(without), seed=0)


@pytest.mark.parametrize("wrong", ["type", "size", "alphabets", "characters"])
def test_arrays_that_do_not_fit(wrong: str) -> None:
    images: Any
    images, alphabets, characters = drawings(SMALL)
    if wrong == "type":
        images = images / 255
    if wrong == "size":
        images = images[:, :27]
    if wrong == "alphabets":
        alphabets = alphabets[1:]
    if wrong == "characters":
        characters = characters[1:]
    with pytest.raises(DataError):
        omniglot5(images, alphabets, characters, seed=0)


def test_folders_are_read_white_on_black_in_either_place(root: Path) -> None:
    train, test = load_images(f"omniglot5:{root}"), load_images(f"omniglot5:{root}", split="test")
    assert (train.images.shape, test.images.shape) == ((160, 1, 28, 28), (40, 1, 28, 28))
    assert train.name == "omniglot5"
    assert train.images.mean() > 200
    (root / "omniglot-py").mkdir()
    for part in omniglot.PARTS:
        (root / part).rename(root / "omniglot-py" / part)
    assert load_images(f"omniglot5:{root}").fingerprint == train.fingerprint


def test_drawings_are_scaled_as_torchvision_scales_them(root: Path) -> None:
    file = root / "images_background" / "Braille" / "character01" / "0001_01.png"
    with Image.open(file) as picture:
        expected = torchvision.transforms.Resize((28, 28))(picture.convert("L"))
    both = [load_images(f"omniglot5:{root}", split=split).images for split in ("train", "test")]
    matches = (np.concatenate(both)[:, 0] == np.asarray(expected)).all((1, 2))
    assert matches.sum() == 1


def test_without_a_folder_the_cache_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREEDIFFUSION_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: root / "home")
    cache = root / "home" / ".cache" / "treediffusion" / "omniglot-py"
    first = load_images(f"omniglot5:{root}").fingerprint
    cache.mkdir(parents=True)
    for part in omniglot.PARTS:
        (root / part).rename(cache / part)
    assert load_images("omniglot5").fingerprint == first


def test_an_archive_that_is_not_whole_says_what_is_missing(root: Path) -> None:
    (root / "images_evaluation" / "Oriya" / "character02" / "0001_07.png").unlink()
    error = fault(f"omniglot5:{root}")
    assert error.name.endswith("Oriya")
    assert "2 characters with 39 drawings" in str(error.got)
    assert "2 with 20 each" in error.expected


def test_a_damaged_drawing_is_named_in_the_part_it_is_in(root: Path) -> None:
    file = root / "images_evaluation" / "Oriya" / "character02" / "0001_07.png"
    file.write_bytes(file.read_bytes()[:60])
    named = []
    for split in ("train", "test"):
        try:
            load_images(f"omniglot5:{root}", split=split)
        except DataError as error:
            named.append(error.name)
    assert named == [str(file)]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "which is no folder" in str(fault(f"omniglot5:{tmp_path / 'typo'}"))
    assert not (tmp_path / "typo").exists()


def test_missing_drawings_are_downloaded_or_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offline(root: Path, *, background: bool, download: bool) -> None:
        asked.append((root, background, download))
        raise URLError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "Omniglot", offline)
    message = str(fault(f"omniglot5:{tmp_path}"))
    assert asked == [(tmp_path, True, True)]
    assert "\n" not in message
    for part in ("no route to host", "network", "images_background", "omniglot5:FOLDER"):
        assert part in message
