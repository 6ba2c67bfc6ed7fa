"""What every run needs: interpreted kernels where no GPU is, and versions in the header."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata

import pytest

SHOWN = ("numpy", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt")


def _cuda_devices() -> int:
    """Ask the driver itself: importing torch for it would cost every run seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


HAS_CUDA = _cuda_devices() > 0

# Machines that run tests are shared, where two spinning threads can be slower than one, many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton reads this when a kernel is decorated, so it is set before any module with one is imported.
if not HAS_CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header() -> str:
    versions = [f"{name} {version}" for name in SHOWN if (version := _version(name))]
    kernels = "compiled" if HAS_CUDA else "interpreted (no CUDA device)"
    return f"{', '.join(versions)}; kernels {kernels}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_CUDA:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
