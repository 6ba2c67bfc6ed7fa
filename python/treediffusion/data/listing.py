"""Which pictures a folder or a zip holds, and their classes; nothing is decoded here.

Both are laid out alike: pictures anywhere, perhaps a part `test` and a part `train`, and below that
perhaps one folder for each class. Hidden files are left out: archives made on a Mac hold
"._name.png" files without a picture. Order is that of the names, always.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .content import Split
from .pictures import LARGEST, SUFFIXES, Entry

PARTS = frozenset({"train", "test"})


class Listing(NamedTuple):
    """Pictures that are not decoded yet.

    Attributes:
        entries: n files.
        labels: [n] int64, or None.
        class_names: name of each class, or None.
    """

    entries: Sequence[Entry]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None


def list_folder(folder: Path, *, split: Split) -> Listing:
    """The pictures of one part of a folder.

    Raises:
        DataError: no picture, or no such part.
    """
    return _listing([file_entry(file, folder) for file in _files(folder)], str(folder), split=split)


def list_zip(path: Path, *, split: Split) -> Listing:
    """The pictures of one part of a zip, read in place.

    Raises:
        DataError: no zip or a damaged one, no picture, or no such part.
    """
    entries = zip_entries(path)
    # A folder that was zipped as one thing is the source itself, and no class.
    while entries and all("/" in entry.place for entry in entries):
        tops = {entry.place.split("/", 1)[0] for entry in entries}
        if len(tops) > 1 or tops & PARTS:
            break
        entries = [entry._replace(place=entry.place.split("/", 1)[1]) for entry in entries]
    return _listing(entries, str(path), split=split)


def zip_entries(path: Path) -> list[Entry]:
    """The pictures in a zip, in the order of their places; it stays open for them.

    Raises:
        DataError: no zip, or a damaged one.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as fault:
        raise DataError(
            str(path),
            got=f"a zip that cannot be opened ({fault})",
            expected="a zip, whole",
            hint="get or make it again: it is cut, or no zip",
        ) from fault
    entries = [
        Entry(
            f"{path}:{info.filename}",
            PurePosixPath(info.filename).as_posix(),
            (info.file_size, info.CRC),
            partial(_read_member, archive, info),
        )
        for info in archive.infolist()
        if not info.is_dir() and _is_picture(PurePosixPath(info.filename))
    ]
    return sorted(entries, key=lambda entry: PurePosixPath(entry.place).parts)


def file_entry(file: Path, root: Path | None = None) -> Entry:
    """A file as an entry, whether it is there or not; without a root its name is its place."""
    try:
        found = file.stat()
        stamp = (found.st_size, found.st_mtime_ns)
    except OSError:
        stamp = (0, 0)  # reading it says what is wrong
    place = file.name if root is None else file.relative_to(root).as_posix()
    return Entry(str(file), place, stamp, partial(_read_file, file))


def numbered(names: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """[n] int64, the place of each class name among the known ones."""
    number = {name: k for k, name in enumerate(known)}
    return np.array([number[name] for name in names], np.int64)


def _listing(entries: Sequence[Entry], source: str, *, split: Split) -> Listing:
    """One part of the entries, with the classes of both.

    Test is the part `test`. Train is all the rest, or the part `train` where that is all the rest:
    next to other classes, `train` is a class of trains.
    """
    places = {entry: PurePosixPath(entry.place).parts for entry in entries}
    test = {entry: parts[1:] for entry, parts in places.items() if parts[0] == "test"}
    rest = {entry: parts for entry, parts in places.items() if entry not in test}
    if rest and all(parts[0] == "train" and len(parts) > 1 for parts in rest.values()):
        rest = {entry: parts[1:] for entry, parts in rest.items()}
    mine = rest if split == "train" else test
    if split == "test" and not test:
        raise DataError(
            "split",
            got=f"'test' of {source!r}, which has none",
            expected="a sub-folder 'test' with pictures",
        )
    if not mine:
        raise DataError(
            "data",
            got=f"{source!r}, which holds no image",
            expected=f"idx files, or {', '.join(sorted(SUFFIXES))} files",
        )
    # A class has one number, whether or not the other part has pictures of it.
    names = sorted({parts[0] for parts in (*rest.values(), *test.values())})
    flat = any(len(parts) == 1 for parts in (*rest.values(), *test.values()))
    if len(names) < 2 or flat:
        return Listing(list(mine), None, None)
    labels = numbered([parts[0] for parts in mine.values()], names)
    return Listing(list(mine), labels, tuple(names))


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if _is_picture(PurePosixPath(file.relative_to(folder).as_posix())) and file.is_file()
    )


def _is_picture(place: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
    return place.suffix.lower() in SUFFIXES and not hidden


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _refuse_huge(info.filename, info.file_size)
    return archive.read(info)


def _read_file(file: Path) -> bytes:
    _refuse_huge(str(file), file.stat().st_size)
    return file.read_bytes()


def _refuse_huge(name: str, size: int) -> None:
    if size > LARGEST:
        raise DataError(name, got=f"{size} bytes", expected=f"at most {LARGEST}")
