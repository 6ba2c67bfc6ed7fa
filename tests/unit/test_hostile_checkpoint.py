"""Checkpoints made to do harm: each is refused by a typed error before anything large exists."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from treediffusion.errors import CheckpointError
from treediffusion.train.checkpoint import KEY, load, save

SEED = 20_261_120
SMALL = 4 << 20
STATE = {"epoch": 3, "topology": ["r", "r0", "r1"], "best": None, "name": "ö"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.safetensors"
    save(file, {"w": torch.randn(8, 4), "b": torch.zeros(4), "n": torch.tensor(7)}, STATE)
    return file


def test_any_changed_byte_is_refused(path: Path) -> None:
    """Of the header and of the weights: every place, and every bit of some."""
    whole, draw = path.read_bytes(), random.Random(SEED)
    for place in range(len(whole)):
        for flip in {1 << draw.randrange(8), draw.randrange(1, 256)}:
            bad = bytearray(whole)
            bad[place] ^= flip
            path.write_bytes(bad)
            with pytest.raises(CheckpointError):
                load(path)
    path.write_bytes(whole)
    assert load(path)[1] == STATE


def test_any_mixture_of_bytes_is_refused(path: Path) -> None:
    """Pieces cut out, put in and exchanged."""
    whole, draw = path.read_bytes(), random.Random(SEED)
    for _ in range(500):
        bad = bytearray(whole)
        for _ in range(draw.choice((1, 2, 5))):
            start = draw.randrange(len(bad))
            end = min(len(bad), start + draw.randrange(40))
            piece = draw.choice((b"", draw.randbytes(7), bytes(bad[:9]), bytes(end - start)))
            bad[start:end] = piece
        if bad == whole:
            continue
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load(path)


def test_files_of_before_hashes_are_read(path: Path) -> None:
    header = {KEY: json.dumps({"format": 1, "state": {"epoch": 1}})}
    path.write_bytes(safetensors.torch.save({"x": torch.arange(5)}, header))
    tensors, state = load(path)
    assert torch.equal(tensors["x"], torch.arange(5))
    assert state == {"epoch": 1}


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


META = {"__metadata__": {KEY: json.dumps({"format": 1, "state": {}})}}
HARMFUL = {
    "10^12 elements": raw(META | {"x": tensor([10**12], 4 * 10**12)}),
    "10^12 elements of 4 bytes": raw(META | {"x": tensor([10**12], 4)}, bytes(4)),
    "nothing of 10^18 columns": raw(META | {"x": tensor([0, 10**18, 10**18], 0)}),
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a header of -1 bytes": b"\xff" * 8 + b"{}",
    "negative places": raw(META | {"x": {**tensor([1], 4), "data_offsets": [-4, 0]}}, bytes(4)),
    "a negative size": raw(META | {"x": tensor([-1], 4)}, bytes(4)),
    "overlapping": raw(META | {"x": tensor([1], 4), "y": tensor([1], 4)}, bytes(4)),
    "another type": raw(META | {"x": tensor([1], 4, "OBJECT")}, bytes(4)),
    "endless nesting": raw({"__metadata__": {KEY: "[" * 100_000}}),
    "no number": raw({"__metadata__": {KEY: '{"format": NaN, "state": {}}'}}),
    "no word": raw({"__metadata__": {KEY: '{"format": 1e999, "state": {}}'}}),
    "half a character": raw(b'{"__metadata__": {"treediffusion": "\\ud800"}}'),
    "unknown keys": raw({"__metadata__": {KEY: '{"format": 1, "sha257": "", "state": {}}'}}),
    "another's hash": raw({"__metadata__": {KEY: '{"format": 1, "sha256": 7, "state": {}}'}}),
    "a pickle": b"\x80\x04cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.",
    "zip, as torch.save": b"PK\3\4" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_harmful_files_are_refused_before_anything_large_exists(harm: str, path: Path) -> None:
    path.write_bytes(HARMFUL[harm])
    tracemalloc.start()
    before = resident()
    try:
        with pytest.raises(CheckpointError) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.hint
    assert peak < SMALL
    assert resident() - before < 16 * SMALL


def resident() -> int:
    """Bytes of memory that the process has; what libraries allocate is seen nowhere else."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
