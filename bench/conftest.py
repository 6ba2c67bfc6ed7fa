"""Puts this folder where its modules look for one another, as running a script of it does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
