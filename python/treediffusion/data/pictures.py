"""Picture files, opened by Pillow, with one error for all that can be wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..optional import require


@contextmanager
def opened(file: Path, *, expected: str, hint: str) -> Iterator[Any]:
    """The picture in a file, to be decoded inside the block.

    Raises:
        DataError: it cannot be opened or decoded; `expected` and `hint` say what should be there.
    """
    pillow = require("PIL.Image", extra="train")
    try:
        with pillow.open(file) as picture:
            yield picture
    # Pillow reports damage as whatever its decoder stumbled over, from OSError to struct.error.
    except Exception as fault:
        raise DataError(
            str(file),
            got=f"a file that cannot be decoded ({fault})",
            expected=expected,
            hint=hint,
        ) from fault
