"""A CSV file that lists pictures: the column `file`, and if known `label` and `split`.

    file,label,split
    cats/1.jpg,cat,train
    2.png,dog,test

Files are looked for beside the list. Labels are words or numbers, each a class of its own; they are
in every row or in none, since a gap may as well be a mistake. Without a column `split` all pictures
are for training.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .content import Split
from .listing import Listing, file_entry, numbered

FILE, LABEL, SPLIT = "file", "label", "split"
SHOWN = 5


def list_manifest(path: Path, *, split: Split) -> Listing:
    """The pictures of one part of a list.

    Raises:
        DataError: unreadable, without the column `file`, with gaps, or without this part.
    """
    header, rows = _rows(path)
    if FILE not in header:
        raise DataError(
            str(path),
            got=f"the columns {', '.join(header) or '(none)'}",
            expected=f"a first line that names the columns {FILE}, {LABEL} and {SPLIT}",
            hint=f"{LABEL} and {SPLIT} may be missing",
        )
    _refuse_gaps(path, FILE, rows)
    parts = [row[SPLIT] for row in rows] if SPLIT in header else ["train"] * len(rows)
    for number, part in enumerate(parts):
        if part not in ("train", "test"):
            raise DataError(
                f"{path}, line {number + 2}", got=f"the split {part!r}", expected="train or test"
            )
    mine = [row for row, part in zip(rows, parts, strict=True) if part == split]
    if not mine:
        raise DataError(
            "split",
            got=f"{split!r} of {str(path)!r}, which has none",
            expected=f"rows with {split!r} in the column {SPLIT!r}",
        )
    entries = []
    for row in mine:
        entry = file_entry(path.parent / row[FILE])
        entries.append(entry._replace(place=row[FILE]))
    labels = [row[LABEL] for row in rows] if LABEL in header else []
    if not any(labels):
        return Listing(entries, None, None)
    _refuse_gaps(path, LABEL, rows)
    names = _in_order(labels)
    return Listing(entries, numbered([row[LABEL] for row in mine], names), tuple(names))


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns' names in lower case, and each row by them, spaces around values left out."""
    try:
        # A spreadsheet may begin its UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(
            str(path),
            got=f"a file that cannot be read ({fault})",
            expected="values separated by commas, in UTF-8",
        ) from fault
    header = [name.strip().lower() for name in lines[0]] if lines else []
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(header):
            raise DataError(
                f"{path}, line {number}",
                got=f"{len(line)} values",
                expected=f"{len(header)}, one for each of {', '.join(header)}",
                hint="put a value that holds a comma in double quotes",
            )
        rows.append(dict(zip(header, (value.strip() for value in line), strict=True)))
    return header, rows


def _refuse_gaps(path: Path, column: str, rows: Sequence[dict[str, str]]) -> None:
    gaps = [number for number, row in enumerate(rows, start=2) if not row[column]]
    if not gaps:
        return
    lines = ", ".join(map(str, gaps[:SHOWN]))
    more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
    raise DataError(
        f"{path}, column {column}",
        got=f"no value in line {lines}{more}",
        expected="a value in every line" + (", or in none" if column == LABEL else ""),
        hint="fill the gaps, or leave those lines out",
    )


def _in_order(labels: Sequence[str]) -> list[str]:
    """Class names sorted: as numbers where all are."""
    names = sorted(set(labels))
    if all(name.isascii() and name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return names
