"""The C library is told to keep freed memory, and another library is left alone."""

from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace

import pytest
from treediffusion.memory import (
    ALL,
    LARGEST_KEPT,
    MMAP_THRESHOLD,
    TRIM_THRESHOLD,
    keep_freed_memory,
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_library_takes_both_values() -> None:
    set_option = ctypes.CDLL(None).mallopt
    assert set_option(TRIM_THRESHOLD, ALL) == 1
    assert set_option(MMAP_THRESHOLD, LARGEST_KEPT) == 1


def test_both_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, int] = {}
    library = SimpleNamespace(mallopt=told.__setitem__)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert told == {MMAP_THRESHOLD: LARGEST_KEPT, TRIM_THRESHOLD: ALL}


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
