"""Exported models that are kept between runs, because an export takes a minute.

A bundle is used again only if nothing it depends on has changed: the sources of the package and of
the cases, the versions of what writes it, and the settings.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import treediffusion
from treediffusion.diffusion.model import TreeDiffusion
from treediffusion.export import export_bundle

FOLDER = Path(__file__).parents[2] / "build" / "bench"
WRITERS = ("torch", "onnx", "onnxscript", "onnxruntime")


def bundle_of(name: str, settings: str, make_model: Callable[[], TreeDiffusion]) -> Path:
    """The folder of a model's bundle, exported unless it is there.

    Args:
        name: of the folder.
        settings: everything `make_model` depends on besides the code.
        make_model: called only if there is something to export.
    """
    folder, note = FOLDER / name, FOLDER / f"{name}.key"
    key = _key(settings)
    if not (note.is_file() and note.read_text("utf-8") == key and folder.is_dir()):
        note.unlink(missing_ok=True)
        export_bundle(make_model(), folder)
        note.write_text(key, "utf-8")
    return folder


def _key(settings: str) -> str:
    return hashlib.sha256(settings.encode() + _code()).hexdigest()


@cache
def _code() -> bytes:
    """Digest of the code and its versions; once, as a process keeps what it has imported."""
    digest = hashlib.sha256(" ".join(map(metadata.version, WRITERS)).encode())
    package = Path(treediffusion.__file__).parent
    # The two linked rooms by name: a walk does not follow links to folders.
    roots = (package, package / "kernels", package / "export", Path(__file__).parent)
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.digest()
