"""Writes data sets in the layouts in which their authors, or torchvision, leave them."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


def idx_bytes(array: NDArray[Any]) -> bytes:
    axes = b"".join(axis.to_bytes(4, "big") for axis in array.shape)
    return bytes((0, 0, 8, array.ndim)) + axes + array.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, split: str, images: Bytes, labels: NDArray[Any], *, packed: bool = False
) -> None:
    """[n, H, W] as MNIST's files of one part."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "t10k" if split == "test" else "train"
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        name, content = f"{prefix}-{kind}-ubyte", idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def write_cifar(folder: Path, files: Sequence[str], images: Bytes, *labels: NDArray[Any]) -> None:
    """[n, 3, 32, 32] as records of labels and pixels, divided evenly among the files."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [label.astype(np.uint8)[:, np.newaxis] for label in labels]
    records = np.concatenate([*columns, images.reshape(len(images), -1)], axis=1)
    for name, part in zip(files, np.array_split(records, len(files)), strict=True):
        (folder / name).write_bytes(part.tobytes())


def write_celeba(folder: Path, images: Iterable[Bytes], parts: Sequence[int]) -> None:
    """[218, 178, 3] each, with 0, 1 or 2 for its part."""
    pictures = folder / "img_align_celeba"
    pictures.mkdir(parents=True)
    for number, image in enumerate(images, start=1):
        # Lossless, whatever the name says, and sooner written than a PNG.
        Image.fromarray(image).save(pictures / f"{number:06}.jpg", "BMP")
    lines = [f"{number:06}.jpg {part}" for number, part in enumerate(parts, start=1)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def write_birds(folder: Path, images: Bytes, species: Sequence[str], files: Sequence[str]) -> None:
    """[n, H, W, 3] as `images/009.Brewer_Blackbird/NAME.jpg`."""
    for image, kind, file in zip(images, species, files, strict=True):
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / kind / file, "PNG")


def write_omniglot(
    root: Path,
    images: Bytes,
    alphabets: Sequence[str],
    characters: Sequence[int],
    background: Sequence[bool],
) -> None:
    """[n, H, W], drawings of one character below one another, in torchvision's folders."""
    numbers: dict[str, dict[int, int]] = {}
    drawn: dict[int, int] = {}
    for image, alphabet, character, first in zip(
        images, alphabets, characters, background, strict=True
    ):
        known = numbers.setdefault(alphabet, {})
        number = known.setdefault(character, len(known) + 1)
        drawer = drawn[character] = drawn.get(character, 0) + 1
        part = "images_background" if first else "images_evaluation"
        folder = root / part / alphabet / f"character{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{character:04}_{drawer:02}.png")
