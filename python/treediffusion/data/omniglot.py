"""Omniglot: handwritten characters at 28x28, ink 0 on white 1; labels are the alphabets.

Each character has 20 drawers, and every fifth of its drawings is a test image, chosen by a seed:

    omniglot    50 alphabets, 1,623 characters: 25,968 and 6,492 images
    omniglot5    5 alphabets,   208 characters:  3,328 and   832

The authors' division keeps whole alphabets for testing, which no clustering of alphabets can use.
Not here: inverted ink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require
from .class_names import words
from .content import Content, Split
from .division import is_test_image
from .listing import Listing, file_entry, numbered
from .recipe import Recipe

CHARACTERS = {
    "Braille": 26,
    "Glagolitic": 45,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Bengali": 46,
}
ALL_CHARACTERS = {
    name: int(count)
    for name, _, count in (
        word.partition(":")
        for word in words(
            """
            Alphabet_of_the_Magi:20 Angelic:20 Anglo-Saxon_Futhorc:29 Arcadian:26 Armenian:41
            Asomtavruli_(Georgian):40 Atemayar_Qelisayer:26 Atlantean:26 Aurek-Besh:26 Avesta:26
            Balinese:24 Bengali:46 Blackfoot_(Canadian_Aboriginal_Syllabics):14 Braille:26
            Burmese_(Myanmar):34 Cyrillic:33 Early_Aramaic:22 Futurama:26 Ge_ez:26 Glagolitic:45
            Grantha:43 Greek:24 Gujarati:48 Gurmukhi:45 Hebrew:22
            Inuktitut_(Canadian_Aboriginal_Syllabics):16 Japanese_(hiragana):52
            Japanese_(katakana):47 Kannada:41 Keble:26 Korean:40 Latin:26 Malay_(Jawi_-_Arabic):40
            Malayalam:47 Manipuri:40 Mkhedruli_(Georgian):41 Mongolian:30 N_Ko:33
            Ojibwe_(Canadian_Aboriginal_Syllabics):14
            Old_Church_Slavonic_(Cyrillic):45 Oriya:46 Sanskrit:42 Sylheti:28 Syriac_(Estrangelo):23
            Syriac_(Serto):23 Tagalog:17 Tengwar:25 Tibetan:42 Tifinagh:55 ULOG:26
            """
        )
    )
}
DRAWERS = 20
SIDE = 28
TEST_SHARE = 0.2
SEED = 0
PARTS = ("images_background", "images_evaluation")
TORCHVISION_FOLDER = "omniglot-py"


def omniglot5(
    images: NDArray[np.uint8], alphabet_names: Sequence[str], characters: Sequence[int], seed: int
) -> tuple[Content, Content]:
    """The five alphabets, divided into train and test within each character.

    Which drawings are test images depends on the seed and on the order of the images alone.

    Args:
        images: [n, 28, 28] uint8, drawings of any alphabets, white background.
        alphabet_names: [n] alphabet of each, spelt as in Omniglot.
        characters: [n] a number for each, the same for drawings of the same character.
        seed: seed of the division.

    Returns:
        train, test: images [m, 1, 28, 28] in the order given, labels by alphabet.

    Raises:
        DataError: another shape or type, or an alphabet is missing.
    """
    alphabet, character = np.asarray(alphabet_names), np.asarray(characters)
    same = len(images) == len(alphabet) == len(character)
    if not same or images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            "images",
            got=f"{images.dtype} {images.shape}, {len(alphabet)} alphabets, "
            f"{len(character)} characters",
            expected=f"uint8 [n, {SIDE}, {SIDE}], n alphabets, n characters",
        )
    missing = sorted(set(CHARACTERS) - set(alphabet.tolist()))
    if missing:
        raise DataError("alphabets", got=f"no {missing[0]}", expected=", ".join(CHARACTERS))
    kept = np.isin(alphabet, list(CHARACTERS))
    is_test = is_test_image(character[kept], TEST_SHARE, seed)
    number = {name: k for k, name in enumerate(CHARACTERS)}
    labels = np.array([number[name] for name in alphabet[kept]], np.int64)
    pixels = images[kept][:, np.newaxis]
    train, test = (
        Content(pixels[mask], labels[mask], tuple(CHARACTERS)) for mask in (~is_test, is_test)
    )
    return train, test


def _locate(root: Path) -> Path | None:
    places = (root / TORCHVISION_FOLDER, root)
    return next((at for at in places if all((at / part).is_dir() for part in PARTS)), None)


def _fetch(root: Path) -> None:
    datasets = require("torchvision.datasets", extra="train")
    for background in (True, False):
        datasets.Omniglot(root, background=background, download=True)


def _read(base: Path, split: Split, expected: Mapping[str, int]) -> Listing:
    files, alphabets, characters = _drawings(base, expected)
    is_test = is_test_image(np.array(characters), TEST_SHARE, SEED)
    rows = np.flatnonzero(is_test if split == "test" else ~is_test)
    labels = numbered([alphabets[row] for row in rows], list(expected))
    return Listing([file_entry(files[row], base) for row in rows], labels, tuple(expected))


def _drawings(base: Path, expected: Mapping[str, int]) -> tuple[list[Path], list[str], list[int]]:
    """Files, alphabets and characters, in the order of names; all there, or an error."""
    files: list[Path] = []
    alphabets: list[str] = []
    characters: list[int] = []
    number = 0
    for alphabet, count in expected.items():
        part = next((part for part in PARTS if (base / part / alphabet).is_dir()), PARTS[0])
        found = sorted((base / part / alphabet).glob("character*"))
        drawings = [sorted(folder.glob("*.png")) for folder in found]
        if [len(row) for row in drawings] != [DRAWERS] * count:
            raise DataError(
                str(base / part / alphabet),
                got=f"{len(found)} characters with {sum(map(len, drawings))} drawings",
                expected=f"{count} with {DRAWERS} each",
                hint="unpack the archive again",
            )
        for row in drawings:
            files += row
            alphabets += [alphabet] * len(row)
            characters += [number] * len(row)
            number += 1
    return files, alphabets, characters


OMNIGLOT_5 = Recipe(
    name="omniglot5",
    title="handwritten characters of five alphabets",
    page="https://github.com/brendenlake/omniglot",
    citation="Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic "
    "program induction, 2015",
    terms="MIT",
    channels=1,
    size=SIDE,
    counts=(3328, 832),
    class_names=tuple(CHARACTERS),
    locate=_locate,
    fetch=_fetch,
    read=partial(_read, expected=CHARACTERS),
    lists=True,
    by_hand=f"{' and '.join(PARTS)}, unpacked, in FOLDER/{TORCHVISION_FOLDER}",
    files={
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    },
)

OMNIGLOT = replace(
    OMNIGLOT_5,
    name="omniglot",
    title="handwritten characters of 50 alphabets",
    counts=(25_968, 6492),
    class_names=tuple(ALL_CHARACTERS),
    read=partial(_read, expected=ALL_CHARACTERS),
)
