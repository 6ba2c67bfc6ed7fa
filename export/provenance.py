"""What a bundle was made with: versions, and the commit where the package is a checkout.

Nothing of the machine and no date, so that a second export gives the same bytes.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __file__ as PACKAGE

LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
LIMIT_S = 10.0


def provenance() -> dict[str, Any]:
    """The commit, or None where it is not known, and the versions of what takes part."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            # A local part, such as +cpu, is where the wheel came from and not what is in it.
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return {"commit": _commit(Path(PACKAGE).resolve().parents[2]), "versions": versions}


def _commit(root: Path) -> str | None:
    """The checkout's commit, with `-dirty` if files differ from it; None if this is none."""
    # An installed package may lie in somebody else's checkout, whose commit is not its own.
    if not (root / ".git").exists() or not (root / "python" / "treediffusion").is_dir():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
