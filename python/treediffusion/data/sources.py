"""What a word on the command line means: a recipe, or files of the user's own.

A recipe's name comes first; a folder of that name is reached as `./digits`. `NAME:FOLDER` is a
recipe with its originals in that folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .arrays import read_array_file
from .content import Content, Split
from .folders import originals_folder
from .idx import is_idx_file, is_idx_folder, read_idx_file, read_idx_folder
from .listing import Listing, list_folder, list_zip
from .manifest import list_manifest
from .recipe import ELSEWHERE, Recipe
from .recipes import RECIPES
from .text import ARCHIVES, is_newsgroups, read_newsgroups, terms

OWN = (
    "a folder of images or of idx files, a .zip of images, a .csv that lists images, "
    "an .npy or .npz file, an idx file, or 20 Newsgroups as a folder or archive"
)


class Source(NamedTuple):
    """Where images come from.

    Attributes:
        name: what the set is called.
        given: what it was asked for as.
        read: its pictures, or its images where no picture has to be decoded.
        place: the originals, where reading them costs more than reading a packed copy; else None.
        recipe: the recipe, if it is one.
        check: compares originals with their published sums.
    """

    name: str
    given: str
    read: Callable[[], Content | Listing]
    place: Path | None = None
    recipe: Recipe | None = None
    check: Callable[[], None] = lambda: None


def find_source(given: str, *, split: Split) -> Source:
    """The source that a name or path means; what is in it, the source's `read` finds out.

    Raises:
        DataError: no such name or path, no originals, or a file of no known kind.
    """
    name, _, folder = given.partition(":")
    if name in RECIPES:
        return _recipe_source(RECIPES[name], given, Path(folder) if folder else None, split)
    path = Path(given)
    if not path.exists():
        close = difflib.get_close_matches(given.replace("-", "_").lower(), RECIPES, n=1)
        raise DataError(
            "data",
            got=f"{given!r}, which does not exist",
            expected=f"one of {', '.join(RECIPES)}; or {OWN}",
            hint=f"did you mean {close[0]!r}?" if close else "check the path, or try 'digits'",
        )
    return _folder_source(path, given, split) if path.is_dir() else _file_source(path, given, split)


def find_terms(given: str) -> tuple[str, ...]:
    """The words whose weights the vectors of a source are; none of a source that is no texts.

    Raises:
        DataError: no such source, or texts that cannot be read.
    """
    source = find_source(given, split="train")
    # Of the user's own files texts alone have a place: all others are read as they are.
    texts = source.recipe is None or source.recipe.kind == "texts"
    return terms(source.place) if source.place is not None and texts else ()


def stamps(place: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files at a place; equal for equal content, in practice."""
    if place == ELSEWHERE:
        return []
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
    found = [(file.relative_to(place.parent).as_posix(), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _recipe_source(recipe: Recipe, given: str, folder: Path | None, split: Split) -> Source:
    if folder is not None and not folder.is_dir():
        raise DataError(
            "data",
            got=f"{str(folder)!r}, which is no folder",
            expected=f"{recipe.name}:FOLDER",
        )
    place = recipe.originals(folder or originals_folder())
    read = partial(recipe.read, place, split)
    check = partial(recipe.check_files, place)
    return Source(recipe.name, given, read, None if recipe.lists else place, recipe, check)


def _folder_source(path: Path, given: str, split: Split) -> Source:
    name = path.resolve().name
    if is_idx_folder(path):
        return Source(name, given, partial(read_idx_folder, path, split=split))
    if is_newsgroups(path):
        return Source(name, given, partial(read_newsgroups, path, split=split), path)
    return Source(name, given, partial(list_folder, path, split=split))


def _file_source(path: Path, given: str, split: Split) -> Source:
    archive = next((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), None)
    if archive:
        name = path.name[: -len(archive)]
        return Source(name, given, partial(read_newsgroups, path, split=split), path)
    if is_idx_file(path):
        return Source(path.name, given, partial(read_idx_file, path, split=split))
    readers: dict[str, Callable[..., Content | Listing]] = {
        ".npy": read_array_file,
        ".npz": read_array_file,
        ".zip": list_zip,
        ".csv": list_manifest,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            "data",
            got=f"the file {given!r}",
            expected=OWN,
            hint="for images, name the folder they are in",
        )
    return Source(path.stem, given, partial(reader, path, split=split))
