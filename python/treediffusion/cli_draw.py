"""The commands that draw with a bundle: new images, images drawn again, the way between two leaves.

They need no PyTorch. Parsing and mistakes are the business of `cli`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from .errors import ConfigError
from .solvers import Solver
from .spacing import Spacing

if TYPE_CHECKING:
    from .runtime import Engine
    from .runtime.plan import SamplingOptions
    from .topology import TreeTopology


@dataclass
class Drawing:
    """How images are drawn; what is left out is the bundle's own."""

    num_inference_steps: int | None = None
    """Denoising steps."""
    solver: Solver | None = None
    """The sampler; heun evaluates the network twice in each step."""
    spacing: Spacing | None = None
    """Where the steps lie."""
    eta: float | None = None
    """Of ddim: 0 is deterministic, 1 as much noise as DDPM."""
    guidance_scale: tuple[float, ...] | None = None
    """How much further than its leaf an image goes: one number, or one for each depth; of models
    that were trained with diffusion.path_dropout or level_dropout."""

    @property
    def options(self) -> SamplingOptions:
        """For the engine."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "solver": self.solver,
            "spacing": self.spacing,
            "eta": self.eta,
            "guidance_scale": self.guidance_scale,
        }


AsFlags = Annotated[Drawing, tyro.conf.arg(name="")]


@dataclass
class Generate:
    """Draw new images from a bundle, each as a PNG, and all of them as a sheet.

    With --per-leaf or --ray it is a big set: a folder for each leaf, and manifest.csv in place of
    the sheet. The same command continues one that was interrupted.
    """

    bundle: Path
    """An exported bundle."""
    out: Path = Path("images")
    """Folder for the images."""
    num_images: int = 16
    """How many."""
    per_leaf: int | None = None
    """So many of each leaf (below --node) instead."""
    node: str = "r"
    """Images of this node's leaves: r is the whole tree, r0 its left branch, and so on."""
    leaf: str | None = None
    """The same as --node, for a leaf."""
    seed: int = 0
    """Image i of a seed is the same image in every call."""
    offset: int = 0
    """Number of the first image."""
    drawing: AsFlags = field(default_factory=Drawing)
    backend: str = "auto"
    """What runs the graphs."""
    ray: bool = False
    """Let Ray's workers draw: on this machine, or in the cluster of the variable RAY_ADDRESS, whose
    machines then need the bundle and --out under the same paths."""
    workers: int | None = None
    """Of --ray; as many as there are GPUs or cores if left out."""

    def run(self) -> int:
        """Generates and saves."""
        if self.workers is not None and not self.ray:
            raise ConfigError("--workers", got=self.workers, expected="it together with --ray")
        if self.per_leaf is not None and self.per_leaf < 1:
            raise ConfigError("--per-leaf", got=self.per_leaf, expected="at least 1")
        return self._sheet() if self.per_leaf is None and not self.ray else self._set()

    def _sheet(self) -> int:
        """Images that are looked at."""
        from .evaluate.figures import image_grid, save_png
        from .progress import Progress
        from .runtime import Engine

        with Engine.load(self.bundle, backend=self.backend) as engine:
            if self.leaf is not None:
                _check_leaf(engine, "--leaf", self.leaf)
            with Progress(self.num_images, "generating") as progress:
                made = engine.generate(
                    self.num_images,
                    node=self.leaf or self.node,
                    seed=self.seed,
                    offset=self.offset,
                    batch_size=engine.bucket,  # the bar moves with each call
                    progress=progress,
                    **self.drawing.options,
                )
        for row, (image, leaf) in enumerate(zip(made.images, made.leaf, strict=True)):
            number = self.offset + row
            name = f"seed{self.seed}-{number:05d}-{made.leaf_names[leaf]}.png"
            save_png(self.out / name, image_grid(image[None], 1))
        sheet = self.out / "sheet.png"
        save_png(sheet, image_grid(made.images, min(10, self.num_images)))
        print(f"{self.num_images} images in {self.out}, together in {sheet}")
        return 0

    def _set(self) -> int:
        """Images that are counted."""
        from .bundle import Bundle
        from .progress import Progress
        from .scale.bulk import Order, begin, draw_here, plan_units

        order = Order(
            self.bundle.absolute(), self.out.absolute(), self.backend, self.drawing.options
        )
        tree = Bundle.open(self.bundle, verify=False).topology
        if self.leaf is not None and self.leaf not in tree.leaf_names:
            raise _no_leaf("--leaf", self.leaf, tree)
        node = self.leaf or self.node
        below = [tree.leaf_names[i] for i in tree.leaves_below(node)]
        nodes, count = (
            ([node], self.num_images) if self.per_leaf is None else (below, self.per_leaf)
        )
        units = plan_units(nodes, count, seed=self.seed, offset=self.offset)
        bundle = begin(order)
        total = count * len(nodes)
        with Progress(total, "generating") as progress:
            if self.ray:
                from .scale.ray_bulk import draw_with_ray

                manifest = draw_with_ray(
                    order, units, progress, bundle=bundle, workers=self.workers
                )
            else:
                manifest = draw_here(order, units, progress)
        print(f"{total} images in {self.out}, listed in {self.out / manifest.name}")
        return 0


@dataclass
class Reconstruct:
    """Draw images again from their own latents: in their leaf, or in every leaf, as one sheet."""

    bundle: Path
    """An exported bundle."""
    data: str
    """The images: a folder, an .npy or .npz file, or `digits`."""
    out: Path = Path("reconstructed.png")
    """The sheet: a row for each image, the given one first."""
    num_images: int = 8
    """How many of them, from the first one on."""
    leaf: Literal["sampled", "most_probable", "all"] = "sampled"
    """A leaf drawn by its probability, the most probable one, or every leaf in turn."""
    seed: int = 0
    """Of everything random."""
    drawing: AsFlags = field(default_factory=Drawing)

    def run(self) -> int:
        """Reconstructs and saves."""
        from .data import load_like
        from .evaluate.figures import image_grid, save_png
        from .progress import Progress
        from .runtime import Engine

        with Engine.load(self.bundle) as engine:
            if self.num_images < 1:
                raise ConfigError("--num-images", got=self.num_images, expected="at least 1")
            given = load_like(engine.manifest["config"], self.data).images[: self.num_images]
            leaves = engine.topology.num_leaves if self.leaf == "all" else 1
            with Progress(len(given), "drawing again") as progress:
                # A bar that moves: as few images at a time as fill a call.
                few = max(1, engine.bucket // leaves)
                how = {"seed": self.seed, "batch_size": few, "progress": progress}
                how |= self.drawing.options
                drawn = (
                    engine.reconstruct_leaves(given, **how).images  # type: ignore[arg-type]
                    if self.leaf == "all"
                    else engine.reconstruct(given, leaf=self.leaf, **how).images[:, None]  # type: ignore[arg-type]
                )
            names = ", ".join(engine.topology.leaf_names) if leaves > 1 else self.leaf
        rows = np.concatenate([given[:, None], drawn], axis=1)
        save_png(self.out, image_grid(rows.reshape(-1, *given.shape[1:]), 1 + leaves))
        print(f"{len(given)} images in {self.out}, each beside what was drawn: {names}")
        return 0


@dataclass
class Interpolate:
    """Draw the way from one leaf to another: the same latents and noise, a row of frames each."""

    bundle: Path
    """An exported bundle."""
    start: str
    """The first frame's leaf."""
    end: str
    """The last frame's leaf."""
    out: Path = Path("interpolated.png")
    """The sheet: a row for each image."""
    frames: int = 8
    """Images in a row."""
    num_images: int = 4
    """Rows."""
    seed: int = 0
    """Of latents and noise."""
    drawing: AsFlags = field(default_factory=Drawing)

    def run(self) -> int:
        """Interpolates and saves."""
        from .evaluate.figures import image_grid, save_png
        from .progress import Progress
        from .runtime import Engine

        with Engine.load(self.bundle) as engine:
            for flag, leaf in (("--start", self.start), ("--end", self.end)):
                _check_leaf(engine, flag, leaf)
            with Progress(self.num_images, "interpolating") as progress:
                drawn = engine.interpolate(
                    self.start,
                    self.end,
                    frames=self.frames,
                    num_images=self.num_images,
                    seed=self.seed,
                    batch_size=engine.bucket,  # the bar moves with each call
                    progress=progress,
                    **self.drawing.options,
                )
        save_png(self.out, image_grid(drawn.reshape(-1, *drawn.shape[2:]), self.frames))
        print(f"{self.num_images} rows from {self.start} to {self.end} in {self.out}")
        return 0


def _check_leaf(engine: Engine, flag: str, leaf: str) -> None:
    if leaf not in engine.topology.leaf_names:
        raise _no_leaf(flag, leaf, engine.topology)


def _no_leaf(flag: str, leaf: str, tree: TreeTopology) -> ConfigError:
    names = ", ".join(tree.leaf_names)
    return ConfigError(flag, got=repr(leaf), expected=f"one of {names}")
