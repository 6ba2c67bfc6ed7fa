"""20 Newsgroups: the vectors in closed form, one set from every packing, and damaged sources."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
from treediffusion.data import RECIPES, cache, load_images
from treediffusion.data.folders import packed_folder
from treediffusion.data.sources import find_terms
from treediffusion.data.text import TERMS, vectorize
from treediffusion.errors import DataError

TEXTS = {
    "20news-bydate-train/sci.space/10": b"From: a\n\nthe moon the orbit",
    "20news-bydate-train/sci.space/9": b"moon landing caf\xe9",
    "20news-bydate-train/alt.atheism/7": b"the belief",
    "20news-bydate-test/sci.space/11": b"moon moon unknownword",
    "20news-bydate-test/alt.atheism/12": b"nothing seen before",
}


def write_folder(folder: Path, texts: dict[str, bytes] = TEXTS) -> str:
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def write_archive(file: Path, names: Iterator[str] | None = None, *, prefix: str = "") -> str:
    mode: Any = f"w:{file.suffix[1:]}"
    with tarfile.open(file, mode) as archive:
        for name in names or TEXTS:
            member = tarfile.TarInfo(prefix + name)
            member.size = len(TEXTS[name])
            archive.addfile(member, io.BytesIO(TEXTS[name]))
    return str(file)


def fetch(*, subset: str, shuffle: bool) -> Any:
    """What scikit-learn hands out, in an order of its own."""
    assert not shuffle
    names = sorted((name for name in TEXTS if subset in name), reverse=True)
    groups = ["alt.atheism", "sci.space"]
    return SimpleNamespace(
        data=[TEXTS[name].decode("latin-1") for name in names],
        target=np.array([groups.index(name.split("/")[1]) for name in names]),
        target_names=groups,
        filenames=np.array([f"/somewhere/{name}" for name in names]),
    )


def fault(source: str, **split: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load_images(source, **split)
    return caught.value


def test_vectors_are_the_closed_form_of_the_training_texts() -> None:
    """count (ln((1 + n) / (1 + df)) + 1), terms in order of the alphabet, scaled to length 1."""
    train, test = vectorize(["moon Moon orbit", "orbit a"], ["orbit moon sun", "sun"])
    moon, orbit = math.log(3 / 2) + 1, 1.0
    length = math.hypot(2 * moon, orbit)
    np.testing.assert_allclose(train, [[2 * moon / length, orbit / length], [0, 1]], rtol=1e-6)
    length = math.hypot(moon, orbit)
    np.testing.assert_allclose(test, [[moon / length, orbit / length], [0, 0]], rtol=1e-6)
    assert train.dtype == test.dtype == np.float32


def test_the_most_frequent_terms_are_kept_and_test_texts_change_nothing() -> None:
    rare = [f"rare{number}" for number in range(TERMS)]
    texts = [" ".join(rare), "often often"]
    train, _ = vectorize(texts, [])
    assert train.shape == (2, TERMS)
    assert train[1].max() == 1
    again, test = vectorize(texts, ["often unseen"] * 3)
    np.testing.assert_array_equal(again, train)
    assert test.shape == (3, TERMS)


@pytest.mark.parametrize("texts", [[], ["", "a b c"]])
def test_texts_without_terms_are_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="without a single term"):
        vectorize(texts, [])


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_set_from_folder_archives_and_scikit_learn(
    tmp_path: Path, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    groups = ("alt.atheism", "sci.space")
    changed = replace(RECIPES["newsgroups20"], counts=(3, 2), class_names=groups)
    monkeypatch.setitem(RECIPES, "newsgroups20", changed)
    sources = [
        write_folder(tmp_path / "news"),
        write_archive(tmp_path / "news.tar.xz"),
        write_archive(tmp_path / "news.tar.gz", reversed(TEXTS), prefix="./deeper/"),
        "newsgroups20",
        f"newsgroups20:{tmp_path / 'news'}",
    ]
    found = [load_images(source, split=split) for source in sources]
    assert [one.name for one in found] == ["news", "news", "news", "newsgroups20", "newsgroups20"]
    assert len({one.fingerprint for one in found}) == 1
    for one in found:
        assert one.images.dtype == np.float32
        assert one.images.shape == (3 if split == "train" else 2, 7, 1, 1)
        assert one.class_names == ("alt.atheism", "sci.space")
        assert one.labels is not None
        assert one.labels.tolist() == ([0, 1, 1] if split == "train" else [0, 1])


def test_the_terms_are_those_of_the_numbers_wherever_the_texts_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    folder = write_folder(tmp_path / "news")
    sources = [folder, write_archive(tmp_path / "news.tar.xz"), "newsgroups20"]
    for source in [*sources, f"newsgroups20:{folder}"]:
        assert find_terms(source) == ("belief", "café", "from", "landing", "moon", "orbit", "the")
    assert find_terms("digits") == ()
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    assert find_terms(str(tmp_path / "a.npy")) == ()


def test_another_recipe_is_another_packed_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "WORTHWHILE", 0)
    groups = ("alt.atheism", "sci.space")
    recipe = replace(RECIPES["newsgroups20"], counts=(3, 2), class_names=groups)
    source = f"newsgroups20:{write_folder(tmp_path / 'news')}"
    for number, channels in enumerate((TERMS, TERMS, TERMS + 1), start=1):
        monkeypatch.setitem(RECIPES, "newsgroups20", replace(recipe, channels=channels))
        load_images(source)
        assert len(list(packed_folder().iterdir())) == (1 if number < 3 else 2)


def test_letters_are_latin_1(tmp_path: Path) -> None:
    """The term "café" is one of seven, so its text has three terms and no other has it."""
    train = load_images(write_folder(tmp_path)).images[:, :, 0, 0]
    assert (train > 0).sum(1).tolist() == [2, 4, 3]


def test_other_files_are_left_out(tmp_path: Path) -> None:
    first = load_images(write_folder(tmp_path)).fingerprint
    stray = dict.fromkeys(
        ["20news-bydate-train/readme", "20news-bydate-train/sci.space/._10", "other/group/1"],
        b"words words",
    )
    write_folder(tmp_path, stray)
    (tmp_path / "20news-bydate-train" / "sci.space" / "folder").mkdir()
    assert load_images(str(tmp_path)).fingerprint == first


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    train = {name: text for name, text in TEXTS.items() if "train" in name}
    test = {name: text for name, text in TEXTS.items() if "test" in name}
    only_train = write_folder(tmp_path / "a", train)
    assert load_images(only_train).images.shape == (3, 7, 1, 1)
    for source, split in ((only_train, "test"), (write_folder(tmp_path / "b", test), "test")):
        error = fault(source, split=split)
        assert error.name == "split"
        assert "has none" in str(error)
    (tmp_path / "c" / "20news-bydate-train").mkdir(parents=True)
    assert fault(str(tmp_path / "c")).name == "split"


def test_a_group_without_training_texts_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, TEXTS | {"20news-bydate-test/talk.misc/1": b"words"})
    assert "'talk.misc'" in str(fault(str(tmp_path), split="test"))


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_an_archive_cut_anywhere_is_refused_unless_all_texts_are_there(
    tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"a.tar.{kind}"
    intact = load_images(write_archive(file)).fingerprint
    whole, outcomes = file.read_bytes(), set()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        try:
            outcomes.add(load_images(str(file)).fingerprint)
        except DataError as error:
            outcomes.add(error.name)
    assert str(file) in outcomes
    assert outcomes <= {str(file), intact}


def test_an_archive_of_other_things(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme"))
        link = tarfile.TarInfo("20news-bydate-train/sci.space/1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    assert "has none" in str(fault(str(tmp_path / "a.tar.gz")))


def test_without_network_the_error_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(**_: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", offline)
    message = str(fault("newsgroups20"))
    assert "\n" not in message
    for part in ("no route to host", "network", "20news-bydate-train/<group>/<number>", ".tar.xz"):
        assert part in message
