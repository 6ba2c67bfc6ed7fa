"""The data sets that are known by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..optional import require
from .birds import CUBICC
from .celeba import CELEBA
from .cifar import CIFAR_10, CIFAR_100, CIFAR_100_FINE
from .content import Content, Split
from .idx_sets import DIGITS as DIGIT_NAMES
from .idx_sets import FASHION_MNIST, MNIST
from .omniglot import OMNIGLOT, OMNIGLOT_5
from .recipe import ELSEWHERE, Recipe
from .text import NEWSGROUPS_20


def _read_digits(place: Path, split: Split) -> Content:
    """Bundled with scikit-learn, in 17 greys; there is one part, which serves as both."""
    digits = require("sklearn.datasets", extra="train").load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Content(pixels[:, np.newaxis], digits.target.astype(np.int64), DIGIT_NAMES)


DIGITS = Recipe(
    name="digits",
    title="small handwritten digits, bundled with scikit-learn; test images are the training's",
    page="https://archive.ics.uci.edu/dataset/80",
    citation="Alpaydin, Kaynak: Optical recognition of handwritten digits, 1998",
    terms="CC BY 4.0",
    channels=1,
    size=8,
    counts=(1797, 1797),
    class_names=DIGIT_NAMES,
    locate=lambda _: ELSEWHERE,
    fetch=lambda _: None,
    read=_read_digits,
    by_hand="scikit-learn",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        DIGITS,
        MNIST,
        FASHION_MNIST,
        CIFAR_10,
        CIFAR_100,
        CIFAR_100_FINE,
        CELEBA,
        CUBICC,
        OMNIGLOT,
        OMNIGLOT_5,
        NEWSGROUPS_20,
    )
}
