"""Packed sets: made once, mapped, made again when their files change or the copy is damaged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data import ImageSet, cache, dataset, load
from treediffusion.data.folders import originals_folder, packed_folder
from treediffusion.errors import CheckpointError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 8, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures of two classes, which are worth packing however small they are."""
    monkeypatch.setattr(cache, "WORTHWHILE", 0)
    for number, image in enumerate(IMAGES):
        file = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "photos"


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of files that are decoded from here on, a number for each time."""
    counts: list[int] = []
    original = dataset.decode_all

    def counting(entries: Any, *rest: Any, **options: Any) -> Any:
        counts.append(len(entries))
        return original(entries, *rest, **options)

    monkeypatch.setattr(dataset, "decode_all", counting)
    return counts


def packs() -> list[Path]:
    return sorted(packed_folder().iterdir())


def unmapped(one: ImageSet) -> ImageSet:
    """In memory of its own: a file that is cut while it is mapped takes the process with it."""
    return replace(one, images=np.array(one.images))


def assert_same(one: ImageSet, two: ImageSet) -> None:
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert (one.fingerprint, one.name, one.class_names) == (
        two.fingerprint,
        two.name,
        two.class_names,
    )


def test_pictures_are_decoded_once_and_mapped_from_then_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = decoded(monkeypatch)
    first, second = load(str(photos)), load(str(photos))
    assert counts == [6]
    assert isinstance(second.images, np.memmap)
    assert_same(first, second)
    assert first.class_names == ("class0", "class1")
    (folder,) = packs()
    assert folder.name.startswith("photos-")
    assert sorted(file.name for file in folder.iterdir()) == [
        "images.npy",
        "labels.npy",
        "set.json",
    ]


def test_what_is_written_to_a_mapped_set_stays_in_memory(photos: Path) -> None:
    load(str(photos))
    mine = load(str(photos))
    before = mine.fingerprint
    mine.images[:] = 0
    assert load(str(photos)).fingerprint == before


def test_small_sets_are_not_packed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTHWHILE", IMAGES.nbytes + 1)
    load(str(photos))
    assert not packed_folder().exists()
    monkeypatch.setattr(cache, "WORTHWHILE", IMAGES.nbytes)
    load(str(photos))
    assert len(packs()) == 1


def touched(photos: Path) -> None:
    os.utime(photos / "class0" / "0.png", ns=(1, 1))


def altered(photos: Path) -> None:
    Image.fromarray(IMAGES[1]).save(photos / "class0" / "0.png")


def added(photos: Path) -> None:
    Image.fromarray(IMAGES[1]).save(photos / "class0" / "new.png")


def removed(photos: Path) -> None:
    (photos / "class0" / "0.png").unlink()


def moved(photos: Path) -> None:
    (photos / "class0" / "0.png").rename(photos / "class1" / "0.png")


@pytest.mark.parametrize("change", [touched, altered, added, removed, moved])
def test_a_change_of_the_files_is_seen(
    photos: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    load(str(photos))
    counts = decoded(monkeypatch)
    change(photos)
    load(str(photos))
    assert len(counts) == 1


def test_another_size_and_another_part_are_other_sets(photos: Path) -> None:
    (photos / "class0").rename(photos / "test")
    found = [load(str(photos)), load(str(photos), split="test"), load(str(photos), size=4)]
    assert len({one.fingerprint for one in found}) == len(packs()) == 3


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(bytes(content))


def cut(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def lose(folder: Path, name: str) -> None:
    (folder / name).unlink()


def empty(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


DAMAGES = [
    (damage, name) for damage in (flip, cut, lose, empty) for name in ("images.npy", "labels.npy")
]


@pytest.mark.parametrize(("damage", "name"), [*DAMAGES, (cut, "set.json"), (empty, "set.json")])
def test_a_damaged_copy_is_made_again_with_a_line(
    photos: Path, capsys: pytest.CaptureFixture[str], damage: Any, name: str
) -> None:
    first = unmapped(load(str(photos)))
    damage(packs()[0], name)
    capsys.readouterr()
    second = load(str(photos))
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "is damaged" in said.err
    assert said.out == ""
    assert_same(first, second)
    load(str(photos))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("key", ["format", "key", "shape", "class_names"])
def test_a_description_without_a_part_is_damage(
    photos: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    first = load(str(photos))
    file = packs()[0] / "set.json"
    described = json.loads(file.read_text())
    del described[key]
    file.write_text(json.dumps(described))
    assert_same(first, load(str(photos)))
    assert "is damaged" in capsys.readouterr().err


def test_a_full_disk_is_no_reason_to_stop(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CheckpointError("cache", got="No space left on device", expected="room")

    monkeypatch.setattr(cache, "replace_directory", full)
    found = load(str(photos))
    assert len(found.images) == 6
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "not kept" in said


def test_files_that_were_left_out_are_an_error_again_unless_asked_for(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = photos / "class1" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    counts = decoded(monkeypatch)
    kept = load(str(photos), skip_corrupt=True)
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 0, 0, 1, 1]
    assert "1 of 6 pictures left out" in capsys.readouterr().err
    with pytest.raises(DataError) as caught:
        load(str(photos))
    assert caught.value.name == str(bad)
    assert "--skip-corrupt" in caught.value.hint
    assert counts == [6]


def test_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ours if set, else the cache that the system names, else its usual place."""
    assert packed_folder() == Path(os.environ["TREEDIFFUSION_CACHE"])
    assert originals_folder() == Path(os.environ["TREEDIFFUSION_DATA"])
    monkeypatch.delenv("TREEDIFFUSION_CACHE")
    monkeypatch.delenv("TREEDIFFUSION_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packed_folder() == tmp_path / "treediffusion" / "packed"
    assert originals_folder() == tmp_path / "treediffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert originals_folder() == tmp_path / "home" / ".cache" / "treediffusion"


def test_floats_and_sets_without_labels_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WORTHWHILE", 0)
    images: NDArray[np.float32] = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 1, 2, 2)
    content = dataset.Content(images, None, None)
    made = cache.packed("Sätze / 1", ["key"], lambda: dataset._described(content))
    again = cache.packed("Sätze / 1", ["key"], lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(again.content.images, images)
    assert again.content.images.dtype == np.float32
    assert (again.content.labels, again.content.class_names) == (None, None)
    assert made.fingerprint == again.fingerprint
    assert packs()[0].parent == packed_folder()
