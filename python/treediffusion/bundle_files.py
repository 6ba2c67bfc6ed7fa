"""The files of a bundle, read as if an enemy had written them.

Text is JSON of bounded length, in which every key occurs once and every number is finite and fits a
word. `manifest.sha256` has the hash of the manifest, and the manifest those of the rest. Names lead
to files inside the folder, without `..`, and without links out of it. Nothing is executed, and
nothing is allocated that the size of a file has not been compared with before. What the JSON says
is not known here: see `bundle`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BundleFormatError, BundleIntegrityError

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
TEXT_LIMIT = 1 << 20
"""Bytes of a text file; manifests have some ten thousand."""
WORD = 1 << 63
# Lower and upper case may be one file, and other characters mean something to some system.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,7}")
COPY_AGAIN = "copy or export the bundle again"


def read_json(file: Path) -> Any:
    """The value of a JSON file.

    Raises:
        BundleFormatError: unreadable, longer than `TEXT_LIMIT`, no JSON, or JSON with two equal
            keys or a number that is not finite.
    """
    try:
        return json.loads(
            read_text(file),
            object_pairs_hook=_distinct,
            parse_float=_finite,
            parse_int=_word,
            parse_constant=_finite,
        )
    except BundleFormatError:
        raise
    except (ValueError, RecursionError) as fault:
        raise BundleFormatError(
            str(file), got=f"unreadable text ({fault})", expected="JSON", hint=COPY_AGAIN
        ) from fault


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        BundleFormatError: unreadable, no UTF-8, or longer than `TEXT_LIMIT`.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(TEXT_LIMIT + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as fault:
        raise BundleFormatError(
            str(file), got=f"unreadable text ({fault})", expected="text", hint=COPY_AGAIN
        ) from fault
    if len(content) > TEXT_LIMIT:
        raise BundleFormatError(
            str(file), got=f"more than {TEXT_LIMIT} bytes", expected="a text of at most so many"
        )
    return text


def seal_of(manifest: bytes) -> str:
    """The content of `manifest.sha256`; `sha256sum --check` reads it, too."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"


def check_seal(folder: Path) -> None:
    """The manifest is the one that was written.

    Raises:
        BundleFormatError: it has no seal.
        BundleIntegrityError: it has another manifest's.
    """
    file = folder / SEAL
    if not file.is_file():
        raise BundleFormatError(
            str(folder), got=f"no {SEAL}", expected="one", hint="copy the whole folder again"
        )
    seal, found = read_text(file), seal_of(read_text(folder / MANIFEST).encode())
    if seal != found:
        raise _not_the_one(folder / MANIFEST, f"sha256 {found[:64]}", f"{seal[:64]!r}")


def check_files(folder: Path, files: object, *, verify: bool) -> None:
    """Every listed file is inside the bundle and is the one that was written.

    Args:
        folder: the bundle's.
        files: of the manifest: by name, each file's sha256 and size.
        verify: compare hashes; without it, only presence and size.

    Raises:
        BundleFormatError: no such list, a name that leads out, or a file that is missing.
        BundleIntegrityError: a file is another one.
    """
    if not isinstance(files, dict) or not files:
        raise BundleFormatError(
            str(folder / MANIFEST),
            got="no list of files" if files is None else f"files {type(files).__name__}",
            expected="files: each one's sha256 and size",
        )
    if len({name.lower() for name in files}) < len(files):
        raise BundleFormatError(
            f"{MANIFEST}: files", got="names that differ in case alone", expected="distinct names"
        )
    for name, facts in files.items():
        file = inside(folder, name)
        if not isinstance(facts, dict) or {"sha256", "size"} - set(facts):
            raise BundleFormatError(
                f"{MANIFEST}: files: {name}",
                got=repr(facts)[:200],
                expected="its sha256 and size",
            )
        try:
            _check_file(file, facts, verify=verify)
        except OSError as fault:
            got = str(fault)
            raise BundleFormatError(str(file), got=got, expected="a readable file") from fault


def inside(folder: Path, name: object) -> Path:
    """The file of a name in the manifest, which may not lead out of the bundle.

    Raises:
        BundleFormatError: it does, or is no plain relative name.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise BundleFormatError(
            f"{MANIFEST}: files",
            got=repr(name)[:200],
            expected="a relative name inside the bundle, of letters, digits and _ . - /",
        )
    file = folder.joinpath(*name.split("/"))
    try:
        leads_out = not file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as fault:  # a link to itself
        raise BundleFormatError(str(file), got=str(fault), expected="a file") from fault
    if leads_out:
        raise BundleFormatError(str(file), got="a link out of the bundle", expected="a file in it")
    return file


def _check_file(file: Path, facts: Mapping[str, Any], *, verify: bool) -> None:
    if not file.is_file():
        raise BundleFormatError(
            str(file), got="no such file", expected="the file of the manifest",
            hint="copy the whole folder again",
        )  # fmt: skip
    size = file.stat().st_size
    if size != facts["size"]:
        raise _not_the_one(file, f"{size} bytes", f"{facts['size']!r:.40} bytes")
    if not verify:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != facts["sha256"]:
        raise _not_the_one(file, f"sha256 {found}", f"sha256 {facts['sha256']!r:.80}")


def _not_the_one(file: Path, got: str, expected: str) -> BundleIntegrityError:
    return BundleIntegrityError(str(file), got=got, expected=expected, hint=COPY_AGAIN)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number that is not finite: {text[:40]}")
    return number


def _word(text: str) -> int:
    number = int(text) if len(text) < 21 else WORD
    if not -WORD <= number < WORD:
        raise ValueError(f"a number of more than 64 bits: {text[:40]}")
    return number
