"""Sets that were decoded once, as arrays that are mapped into memory and not read.

A set lies in a folder of its own, whose name ends in the first digits of

    SHA-256(what it was made of: recipe, files with sizes and times, cut, size, labels; format)

with `images.npy`, `labels.npy` and `set.json`. Pixels and labels are compared with their hashes on
every reading; a set that is damaged is made again. Sets of less than a MiB are sooner made than
looked up. Not here: making room; the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, DataError
from ..files import replace_directory, write_atomic, write_json
from .content import Content, Pixels, fingerprint
from .folders import packed_folder

FORMAT = 2
"""Of what is kept and of how files are read: another way is another number, and so another key."""
MARKER = "set.json"
WORTHWHILE = 2**20  # bytes of pixels


class Packed(NamedTuple):
    """A set, wherever it is.

    Attributes:
        content: images, labels and class names; large images are mapped, copied where written to.
        refused: what is wrong with the files that were left out.
        fingerprint: of the images.
    """

    content: Content
    refused: tuple[DataError, ...]
    fingerprint: str


def packed(name: str, key: object, make: Callable[[], Packed]) -> Packed:
    """The set from the cache, or made and put there.

    Args:
        name: what its folder's name begins with.
        key: what it is made of, in JSON's types; another key is another set.
        make: makes it.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()
    word = re.sub(r"[^\w.-]+", "-", name)[:64].strip(".-") or "set"
    folder = packed_folder() / f"{word}-{digest[:16]}"
    if (folder / MARKER).exists():
        try:
            return _read(folder, digest)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as fault:
            _say(f"{folder}: the packed set is damaged ({fault}); it is made again")
    made = make()
    if made.content.images.nbytes < WORTHWHILE:
        return made
    try:
        _write(folder, digest, made)
        return _read(folder, digest)
    except (CheckpointError, OSError, ValueError) as fault:
        # A full disk, or another process that put the same set there at the same moment.
        _say(f"{name}: not kept for the next time ({fault})")
        return made


def _write(folder: Path, digest: str, made: Packed) -> None:
    images, labels, names = made.content
    described: dict[str, Any] = {
        "format": FORMAT,
        "key": digest,
        "shape": list(images.shape),
        "dtype": str(images.dtype),
        "fingerprint": made.fingerprint,
        "labels": None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest(),
        "class_names": names,
        "refused": [[one.name, str(one.got), one.expected, one.hint] for one in made.refused],
    }
    with replace_directory(folder, marker=MARKER) as temporary:
        arrays = {"images": images} | ({} if labels is None else {"labels": labels})
        for name, array in arrays.items():
            save = partial(np.save, arr=np.ascontiguousarray(array), allow_pickle=False)
            write_atomic(temporary / f"{name}.npy", save)
        write_json(temporary / MARKER, described)


def _read(folder: Path, digest: str) -> Packed:
    described = json.loads((folder / MARKER).read_text("utf-8"))
    if (described["format"], described["key"]) != (FORMAT, digest):
        raise ValueError("another key than its name says")
    # Mapped so that a write stays in this process: PyTorch warns of arrays that refuse one.
    images: Pixels = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    found = fingerprint(images)
    if list(images.shape) != described["shape"] or found != described["fingerprint"]:
        raise ValueError("other pixels than were written")
    labels = None
    if described["labels"] is not None:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if hashlib.sha256(labels.tobytes()).hexdigest() != described["labels"]:
            raise ValueError("other labels than were written")
    names = described["class_names"]
    refused = tuple(
        DataError(name, got=got, expected=expected, hint=hint)
        for name, got, expected, hint in described["refused"]
    )
    content = Content(images, labels, None if names is None else tuple(names))
    return Packed(content, refused, found)


def _say(line: str) -> None:
    print(f"treediffusion: {' '.join(line.split())}", file=sys.stderr)
