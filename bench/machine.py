"""What a result was measured on: enough to repeat it, nothing that tells whose machine it was."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from os import cpu_count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "onnxruntime", "onnx", "treediffusion")


def describe(*, threads: int) -> dict[str, object]:
    """Device, versions, commit and date, as plain values."""
    return {
        "device": {"cpu": _cpu_model(), "cores": cpu_count(), "threads": threads},
        "versions": {"python": platform.python_version()} | _versions(LIBRARIES),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_model() -> str:
    """The processor's name; on systems without /proc only its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    """What git answers, or nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
