"""Dividing a set into training and test within each class, the same way for ever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def is_test_image(classes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """[n] bool: of each class the share with the smallest random keys."""
    # Raw bits, because NumPy promises these, and not what it draws from them, for all versions.
    keys = np.random.PCG64(seed).random_raw(len(classes))
    is_test = np.zeros(len(classes), bool)
    for one in np.unique(classes):
        rows = np.flatnonzero(classes == one)
        is_test[rows[np.argsort(keys[rows])[: round(len(rows) * share)]]] = True
    return is_test
