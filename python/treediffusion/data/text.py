"""20 Newsgroups as vectors: one pixel with as many channels as there are terms.

    tf-idf[d, w] = count(w in d) (ln((1 + n) / (1 + df(w))) + 1), each text scaled to length 1

Terms are the 2,000 most frequent of the training texts, which alone say how many there are (n) and
in how many of them a term occurs (df). A text without any of the terms is a vector of zeros.
Texts are in order of group and file name, so a set is the same wherever it was read from.
Headers, footers and quotes stay in. Not here: other text collections, and sparse arrays.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require
from .class_names import NEWSGROUPS
from .content import Content, Split
from .recipe import ELSEWHERE, Recipe

TERMS = 2000
FOLDER: dict[Split, str] = {"train": "20news-bydate-train", "test": "20news-bydate-test"}
SPLIT = {folder: split for split, folder in FOLDER.items()}
ARCHIVES = (".tar.xz", ".tar.gz")
ARCHIVE = "20news-bydate"
SHA256 = "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610"  # of its .tar.gz
LAYOUT = f"{FOLDER['train']}/<group>/<number> and {FOLDER['test']}/<group>/<number>"


class Text(NamedTuple):
    """One text and where it belongs; texts sort by split, group and file name."""

    split: Split
    group: str
    file: str
    content: str


def vectorize(
    train_texts: Sequence[str], test_texts: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """TF-IDF of both splits, fitted on the first alone.

    Args:
        train_texts: n texts.
        test_texts: m texts; there may be none.

    Returns:
        train: [n, D] float32 in 0..1, D the number of terms, at most 2,000.
        test: [m, D] float32 in 0..1.

    Raises:
        DataError: the training texts hold no term.
    """
    train, vectorizer = _fit(train_texts)
    if not test_texts:
        return train, np.zeros((0, train.shape[1]), np.float32)
    return train, vectorizer.transform(test_texts).toarray()


def terms(place: Path) -> tuple[str, ...]:
    """The terms whose weights a text's vector has, in the order of its numbers.

    Args:
        place: of the texts, or `ELSEWHERE`, as for reading them.

    Raises:
        DataError: unreadable, or without training texts.
    """
    texts = _fetched() if place == ELSEWHERE else _texts(place)
    train = [text.content for text in sorted(texts) if text.split == "train"]
    return tuple(_fit(train)[1].get_feature_names_out().tolist())


def is_newsgroups(folder: Path) -> bool:
    """Whether a folder holds 20 Newsgroups in its own layout."""
    return any((folder / name).is_dir() for name in FOLDER.values())


def read_newsgroups(path: Path, *, split: Split) -> Content:
    """20 Newsgroups from a folder or an archive with one file per text, in Latin-1.

    Raises:
        DataError: unreadable, without training texts, or without the split.
    """
    return _content(sorted(_texts(path)), split=split, source=str(path))


def fetch_newsgroups(*, split: Split) -> Content:
    """20 Newsgroups through scikit-learn, which downloads them once.

    What it keeps in its data folder is a pickle, which it loads again; `read_newsgroups` reads the
    original archive without any.

    Raises:
        DataError: neither a copy in scikit-learn's folder nor a download.
    """
    return _content(sorted(_fetched()), split=split, source="newsgroups20")


def _fit(train_texts: Sequence[str]) -> tuple[NDArray[np.float32], Any]:
    """[n, D] vectors of the training texts, and what makes such vectors of others."""
    text = require("sklearn.feature_extraction.text", extra="train")
    vectorizer = text.TfidfVectorizer(max_features=TERMS, dtype=np.float32)
    try:
        return vectorizer.fit_transform(train_texts).toarray(), vectorizer
    except ValueError as fault:
        raise DataError(
            "texts",
            got=f"{len(train_texts)} training texts without a single term ({fault})",
            expected="texts with words of two letters or more",
        ) from fault


def _fetched() -> list[Text]:
    fetch = require("sklearn.datasets", extra="train").fetch_20newsgroups
    texts: list[Text] = []
    try:
        for part in FOLDER:
            bunch = fetch(subset=part, shuffle=False)
            groups = (bunch.target_names[label] for label in bunch.target)
            files = (Path(name).name for name in bunch.filenames)
            texts += map(Text, [part] * len(bunch.data), groups, files, bunch.data)
    except OSError as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise DataError(
            "newsgroups20",
            got=f"no copy in scikit-learn's data folder and no download ({reason})",
            expected="a network connection, the first time",
            hint=f"or give a folder with {LAYOUT}, or a {' or '.join(ARCHIVES)} of it, as data",
        ) from fault
    return texts


def _content(texts: list[Text], *, split: Split, source: str) -> Content:
    """Vectors of one split, fitted on the training texts."""
    parts = {part: [text for text in texts if text.split == part] for part in FOLDER}
    for part in ("train", split):
        if not parts[part]:
            raise DataError(
                "split",
                got=f"{part!r} of {source!r}, which has none",
                expected=LAYOUT,
                hint="test texts are measured by the terms of the training texts",
            )
    groups = sorted({text.group for text in parts["train"]})
    unknown = sorted({text.group for text in parts["test"]} - set(groups))
    if unknown:
        raise DataError(
            source,
            got=f"the group {unknown[0]!r} in the test part only",
            expected="the same groups in both parts",
        )
    test = [text.content for text in parts["test"]] if split == "test" else []
    both = vectorize([text.content for text in parts["train"]], test)
    vectors = both[0] if split == "train" else both[1]
    number = {group: k for k, group in enumerate(groups)}
    labels = np.array([number[text.group] for text in parts[split]], np.int64)
    return Content(vectors[:, :, np.newaxis, np.newaxis], labels, tuple(groups))


def _texts(path: Path) -> Iterator[Text]:
    return _texts_of_folder(path) if path.is_dir() else _texts_of_archive(path)


def _texts_of_folder(folder: Path) -> Iterator[Text]:
    for name in FOLDER.values():
        for file in (folder / name).glob("*/*"):
            place = _place(PurePosixPath(name, *file.parts[-2:]))
            if place is None or not file.is_file():
                continue
            try:
                content = file.read_bytes()
            except OSError as fault:
                raise _unreadable(file, fault) from fault
            yield Text(*place, content.decode("latin-1"))


def _texts_of_archive(path: Path) -> Iterator[Text]:
    """Read in place: nothing of the archive touches the disk."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                place = _place(PurePosixPath(member.name))
                stream = archive.extractfile(member) if place and member.isreg() else None
                if place is None or stream is None:
                    continue
                yield Text(*place, stream.read().decode("latin-1"))
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as fault:
        raise _unreadable(path, fault) from fault


def _place(path: PurePosixPath) -> tuple[Split, str, str] | None:
    """Split, group and file name; None for what is no text of the collection."""
    if len(path.parts) < 3:
        return None
    folder, group, file = path.parts[-3:]
    # Archives made on a Mac hold "._49960" files without a text.
    if folder not in SPLIT or file.startswith("."):
        return None
    return SPLIT[folder], group, file


def _unreadable(path: Path, fault: Exception) -> DataError:
    return DataError(
        str(path),
        got=f"an unreadable file ({fault or type(fault).__name__})",
        expected=f"a text, or a whole {' or '.join(ARCHIVES)} archive of {LAYOUT}",
        hint="get the file again",
    )


def _locate(root: Path) -> Path:
    archives = (root / f"{ARCHIVE}{suffix}" for suffix in ARCHIVES)
    found = next((file for file in archives if file.is_file()), None)
    return found or (root if is_newsgroups(root) else ELSEWHERE)


def _read(place: Path, split: Split) -> Content:
    if place == ELSEWHERE:
        return fetch_newsgroups(split=split)
    return read_newsgroups(place, split=split)


NEWSGROUPS_20 = Recipe(
    name="newsgroups20",
    title="texts of 20 newsgroups, as TF-IDF of 2,000 terms",
    page="http://qwone.com/~jason/20Newsgroups/",
    citation="Lang: NewsWeeder: learning to filter netnews, 1995",
    terms="none stated",
    channels=TERMS,
    size=1,
    counts=(11_314, 7532),
    class_names=NEWSGROUPS,
    locate=_locate,
    fetch=lambda _: None,  # scikit-learn does, where there is no archive
    read=_read,
    by_hand=f"{ARCHIVE}.tar.gz in FOLDER",
    files={f"{ARCHIVE}.tar.gz": SHA256},
    kind="texts",
)
