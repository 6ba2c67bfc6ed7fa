"""Turns a folder of small data packs into .npz files that `--data` reads; a tool for developers.

    python bench/packs.py NAME PACKS_FOLDER OUT.npz

NAME is one of cifar10, cifar100, celeba, cub64, omniglot5 and newsgroups20. OUT.npz holds
`train_images`, `test_images`, labels of both and `class_names`, uncompressed. A strip pack is an
.npz whose `data` are pictures in JPEG or WebP end to end, each with many images of size `hw` below
one another; `offsets` says where each begins. What is not as published:

cifar10       train pixels are JPEG (40 dB), test pixels exact but for 25 images
cifar100      JPEG (36 dB); labels are the 20 coarse classes
celeba        the first 10,000 pictures at half size, all of the official train part: 9,000 train
              and 1,000 test; no labels
cub64         whole pictures squeezed to 64x64; labels are the 200 species
omniglot5     scaled from 105x105 by a browser, crisper than Pillow would; split by seed 0
newsgroups20  raw texts put together again from two copies
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from treediffusion.data.content import Content
from treediffusion.data.omniglot import SEED, omniglot5
from treediffusion.data.text import read_newsgroups
from treediffusion.files import write_atomic

CELEBA_TRAIN = 9000
CELEBA_BOX = (7.5, 20.0, 81.5, 94.0)  # half of the usual 148x148 pixels at left 15, top 40
CELEBA_SIDE = 64
WHITE = 255

Array = NDArray[Any]


class Pack(NamedTuple):
    """How to read a pack, and what must come out.

    Attributes:
        read: from the folder of all packs to the train and the test part.
        counts: images in train and in test.
        classes: number of classes, 0 without labels.
        per_class: fewest and most images of a class in train, then in test.
    """

    read: Callable[[Path], tuple[Content, Content]]
    counts: tuple[int, int]
    classes: int
    per_class: tuple[tuple[int, int], tuple[int, int]]


def main(arguments: Sequence[str]) -> int:
    """Writes one file and says what is in it."""
    parser = argparse.ArgumentParser(description="Turns a data pack into an .npz file.")
    parser.add_argument("name", choices=PACKS)
    parser.add_argument("packs", type=Path, help="folder that holds the packs")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    given = parser.parse_args(arguments)
    pack = PACKS[given.name]
    parts = pack.read(given.packs)
    wrong = faults(parts, pack)
    if wrong:
        print(f"{given.name} is not as described: {'; '.join(wrong)}", file=sys.stderr)
        return 1
    arrays = to_arrays(*parts)
    write_atomic(given.out, lambda file: np.savez(file, allow_pickle=False, **arrays))
    for name, array in arrays.items():
        print(f"{name:13} {array.dtype} {list(array.shape)}")
    return 0


def strips(file: Path) -> tuple[NDArray[np.uint8], dict[str, Array]]:
    """[n, H, W, 3] uint8, the images of a strip pack, and its other arrays."""
    with np.load(file, allow_pickle=False) as pack:
        arrays = {key: pack[key] for key in pack.files}
    data, offsets = arrays.pop("data"), arrays.pop("offsets")
    height, width = (int(side) for side in arrays.pop("hw"))
    images = []
    for start, stop in pairwise(offsets.tolist()):
        with Image.open(io.BytesIO(data[start:stop].tobytes())) as strip:
            images.append(np.asarray(strip.convert("RGB")).reshape(-1, height, width, 3))
    return np.concatenate(images), arrays


def faults(parts: tuple[Content, Content], pack: Pack) -> list[str]:
    """What differs from the description of a pack; empty if nothing does."""
    wrong = []
    for split, part, count, per_class in zip(
        ("train", "test"), parts, pack.counts, pack.per_class, strict=True
    ):
        if len(part.images) != count:
            wrong.append(f"{len(part.images)} {split} images, not {count}")
        low, high = part.images.min(), part.images.max()
        white = WHITE if part.images.dtype == np.uint8 else 1.0
        # No text need be a single term, so the largest value of vectors may stay below 1.
        if low != 0 or not white * 0.9 < high <= white:
            wrong.append(f"{split} values from {low} to {high}")
        sizes = [] if part.labels is None else np.bincount(part.labels).tolist()
        if len(sizes) != pack.classes:
            wrong.append(f"{len(sizes)} {split} classes, not {pack.classes}")
        elif sizes and (min(sizes), max(sizes)) != per_class:
            wrong.append(f"{split} classes of {min(sizes)} to {max(sizes)} images")
    return wrong


def to_arrays(train: Content, test: Content) -> dict[str, Array]:
    """The arrays of the .npz file, by name; vectors as [n, D]."""
    arrays: dict[str, Array] = {}
    for split, part in (("train", train), ("test", test)):
        vectors = part.images.shape[2:] == (1, 1)
        arrays[f"{split}_images"] = part.images[:, :, 0, 0] if vectors else part.images
        if part.labels is not None:
            arrays[f"{split}_labels"] = part.labels
    if train.class_names is not None:
        arrays["class_names"] = np.array(train.class_names)
    return arrays


def _labelled_strips(file: Path, labels: str, names: str) -> Content:
    images, arrays = strips(file)
    class_names = tuple(str(name) for name in arrays[names])
    return Content(images.transpose(0, 3, 1, 2), arrays[labels].astype(np.int64), class_names)


def _strip_pack(
    folder: str, labels: str = "labels", names: str = "class_names"
) -> Callable[[Path], tuple[Content, Content]]:
    def read(packs: Path) -> tuple[Content, Content]:
        train, test = (
            _labelled_strips(packs / folder / f"{split}.npz", labels, names)
            for split in ("train", "test")
        )
        return train, test

    return read


def _celeba(packs: Path) -> tuple[Content, Content]:
    """Faces cut to the square that is 148 pixels wide at full size, at 64x64."""
    side = (CELEBA_SIDE, CELEBA_SIDE)
    images = np.stack(
        [
            np.asarray(Image.fromarray(face).resize(side, Image.Resampling.BILINEAR, CELEBA_BOX))
            for face in strips(packs / "celeba-10k" / "celeba-10k.npz")[0]
        ]
    ).transpose(0, 3, 1, 2)
    train, test = images[:CELEBA_TRAIN], images[CELEBA_TRAIN:]
    return Content(train, None, None), Content(test, None, None)


def _omniglot5(packs: Path) -> tuple[Content, Content]:
    """The pack has ink 255 on 0, the protocol black ink on white."""
    with np.load(packs / "omniglot28" / "omniglot28.npz", allow_pickle=False) as pack:
        alphabets = pack["alphabet_names"][pack["alphabet"]]
        return omniglot5(WHITE - pack["gray"], alphabets, pack["character"], SEED)


def _newsgroups20(packs: Path) -> tuple[Content, Content]:
    archive = packs / "20newsgroups" / "20news-bydate.tar.xz"
    return read_newsgroups(archive, split="train"), read_newsgroups(archive, split="test")


PACKS = {
    "cifar10": Pack(_strip_pack("cifar10-jpeg"), (50000, 10000), 10, ((5000, 5000), (1000, 1000))),
    "cifar100": Pack(
        _strip_pack("cifar100-jpeg", "coarse_labels", "coarse_names"),
        (50000, 10000),
        20,
        ((2500, 2500), (500, 500)),
    ),
    "celeba": Pack(_celeba, (CELEBA_TRAIN, 1000), 0, ((0, 0), (0, 0))),
    "cub64": Pack(_strip_pack("cub64"), (5994, 5794), 200, ((29, 30), (11, 30))),
    "omniglot5": Pack(_omniglot5, (3328, 832), 5, ((416, 736), (104, 184))),
    "newsgroups20": Pack(_newsgroups20, (11314, 7532), 20, ((377, 600), (251, 399))),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
