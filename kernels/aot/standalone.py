"""Runs a command of this folder from a checkout: ``python -P kernels/aot/standalone.py build ...``.

A folder of kernels is a package whose ``__init__`` brings PyTorch; here all of them are bare, so
that their ``kernel.py`` loads where only Triton is installed, and nothing of ours is. For a process
of its own only: whoever imports an operation after this finds it empty.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

COMMANDS = ("build", "table")


def load_bare(kernels: Path) -> None:
    """Makes ``treediffusion.kernels`` and the folders in it packages without code."""
    sys.path.insert(0, str(kernels.parent / "python"))
    importlib.import_module("treediffusion")
    for folder in (kernels, *sorted(path.parent for path in kernels.glob("*/__init__.py"))):
        name = ".".join(("treediffusion", "kernels", *folder.relative_to(kernels).parts))
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def main() -> None:
    """Takes the command's name, and its own arguments after it."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: standalone.py {'|'.join(COMMANDS)} ...")
    load_bare(Path(__file__).resolve().parents[1])
    importlib.import_module(f"treediffusion.kernels.aot.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
