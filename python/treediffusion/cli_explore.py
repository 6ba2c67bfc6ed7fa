"""The command that writes a page to look at a model with.

It needs no PyTorch, unless a run has no bundle yet. Parsing and mistakes are the business of `cli`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from .bundle import MANIFEST
from .cli_draw import AsFlags, Drawing
from .errors import DataError, DependencyError

if TYPE_CHECKING:
    from .explore import RealImages


@dataclass
class Explore:
    """Write one page to look at a model with, in any browser: its tree, images and decisions."""

    model: tyro.conf.Positional[Path]
    """An exported bundle, or the folder of a run; a run without a bundle is exported first."""
    out: Path | None = None
    """The page; explorer.html in that folder if left out, where `serve` finds a bundle's own."""
    data: str | None = None
    """Real images to show beside the generated ones; those it was trained on if left out."""
    seed: int = 0
    """Of the generated images."""
    open: bool = False
    """Show it in the browser at once."""
    drawing: AsFlags = field(default_factory=Drawing)

    def run(self) -> int:
        """Draws, writes, and says where."""
        from .explore import Amounts, collect, write_page
        from .explore.collect import images_to_draw
        from .progress import Progress
        from .runtime import Engine

        bundle = _bundle(self.model)
        out = self.out or self.model / "explorer.html"
        with Engine.load(bundle) as engine:
            source = str(engine.manifest["config"]["data"])
            real = _real(self.data, source, size=engine.image_shape[1])
            drawn = images_to_draw(engine.topology, Amounts())
            with Progress(drawn, "drawing") as progress:
                atlas = collect(
                    engine, real, title=Path(self.data or source).stem, seed=self.seed,
                    progress=progress, **self.drawing.options,
                )  # fmt: skip
        write_page(atlas, out)
        size = out.stat().st_size / 1e6
        print(f"{out}: {len(atlas.leaves)} leaves, {size:.1f} MB; open it in any browser")
        if self.open:
            import webbrowser

            webbrowser.open(out.resolve().as_uri())
        return 0


def _bundle(model: Path) -> Path:
    """The bundle itself, or the run's; exported if the run has none."""
    if (model / MANIFEST).exists() or not (model / "config.json").exists():
        return model
    bundle = model / "bundle"
    if not (bundle / MANIFEST).exists():
        from .export import EXPORT_STEPS, export_bundle
        from .progress import Progress
        from .train.run import load_run

        trained = load_run(model)
        with Progress(EXPORT_STEPS, "exporting") as progress:
            export_bundle(trained, bundle, progress=progress)
    return bundle


def _real(asked: str | None, trained_on: str, *, size: int) -> RealImages | None:
    """The images that were asked for; else those of the training, if they are here."""
    from .data import load_images, to_bytes
    from .explore import RealImages

    try:
        found = load_images(asked or trained_on, size=size)
    except (DataError, DependencyError) as fault:
        if asked is not None:
            raise
        print(f"no real images on the page: {fault}")
        return None
    return RealImages(to_bytes(found.images), found.labels, found.class_names)
