"""The command `data`: what is in a set of images before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from .data import Recipe
    from .data.preflight import Report

EXIT_FAILURE = 1
SHOWN, CLASSES_SHOWN = 8, 20


@dataclass
class Data:
    """Look at images before training: count, sizes, classes, unusable files, duplicates.

    Without a name or path, lists the data sets that are known by name. Exit code 1 says that
    training would refuse some of the files.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|PATH")] = None
    """A data set's name, or a folder, zip, CSV list, .npy, .npz or idx file."""
    split: Literal["train", "test"] = "train"
    """Which part of it."""
    image_size: int | None = None
    """The side that images would be scaled to."""
    skip_corrupt: bool = False
    """Files that cannot be used are to be left out: no failure."""
    sheet: Path | None = None
    """A PNG to save, with 64 images as training would see them."""

    def run(self) -> int:
        """Looks and prints."""
        from .data.preflight import contact_sheet, inspect
        from .data.recipes import RECIPES

        if self.source is None:
            _print(_recipes(RECIPES))
            return 0
        report = inspect(self.source, split=self.split, size=self.image_size)
        _print(_summary(report, RECIPES.get(report.name)))
        for one in report.refused:
            print(f"unusable: {one}")
        for names in report.duplicates[:SHOWN]:
            print(f"equal: {_few(names)}")
        if len(report.duplicates) > SHOWN:
            print(f"equal: {len(report.duplicates) - SHOWN} more groups")
        for warning in report.warnings:
            print(f"note: {warning}")
        if self.sheet is not None:
            from .evaluate.figures import image_grid, save_png

            shown = contact_sheet(self.source, split=self.split, size=self.image_size)
            save_png(self.sheet, image_grid(shown, SHOWN))
            print(f"{len(shown)} of the images in {self.sheet}")
        return EXIT_FAILURE if report.refused and not self.skip_corrupt else 0


def _summary(report: Report, recipe: Recipe | None) -> Table:
    from rich.table import Table

    table = Table("", report.name, box=None)
    if recipe is not None:
        for name in ("title", "page", "citation", "terms"):
            table.add_row(name, getattr(recipe, name))
    vectors = set(report.sizes) == {(1, 1)}
    sizes = {f"{w}x{h}": n for (w, h), n in report.sizes.items()}
    copies = sum(len(names) - 1 for names in report.duplicates)
    table.add_row("images", f"{report.count:,}")
    table.add_row("sizes", "vectors" if vectors else _counts(sizes))
    table.add_row("modes", _counts(report.modes))
    if report.classes is None:
        table.add_row("classes", "none known; they would serve evaluation alone")
    else:
        table.add_row("classes", f"{len(report.classes)}: {_counts(report.classes, CLASSES_SHOWN)}")
    table.add_row("unusable", str(len(report.refused)))
    table.add_row("duplicates", f"{copies:,} in {len(report.duplicates):,} groups")
    trained = "not yet square alike" if report.side is None else f"{report.side}x{report.side}"
    if vectors:
        trained = "vectors, which a tree learns and no denoiser"
    if not report.count:
        trained = "nothing, as long as no image can be used"
    table.add_row("trained at", trained)
    return table


def _recipes(recipes: Mapping[str, Recipe]) -> Table:
    from rich.table import Table

    table = Table("name", "what", "size", "train", "test", "classes", box=None)
    for recipe in recipes.values():
        size = f"{recipe.channels}x{recipe.size}x{recipe.size}"
        if recipe.kind == "texts":
            size = f"{recipe.channels} terms"
        classes = str(len(recipe.class_names)) if recipe.class_names else "-"
        train, test = (f"{count:,}" for count in recipe.counts)
        table.add_row(recipe.name, recipe.title, size, train, test, classes)
    return table


def _counts(numbers: Mapping[str, int], most: int = SHOWN) -> str:
    shown = [f"{name} ({number:,})" for name, number in list(numbers.items())[:most]]
    more = len(numbers) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _few(names: tuple[str, ...]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False).print(table)
