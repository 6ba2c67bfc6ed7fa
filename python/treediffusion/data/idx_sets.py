"""MNIST and Fashion-MNIST: idx files, where torchvision leaves them, or all in one folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..optional import require
from .content import Content, Split
from .idx import is_idx_folder, read_idx_folder
from .recipe import Recipe

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip


def _locate(root: Path, name: str) -> Path | None:
    """Below torchvision's root, or the root itself where its user named it as the folder."""
    places = (root / name / "raw", root / name, root)
    return next((place for place in places if is_idx_folder(place)), None)


def _fetch(root: Path, name: str) -> None:
    getattr(require("torchvision.datasets", extra="train"), name)(root, download=True)


def _read(place: Path, split: Split, names: tuple[str, ...]) -> Content:
    return read_idx_folder(place, split=split)._replace(class_names=names)


def _by_hand(name: str) -> str:
    return f"{', '.join(FILES)} in FOLDER/{name}/raw"


MNIST = Recipe(
    name="mnist",
    title="handwritten digits",
    page="http://yann.lecun.com/exdb/mnist/",
    citation="LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document "
    "recognition, 1998",
    terms="none stated by its authors; usually passed on as CC BY-SA 3.0",
    channels=1,
    size=28,
    counts=(60_000, 10_000),
    class_names=DIGITS,
    locate=partial(_locate, name="MNIST"),
    fetch=partial(_fetch, name="MNIST"),
    read=partial(_read, names=DIGITS),
    by_hand=_by_hand("MNIST"),
    files=dict(
        zip(
            FILES,
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            strict=True,
        )
    ),
)  # fmt: skip

FASHION_MNIST = Recipe(
    name="fashion_mnist",
    title="articles of clothing",
    page="https://github.com/zalandoresearch/fashion-mnist",
    citation="Xiao, Rasul, Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine "
    "learning algorithms, 2017",
    terms="MIT",
    channels=1,
    size=28,
    counts=(60_000, 10_000),
    class_names=CLOTHES,
    locate=partial(_locate, name="FashionMNIST"),
    fetch=partial(_fetch, name="FashionMNIST"),
    read=partial(_read, names=CLOTHES),
    by_hand=_by_hand("FashionMNIST"),
    files=dict(
        zip(
            FILES,
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            strict=True,
        )
    ),
)  # fmt: skip
