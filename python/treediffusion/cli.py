"""The commands: parse, call, print; nothing else happens here.

A user's mistake becomes one line on standard error and exit code 2. Results go to standard output,
progress to standard error. No command imports PyTorch before it needs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

import tyro

from .cli_data import Data
from .cli_draw import Generate, Interpolate, Reconstruct
from .cli_explore import Explore
from .cli_figures import Figures
from .cli_judge import Baseline, Evaluate, Reproduce
from .cli_serve import Serve
from .config import Config, load_config, load_preset, parse_config
from .errors import ConfigError, TreeDiffusionError
from .memory import keep_freed_memory

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_UNREAD = 1, 2, 130, 141


class Command(Protocol):
    """A parsed command."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        ...


@dataclass
class Demo:
    """Digits without labels to a tree of clusters, and new images of each; minutes on a CPU."""

    out: Path = Path("runs/demo")
    """Folder of the run; an unfinished one is continued."""
    seed: int = 0
    """Seed of everything random."""

    def run(self) -> int:
        """Trains, exports, generates, and says where to look."""
        from .demo import demo

        print(demo(self.out, seed=self.seed))
        return 0


@dataclass
class Train:
    """Train both stages: grow the tree, then the diffusion model under it.

    Settings come from `--preset`, then `--config`, then the flags below. Repeating the command
    continues an unfinished run. While the tree grows, preview.png and, if there are labels,
    metrics.json in the run's folder show how it stands; then preview-images.png shows what the
    denoiser draws.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(
        default_factory=lambda: load_preset("tiny")
    )
    config: Path | None = None
    """A YAML file of settings; it may name the preset it starts from."""
    out: Path | None = None
    """Folder of the run; runs/PRESET if left out."""
    stage: Literal["tree", "diffusion", "all"] = "all"
    """tree: the tree alone; diffusion: what comes after a finished tree."""
    seeds: int | None = None
    """Trees to train side by side from different seeds, of which one is kept: --tree.restarts."""
    max_minutes: float | None = None
    """Stop after so many minutes, with exit code 0; the same command continues."""

    def run(self) -> int:
        """Trains and says what to do next."""
        from .evaluate.card import write_card
        from .evaluate.diffusion_preview import diffusion_preview
        from .evaluate.early import early_report
        from .train.budget import OutOfTime
        from .train.run import check_tree, train, train_tree

        settings = self.settings
        if self.seeds is not None:
            values = settings.model_dump(mode="json")
            values["tree"]["restarts"] = self.seeds
            settings = parse_config(values, source="--seeds")
        out = self.out or Path("runs") / (settings.preset or "run")
        if self.stage == "diffusion":
            check_tree(out)
        minutes, look = self.max_minutes, early_report(out)
        try:
            if self.stage == "tree":
                grown = train_tree(settings, out, minutes=minutes, look=look)
            else:
                draw = diffusion_preview(out)
                grown = train(settings, out, minutes=minutes, look=look, draw=draw).tree.topology
                write_card(out)
        except OutOfTime as stop:
            print(f"{out}: time is up, {stop}; the same command continues")
            return 0
        print(f"{out}: {grown.num_leaves} leaves, trained")
        if self.stage == "tree":
            print(f"next: the same command with --stage diffusion; look at {out / 'preview.png'}")
        else:
            print(f"next: treediffusion-export --checkpoint {out} --out {out / 'bundle'}")
        return 0


@dataclass
class Export:
    """Write a bundle that generates without PyTorch."""

    checkpoint: Path
    """Folder of a finished run, or a checkpoint in it."""
    out: Path
    """The bundle's folder; an older bundle there is replaced."""
    ema: float | None = None
    """Decay of the averaged weights to take: diffusion.ema or one of ema_also; the former if left
    out."""
    targets: str = "onnx-cpu"
    """What runs the graphs, separated by commas: onnx-cpu, onnx-gpu, tensorrt, tensorrt-rtx."""
    precision: str = "fp32"
    """Of the denoiser's arithmetic, separated by commas: fp32, fp16, bf16. Each target gets every
    one that it has; bf16 is not on onnx-cpu."""
    batch: str = "1,4,16,64"
    """Numbers of images in a call, separated by commas; engines are built for them."""
    also: Literal["triton-repo"] | None = None
    """triton-repo: a model repository of NVIDIA Triton Inference Server, too, with a copy of the
    bundle, in the folder OUT-triton-repo."""

    def run(self) -> int:
        """Exports and checks."""
        from .bundle import Bundle
        from .export import export_bundle, export_steps
        from .progress import Progress
        from .train.run import load_run

        targets, precisions = _listed(self.targets), _listed(self.precision)
        batches = [int(word) if word.isdecimal() else 0 for word in _listed(self.batch)]
        steps = export_steps(targets, precisions, batches)
        model = load_run(self.checkpoint, ema=self.ema)
        with Progress(steps, "exporting") as progress:
            path = export_bundle(
                model, self.out, targets=targets, precisions=precisions, batches=batches,
                progress=progress,
            )  # fmt: skip
        sets = ", ".join(Bundle.open(path, verify=False).sets)
        print(f"{path}: exported and compared with PyTorch ({sets})")
        if self.also == "triton-repo":
            from .export.inference_server import repository_beside, write_model_repository

            repository = repository_beside(path)
            write_model_repository(path, repository)
            print(f"{repository}: model repository of NVIDIA Triton Inference Server")
        print(f"next: treediffusion generate --bundle {path} --num-images 16 --seed 7")
        return 0


@dataclass
class Tree:
    """Print a model's tree; with --out, draw it and compare its clusters with labels, if any."""

    bundle: Path
    """An exported bundle."""
    data: str | None = None
    """Images to assign; those it was trained on if left out."""
    split: Literal["train", "test"] = "train"
    """Which part of them."""
    out: Path | None = None
    """Folder for tree.png, sheet.png, gallery.png, samples.png and metrics.json."""
    seed: int = 0
    """Seed of the generated images."""

    def run(self) -> int:
        """Prints, and draws if asked."""
        from .runtime import Engine
        from .tree_text import tree_text

        with Engine.load(self.bundle) as engine:
            print(tree_text(engine.topology, engine.node_share))
            if self.out is None:
                return 0
            from .data import load_like
            from .evaluate.report import write_report

            trained_on = engine.manifest["config"]["data"]
            if self.data is None and trained_on != "digits":
                raise ConfigError(
                    "--data", got="nothing", expected=f"the images, such as {trained_on!r}"
                )
            given = self.data or trained_on
            data = load_like(engine.manifest["config"], given, split=self.split)
            metrics = write_report(engine, data, self.out, seed=self.seed)
        for name, value in metrics.get("clustering", {}).items():
            print(f"{name:20} {value:.3f}")
        print(f"pictures and metrics.json in {self.out}")
        return 0


@dataclass
class Doctor:
    """Versions, and which back ends really load here."""

    def run(self) -> int:
        """Prints the table."""
        from .doctor import doctor

        return doctor()


COMMANDS: dict[str, type[Any]] = {
    "demo": Demo,
    "data": Data,
    "train": Train,
    "generate": Generate,
    "reconstruct": Reconstruct,
    "interpolate": Interpolate,
    "export": Export,
    "tree": Tree,
    "evaluate": Evaluate,
    "explore": Explore,
    "figures": Figures,
    "baseline": Baseline,
    "reproduce": Reproduce,
    "serve": Serve,
    "doctor": Doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `treediffusion` command.

    Args:
        argv: arguments, those of the process if None.

    Returns:
        0 ok, 1 failure, 2 a mistake in what was given, 3 a figure outside its band, 130
        interrupted, 141 the reader of the output has left.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in {"-h", "--help"}:
        print(_overview())
        return 0
    if argv[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        choices = ", ".join(COMMANDS)
        return _complain(ConfigError("command", got=repr(argv[0]), expected=f"one of {choices}"))
    return _run(COMMANDS[argv[0]], argv[1:], prog=f"treediffusion {argv[0]}")


def export_main(argv: Sequence[str] | None = None) -> int:
    """The `treediffusion-export` command, the same as `treediffusion export`."""
    return _run(Export, list(sys.argv[1:] if argv is None else argv), prog="treediffusion-export")


def _run(command: type[Command], argv: list[str], *, prog: str) -> int:
    # Threads that spin while they wait make a step many times slower as soon as another program
    # wants a core. OpenMP reads this when PyTorch is imported, which has not happened yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    try:
        ended = _parse(command, argv, prog=prog).run()
        sys.stdout.flush()
    except TreeDiffusionError as fault:
        return _complain(fault)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Its reader, such as `head`, has seen enough; at the end nothing may be written there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    return ended


def _parse(command: type[Command], argv: list[str], *, prog: str) -> Command:
    default = Train(_settings(argv)) if command is Train else None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(command, prog=prog, args=argv, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        given = " ".join(argv) or "nothing"
        raise ConfigError(
            prog, got=given, expected=_one_line(said.getvalue()), hint=f"see {prog} --help"
        ) from stop
    return cast(Command, parsed)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _settings(argv: list[str]) -> Config:
    """The settings that flags then override: of --config, or of --preset."""
    path, preset = _value(argv, "--config"), _value(argv, "--preset")
    if path is not None:
        return load_config(Path(path))
    return load_preset(preset or "tiny")


def _value(argv: list[str], flag: str) -> str | None:
    for position, word in enumerate(argv):
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
        if word == flag and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _one_line(box: str) -> str:
    """What the parser complains about, out of the box it draws around it."""
    parts: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╰╮╯ ")
        if not text.strip("─"):
            break
        parts.append(text)
    text = " ".join(parts)
    text = re.sub(r"^Error parsing \S+: \d+ validation error for \w+ ", "", text)
    text = re.sub(r" ?\[type=.*$", "", text).removeprefix("Value error, ")
    return f"arguments it knows ({text})" if text else "other arguments"


def _complain(fault: TreeDiffusionError) -> int:
    print(f"treediffusion: {' '.join(str(fault).split())}", file=sys.stderr)
    return EXIT_USAGE


def _overview() -> str:
    rows = [
        f"  {name:13}{(command.__doc__ or '').splitlines()[0]}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: treediffusion COMMAND [OPTIONS]",
            "",
            "A tree of clusters from unlabelled images, and new images of every cluster.",
            "",
            *rows,
            "",
            "treediffusion COMMAND --help shows a command's options; start with the demo.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
