"""Files that are either the old ones or the complete new ones, never a part.

New content goes to a hidden sibling, reaches the disk, and is renamed over the old name, which a
POSIX file system does in one step. A failed write leaves the old file and no sibling; a process
killed in the middle leaves the old file and at most a hidden ``.name.*.tmp``.

Not here: locking (two writers of one name are both whole, the last wins) and file formats.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError

_HINTS = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some of your quota, or choose a folder on another disk",
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "the file system is read-only: choose a folder elsewhere",
    errno.EEXIST: "a part of the path is a file: choose another path",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "the path is a folder: give the name of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through a callback, and put it in place whole.

    Args:
        path: the file; missing parent folders are made.
        write: receives the binary stream and writes everything to it; what it returns is ignored.

    Raises:
        CheckpointError: the system refused; the old file is untouched.
    """
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(path)
        try:
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with the line ends it has; see ``write_atomic``."""
    content = text.encode("utf-8")
    write_atomic(path, lambda stream: stream.write(content))


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, keys in the order given.

    Args:
        path: the file.
        value: what the json module can write; NaN and infinities are refused, since JSON has none.

    Raises:
        CheckpointError: the system refused; the old file is untouched.
        ValueError: a number is not finite; the old file is untouched.
        TypeError: a value is not JSON's; the old file is untouched.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replace_directory(path: Path, *, marker: str = "manifest.json") -> Iterator[Path]:
    """Fill a temporary folder, and put it in place whole when the block ends without an error.

    Between moving an old folder aside and renaming the new one there is an instant without either
    name; if the second step fails, the old folder is moved back.

    Args:
        path: the folder; missing parents are made.
        marker: a file that tells a folder of ours. An existing folder is replaced only if it is
            empty or holds the marker, so that a slip of the pen never deletes somebody's files.

    Yields:
        The temporary folder, beside ``path``. It is removed if the block raises.

    Raises:
        CheckpointError: the path is a file or a folder that is not ours, or the system refused.
    """
    with _reporting(path):
        path = path.absolute()
        _refuse_foreign(path, marker)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(path)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _refuse_foreign(path, marker)
            _exchange(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turn the system's refusal into our error, which names the file and the way out."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        report = CheckpointError(
            str(path),
            got=error.strerror or str(error) or type(error).__name__,
            expected="a path that can be written",
            hint=_HINTS.get(error.errno or 0, "choose another folder"),
        )
        # A builtin OSError would take our first field for its number.
        report.errno, report.filename = error.errno, str(path)
        raise report from error


def _sibling(path: Path) -> Path:
    """A hidden name on the same file system, short enough for any name that itself fits."""
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(4)}.tmp")


def _refuse_foreign(path: Path, marker: str) -> None:
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        with os.scandir(path) as entries:
            if next(entries, None) is None or (path / marker).is_file():
                return
        got = f"a folder with other files and no {marker}"
    else:
        got = "a file or a link"
    raise CheckpointError(
        str(path),
        got=got,
        expected=f"no such path, an empty folder, or a folder with {marker}",
        hint="choose another path, or remove this one yourself",
    )


def _exchange(fresh: Path, path: Path) -> None:
    """Rename ``fresh`` to ``path``; a folder in its place is moved aside, then removed."""
    if not path.exists():
        fresh.rename(path)
        return
    aside = _sibling(path)
    path.rename(aside)
    try:
        fresh.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name, os.O_RDONLY)
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; only POSIX can open a folder, and some systems refuse."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
