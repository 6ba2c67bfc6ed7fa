"""``python -m treediffusion``: the command, where a module has to be named, as for torchrun."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
