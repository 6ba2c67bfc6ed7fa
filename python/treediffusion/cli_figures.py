"""The command that draws a run's figures; parsing and mistakes are the business of `cli`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Figures:
    """Draw every figure that a run allows, as PNG and SVG, and say which it does not and why."""

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run. Generated images come from the bundle in it; the classes that a judge sees
    in them from quality.json, of `treediffusion evaluate --out RUN`."""
    out: Path | None = None
    """Folder for the figures; RUN/figures if left out."""
    data: str | None = None
    """Images to assign; those it was trained on if left out."""
    split: Literal["train", "test"] = "train"
    """Which part of them."""
    attributes: Path | None = None
    """An .npz with `attributes`, a row of 0 and 1 for each image, and `attribute_names`."""
    words: Path | None = None
    """For vectors of texts: the word of each number, one a line; 20 Newsgroups' are known."""
    seed: int = 0
    """Of everything generated."""

    def run(self) -> int:
        """Draws, and lists the files."""
        from .evaluate.card import write_card
        from .evaluate.figures.of_run import Wanted, draw_run

        out = self.out or self.run_folder / "figures"
        wanted = Wanted(
            self.run_folder, self.data, self.split, self.attributes, self.words, self.seed
        )
        drawn = draw_run(wanted, out)
        if out == self.run_folder / "figures":
            write_card(self.run_folder)  # which shows them
        for name, files in drawn.files.items():
            print(f"{name:18} {', '.join(str(file) for file in files)}")
        for name, reason in drawn.left_out.items():
            print(f"{name:18} left out: {reason}")
        return 0 if drawn.files else 1
