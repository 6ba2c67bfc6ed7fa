"""CIFAR-10 and CIFAR-100, in their authors' binary form.

A record is its labels (one byte, or the coarse and the fine one) and 3,072 bytes of pixels, red,
green, blue, each row by row. torchvision downloads the other form, which is pickled: loading it
runs whatever it says, so it is never read here. Same images, same order.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .class_names import CIFAR10, CIFAR100, CIFAR100_COARSE
from .content import Content, Split
from .recipe import Recipe, download

SIDE, CHANNELS = 32, 3
HOME = "https://www.cs.toronto.edu/~kriz/"
TERMS = "none stated; the authors ask to be cited"
CITATION = "Krizhevsky: Learning multiple layers of features from tiny images, 2009"


class Layout(NamedTuple):
    """The files of one of the sets.

    Attributes:
        archive: as its authors publish it.
        folder: what is in it.
        files: of the training and of the test part.
        label_bytes: of a record.
    """

    archive: str
    folder: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    label_bytes: int


TEN = Layout(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    (tuple(f"data_batch_{k}.bin" for k in range(1, 6)), ("test_batch.bin",)),
    1,
)
HUNDRED = Layout("cifar-100-binary.tar.gz", "cifar-100-binary", (("train.bin",), ("test.bin",)), 2)
MD5 = {
    TEN.archive: "c32a1d4ab5d03f1284b67883e8d87530",
    HUNDRED.archive: "03b5dce01913d631647c71ecec9e9cb8",
}


def _locate(root: Path, layout: Layout) -> Path | None:
    if (root / layout.archive).is_file():
        return root / layout.archive
    places = (root / layout.folder, root)
    files = [*layout.files[0], *layout.files[1]]
    # In the root itself only whole: `train.bin` may be anything.
    return next((at for at in places if all((at / file).is_file() for file in files)), None)


def _fetch(root: Path, layout: Layout) -> None:
    download(HOME + layout.archive, root, MD5[layout.archive])


def _read(place: Path, split: Split, layout: Layout, label: int, names: tuple[str, ...]) -> Content:
    content = b"".join(_files(place, layout, layout.files[split == "test"]))
    width = layout.label_bytes + CHANNELS * SIDE * SIDE
    if len(content) % width:
        raise DataError(
            str(place),
            got=f"{len(content)} bytes in the {split} part",
            expected=f"a multiple of {width}",
            hint="the originals are cut; get them again",
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, width)
    images = records[:, layout.label_bytes :].reshape(-1, CHANNELS, SIDE, SIDE)
    labels = records[:, label].astype(np.int64)
    if labels.max(initial=0) >= len(names):
        raise DataError(
            str(place), got=f"the label {labels.max()}", expected=f"at most {len(names) - 1}"
        )
    return Content(images, labels, names)


def _files(place: Path, layout: Layout, names: tuple[str, ...]) -> list[bytes]:
    """The files by name, out of the archive where that is what there is."""
    try:
        if place.is_dir():
            return [(place / name).read_bytes() for name in names]
        with tarfile.open(place, "r:gz") as archive:
            streams = [archive.extractfile(f"{layout.folder}/{name}") for name in names]
            return [stream.read() for stream in streams if stream is not None]
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as fault:
        raise DataError(
            str(place),
            got=f"originals that cannot be read ({fault})",
            expected=f"{layout.archive}, whole, or what is in it",
            hint="get it again",
        ) from fault


def _by_hand(layout: Layout) -> str:
    return (
        f"{HOME}{layout.archive} in FOLDER, packed or unpacked "
        "(the pickled form, which torchvision downloads, is not read)"
    )


CIFAR_10 = Recipe(
    name="cifar10",
    title="small photographs of ten kinds of things and animals",
    page=f"{HOME}cifar.html",
    citation=CITATION,
    terms=TERMS,
    channels=CHANNELS,
    size=SIDE,
    counts=(50_000, 10_000),
    class_names=CIFAR10,
    locate=partial(_locate, layout=TEN),
    fetch=partial(_fetch, layout=TEN),
    read=partial(_read, layout=TEN, label=0, names=CIFAR10),
    by_hand=_by_hand(TEN),
    files={TEN.archive: MD5[TEN.archive]},
)

CIFAR_100 = Recipe(
    name="cifar100",
    title="small photographs in 20 superclasses",
    page=f"{HOME}cifar.html",
    citation=CITATION,
    terms=TERMS,
    channels=CHANNELS,
    size=SIDE,
    counts=(50_000, 10_000),
    class_names=CIFAR100_COARSE,
    locate=partial(_locate, layout=HUNDRED),
    fetch=partial(_fetch, layout=HUNDRED),
    read=partial(_read, layout=HUNDRED, label=0, names=CIFAR100_COARSE),
    by_hand=_by_hand(HUNDRED),
    files={HUNDRED.archive: MD5[HUNDRED.archive]},
)

CIFAR_100_FINE = replace(
    CIFAR_100,
    name="cifar100_fine",
    title="small photographs in 100 classes",
    class_names=CIFAR100,
    read=partial(_read, layout=HUNDRED, label=1, names=CIFAR100),
)
