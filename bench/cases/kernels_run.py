"""A run of the kernels' script: sections that may fail or run late, and what each has found."""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cases.kernels_clock import Rates
from treediffusion.files import write_json

PACKAGE = Path(__file__).resolve().parents[2] / "python"
Row = dict[str, Any]


class OutOfTime(Exception):
    """A section used up its seconds."""


@dataclass
class Run:
    """What has been found, and where and how it is.

    Attributes:
        device: of all tensors.
        smoke: sizes of the interpreter, and no clock.
        path: of the file, if any.
        rates: of the device, once measured.
        found: numbers of goals, by name.
        document: of the file.
        deadline: of the section that runs.
    """

    device: torch.device
    smoke: bool
    path: Path | None = None
    rates: Rates | None = None
    found: dict[str, float] = field(default_factory=dict)
    document: Row = field(default_factory=dict)
    deadline: float = float("inf")

    def check_time(self) -> None:
        """Raises where the section has no time left."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def section(self, name: str, seconds: float, measure: Callable[[Run, list[Row]], None]) -> None:
        """Runs one, whatever becomes of it."""
        print(f"== {name}", flush=True)
        rows: list[Row] = []
        start = time.monotonic()
        self.deadline, fault = start + (float("inf") if self.smoke else seconds), None
        try:
            measure(self, rows)
        except OutOfTime:
            fault = f"out of time after {seconds:g} s; what follows was not reached"
        except Exception as error:
            traceback.print_exc()
            fault = f"{type(error).__name__}: {error}"
        if fault is not None:
            print(f"   {fault}", flush=True)
        taken = round(time.monotonic() - start, 1)
        sections = self.document.setdefault("sections", {})
        assert isinstance(sections, dict)
        sections[name] = {"seconds": taken, "fault": fault, "rows": rows}
        if self.path is not None:
            write_json(self.path, self.document)

    def command(self, words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        """A command within what is left of the section's time, with more in its environment."""
        left = max(self.deadline - time.monotonic(), 1.0)
        path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
        try:
            return subprocess.run(
                words,
                capture_output=True,
                text=True,
                check=False,
                timeout=left,
                env={**os.environ, "PYTHONPATH": path, **more},
            )
        except subprocess.TimeoutExpired as late:
            raise OutOfTime from late

    def broken(self) -> list[str]:
        """Sections with a fault, or with a row that is wrong."""
        sections = self.document["sections"]
        assert isinstance(sections, dict)
        return [
            name
            for name, section in sections.items()
            if section["fault"] or any(row.get("right") is False for row in section["rows"])
        ]
