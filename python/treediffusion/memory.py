"""Memory that is given back is kept by the C library, for the next that asks."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the GNU C library's names, in malloc.h
LARGEST_KEPT = 32 << 20  # the most that all its versions allow
ALL = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets this process keep the memory of large arrays when they are freed.

    The GNU C library by itself maps a large array's memory anew each time, and the system fills it
    with zeros, page by page, as it is first written: some per cent of a training step on a CPU.
    The process stays as large as it was at its largest. Does nothing where another library serves.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, or function
        set_option = ctypes.CDLL(None).mallopt
        set_option(MMAP_THRESHOLD, LARGEST_KEPT)
        set_option(TRIM_THRESHOLD, ALL)
