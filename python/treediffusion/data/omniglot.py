"""Omniglot-5: characters of five alphabets at 28x28, ink 0 on white 1; labels are the alphabets.

208 characters x 20 drawers = 4,160 images. Of each character every fifth drawing is a test image,
chosen by a seed: 3,328 and 832. The archive's folders are read as they are; torchvision serves only
to download them. Not here: the other 45 alphabets, and inverted ink.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import require
from .content import Content, Split
from .pictures import opened

CHARACTERS = {
    "Braille": 26,
    "Glagolitic": 45,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Bengali": 46,
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
    is_test = _test_mask(character[kept], seed)
    number = {name: k for k, name in enumerate(CHARACTERS)}
    labels = np.array([number[name] for name in alphabet[kept]], np.int64)
    pixels = images[kept][:, np.newaxis]
    train, test = (
        Content(pixels[mask], labels[mask], tuple(CHARACTERS)) for mask in (~is_test, is_test)
    )
    return train, test


def load_omniglot5(root: Path | None, *, split: Split) -> Content:
    """Omniglot-5 from the original drawings, which torchvision downloads where they are missing.

    Args:
        root: torchvision's root, or the folder with `images_background` and `images_evaluation`;
            None for `~/.cache/treediffusion`, which is made.
        split: which part; the division is that of seed 0.

    Raises:
        DataError: no such folder, no download, or an archive with other drawings.
    """
    if root is not None and not root.is_dir():
        raise DataError(
            "data", got=f"{str(root)!r}, which is no folder", expected="omniglot5:FOLDER"
        )
    root = root or Path.home() / ".cache" / "treediffusion"
    places = (root / TORCHVISION_FOLDER, root)
    base = next((place for place in places if _is_unpacked(place)), None) or _download(root)
    files, alphabets, characters = _drawings(base)
    images = np.stack([_decode(file) for file in files])
    train, test = omniglot5(images, alphabets, characters, SEED)
    return train if split == "train" else test


def _test_mask(characters: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """[n] bool: of each character the fifth with the smallest random keys."""
    # Raw bits, because NumPy promises these, and not what it draws from them, for all versions.
    keys = np.random.PCG64(seed).random_raw(len(characters))
    is_test = np.zeros(len(characters), bool)
    for character in np.unique(characters):
        rows = np.flatnonzero(characters == character)
        is_test[rows[np.argsort(keys[rows])[: round(len(rows) * TEST_SHARE)]]] = True
    return is_test


def _is_unpacked(base: Path) -> bool:
    return all((base / part).is_dir() for part in PARTS)


def _download(root: Path) -> Path:
    """The folder of both parts, below torchvision's root."""
    datasets = require("torchvision.datasets", extra="train")
    try:
        for background in (True, False):
            datasets.Omniglot(root, background=background, download=True)
    except (OSError, RuntimeError) as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise DataError(
            "omniglot5",
            got=f"no drawings in {str(root)!r} and no download ({reason})",
            expected="a network connection, the first time",
            hint=f"or unpack {' and '.join(PARTS)} into FOLDER and name omniglot5:FOLDER as data",
        ) from fault
    return root / TORCHVISION_FOLDER


def _drawings(base: Path) -> tuple[list[Path], list[str], list[int]]:
    """Files, alphabets and characters, in the order of names; all there, or an error."""
    files: list[Path] = []
    alphabets: list[str] = []
    characters: list[int] = []
    number = 0
    for alphabet, count in CHARACTERS.items():
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


def _decode(file: Path) -> NDArray[np.uint8]:
    """[28, 28] from 105x105, scaled as torchvision's Resize scales pictures."""
    bilinear = require("PIL.Image", extra="train").Resampling.BILINEAR
    with opened(file, expected="a drawing", hint="unpack the archive again") as picture:
        return np.asarray(picture.convert("L").resize((SIDE, SIDE), bilinear), np.uint8)
