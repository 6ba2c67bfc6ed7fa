"""Results worth keeping, in files that know what they are results of.

    file = checkpoint {tensors; kind, key, facts, sum}

The key is a content hash of everything the result depends on; a file under another key is an error
and stays as it is, never silently used and never silently replaced. The sum is one of the result
itself, because the format has no checksum. Not here: what goes into a key, and folders of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError
from ..train.checkpoint import load, save


def content_key(*parts: NDArray[Any] | Mapping[str, Any] | str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of arrays, with type and shape, and of JSON."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape};".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode() + b";")
    return digest.hexdigest()[:16]


def save_keyed(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, kind: str, key: str
) -> None:
    """Write results with the key of what they are of, and a sum of their own.

    Raises:
        CheckpointError: the file cannot be written.
    """
    total = _sum(tensors, facts)
    save(path, tensors, {"kind": kind, "key": key, "facts": dict(facts), "sum": total})


def load_keyed(
    path: Path, *, kind: str, key: str, facts: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file, if they are whole and of this key.

    Args:
        path: the file.
        kind: of results.
        key: of what they are wanted of.
        facts: those of results that are; what differs from them is named beside another key.

    Raises:
        CheckpointError: something else, of something else, or damaged.
    """
    tensors, state = load(path)
    held = state.get("facts")
    held = held if isinstance(held, dict) else {}
    if (state.get("kind"), state.get("key")) != (kind, key):
        other = f"{state.get('kind', 'something else')} with the key {state.get('key', 'none')}"
        raise CheckpointError(
            str(path),
            got=other + _told(held, facts),
            expected=f"{kind} with the key {key}{_told(facts, held)}, "
            "which is of these images and settings",
            hint="name another path, or remove the file to have it made again",
        )
    # The format has no checksum: a flipped bit would be a slightly different judge.
    if state.get("sum") != _sum(tensors, held):
        raise CheckpointError(
            str(path),
            got="numbers that are not those that were written",
            expected=f"{kind} as it was written",
            hint="the file is damaged; remove it to have it made again",
        )
    return tensors, held


def _told(facts: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Of facts that both have, those in which they differ."""
    apart = (name for name in facts if name in others and facts[name] != others[name])
    return "".join(f", {name.replace('_', ' ')} {facts[name]}" for name in apart)


def _sum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """One hash of all numbers, with their names."""
    names = sorted(tensors)
    arrays = (tensors[name].cpu().numpy() for name in names)
    return content_key({"names": names, "facts": dict(facts)}, *arrays)
