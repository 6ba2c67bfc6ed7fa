"""A run: a folder with its settings, one checkpoint per stage, and what was measured.

config.json             resolved settings; the same command continues the run
tree.safetensors        the tree's training state; of several restarts, the kept one's
tree.json               the tree as it stands, readable
tree-N.*                the same for each of several restarts; on a GPU, trees.safetensors of all
diffusion.safetensors   the denoiser's training state
training.json           what the training saw: ELBO terms per phase, diffusion loss
trees.json              of several restarts: each tree's ELBO, mean and deviation, which one is kept

Both stages stop when the call's minutes are over, and go on with the next call as if they had not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config, DiffusionConfig, parse_config
from ..data import ImageSet, Pixels, load_to_train
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import TreeDiffusion, make_denoiser
from ..errors import CheckpointError, ConfigError
from ..files import write_json, write_text
from ..nn.tree_vae import TreeVAE
from ..topology import TreeTopology
from . import checkpoint
from .budget import TrainingProgress
from .diffusion_stage import DiffusionStage, averaged_weights, check_belongs
from .distributed import joined
from .grower import Grower
from .images import TrainingImages
from .plan import diffusion_cost, tree_cost
from .restarts import train_trees
from .selection import choose_tree, compare_trees, describe_trees
from .tree_stage import TreeStage, check_images, save_grown
from .tree_state import Phase, PhaseEnd

CONFIG, TREE, DIFFUSION = "config.json", "tree.safetensors", "diffusion.safetensors"
TOPOLOGY, HISTORY, TREES = "tree.json", "training.json", "trees.json"


Network = TypeVar("Network", bound=nn.Module)

Look: TypeAlias = Callable[[ImageSet, PhaseEnd], None]
"""Shown the images and the tree whenever a phase of the tree has ended; of several trees, each
finished one with its number, then the kept one without."""

Draw: TypeAlias = Callable[[TreeVAE, DiffusionConfig, Sequence[float], int, Denoiser], None]
"""Shown the tree, the denoiser's settings, the share of images that reach each node, the step and
the averaged denoiser, now and then while it is trained."""


def train(
    config: Config,
    run: Path,
    *,
    minutes: float | None = None,
    look: Look | None = None,
    draw: Draw | None = None,
    quiet: bool = False,
) -> TreeDiffusion:
    """Trains both stages, continuing whatever the folder already holds.

    Args:
        config: the settings.
        run: the run's folder, made if absent.
        minutes: time of this call; None for as long as it takes.
        look: shown the tree as it grows; of several, the finished trees alone.
        draw: shown the denoiser as it learns.
        quiet: no progress bar.

    Raises:
        OutOfTime: the minutes are over; the same call continues.
        ConfigError: the folder holds a run with other settings.
        DataError: the images cannot be read, or are not those the run began with.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: the training cannot go on.
    """
    with joined() as team:
        lead = team.leads
        progress = TrainingProgress(minutes=minutes if lead else None, quiet=quiet or not lead)
        data, images = team.in_turn(lambda: _open(config, run))
        if images.shape[-1] == 1:
            raise ConfigError(
                "data",
                got=f"vectors of {images.shape[1]} numbers",
                expected="images, for the stage that learns to draw them",
                hint="train the tree alone, with --stage tree",
            )
        drawing = diffusion_cost(config.diffusion, images.shape[-1])
        with progress:
            progress.extend(tree_cost(config.tree, len(images)) + drawing)
            first = team.in_turn(
                lambda: _train_tree(data, images, config, run, progress, look if lead else None)
            )
            # What growing cost is known by now, whatever was planned.
            progress.extend(progress.done + drawing)
            torch.manual_seed(config.seed + 1)
            share = first.state.node_share
            shown = partial(draw, first.tree, config.diffusion, share) if draw else None
            second = DiffusionStage(
                images, first.tree, config.diffusion, run / DIFFUSION,
                seed=config.seed, progress=progress, look=shown, team=team,
            )  # fmt: skip
            denoiser = second.run()
        team.dismiss()
    write_json(run / HISTORY, {"tree": first.state.history, "diffusion": second.state.history})
    return TreeDiffusion(config, first.tree, denoiser, np.array(share), data.fingerprint)


def train_tree(
    config: Config,
    run: Path,
    *,
    minutes: float | None = None,
    look: Look | None = None,
    quiet: bool = False,
) -> TreeTopology:
    """Trains the first stage alone; arguments and errors are those of `train`."""
    with joined() as team:
        # A tree's step is too small to be divided: the leader trains it alone.
        team.dismiss()
        progress = TrainingProgress(minutes=minutes, quiet=quiet)
        data, images = _open(config, run)
        with progress:
            progress.extend(tree_cost(config.tree, len(images)))
            return _train_tree(data, images, config, run, progress, look).tree.topology


def check_tree(run: Path) -> None:
    """Makes sure that a run's first stage is done, before anything is read or written for it.

    Raises:
        CheckpointError: it is not.
    """
    exists = (run / TREE).exists()
    kind = checkpoint.load(run / TREE)[1]["phase"]["kind"] if exists else None
    if kind != "done":
        raise CheckpointError(
            str(run / TREE),
            got=f"a tree in its phase '{kind}'" if exists else "no tree",
            expected="a finished one",
            hint="train it first, with `treediffusion train`",
        )


def _open(config: Config, run: Path) -> tuple[ImageSet, TrainingImages]:
    """The images, as stored and to train on; the folder is the run's from here on."""
    if config.threads:
        torch.set_num_threads(config.threads)
    data = load_to_train(config)
    _check_square(data.images)
    images = TrainingImages(data.images, "cuda" if torch.cuda.is_available() else "cpu")
    check_images(images)
    _claim(run, config, data)
    return data, images


def _train_tree(
    data: ImageSet,
    images: TrainingImages,
    config: Config,
    run: Path,
    progress: TrainingProgress,
    look: Look | None,
) -> Grower:
    """The grown tree; of several restarts the kept one becomes the run's checkpoint."""

    def show(end: PhaseEnd) -> None:
        progress.say(str(end))
        if look is not None:
            look(data, end)

    torch.manual_seed(config.seed)
    if config.tree.restarts == 1 or (run / TREE).exists():
        (grown,) = TreeStage(images, config.tree, run / TREE, progress, look=show).run()
    else:
        trees = train_trees(images, config, run, progress, progress.say)
        grown = choose_tree(trees, config.tree)
        found = compare_trees(trees, grown)
        write_json(run / TREES, found)
        progress.say(describe_trees(found))
        save_grown(grown, run / TREE)
        ends = [tree.phase_end(Phase("final"), tree.leaf_prob()) for tree in trees]
        if look is not None:
            for number, end in enumerate(ends):
                look(data, replace(end, number=number))
        show(replace(ends[found["kept"]], number=None))
    write_text(run / TOPOLOGY, grown.tree.topology.to_json())
    write_json(run / HISTORY, {"tree": grown.state.history})
    return grown


def load_run(run: Path, *, ema: float | None = None) -> TreeDiffusion:
    """The model of a finished run, on the CPU.

    Args:
        run: its folder, or a checkpoint in it.
        ema: decay of the averaged weights to take; None for the main one.

    Raises:
        CheckpointError: not a run, not finished, or a denoiser of another tree.
        ConfigError: no average was kept with that decay.
    """
    run = run.parent if run.suffix == ".safetensors" else run
    config, fingerprint, shape = _read_claim(run)
    check_tree(run)
    tensors, state = checkpoint.load(run / TREE)
    channels, size, _ = shape
    topology = TreeTopology(tuple(state["topology"]))
    make_tree = partial(TreeVAE, config.tree, topology, image_channels=channels, image_size=size)
    tree = _loaded(make_tree, _under("model.tree.", tensors), run / TREE)
    exists = (run / DIFFUSION).exists()
    second, progress = checkpoint.load(run / DIFFUSION) if exists else ({}, {"step": 0})
    if progress["step"] < config.diffusion.steps:
        raise CheckpointError(
            str(run / DIFFUSION),
            got=f"step {progress['step']} of {config.diffusion.steps}",
            expected="a finished denoiser",
            hint="continue the run with `treediffusion train`",
        )
    check_belongs(run / DIFFUSION, progress, tree)
    weights = averaged_weights(second, config.diffusion, ema)
    denoiser = _loaded(partial(make_denoiser, tree, config.diffusion), weights, run / DIFFUSION)
    share = np.array(state["node_share"])
    return TreeDiffusion(config, tree.eval(), denoiser.eval(), share, fingerprint)


def _loaded(make: Callable[[], Network], tensors: Mapping[str, Tensor], path: Path) -> Network:
    """A network with a checkpoint's tensors; settings that ask for other ones allocate nothing."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in make().state_dict().items()}
        differ = sorted(name for name, shape in wanted.items() | found.items()
                        if wanted.get(name) != found.get(name))  # fmt: skip
        told = f"{differ[0]} {list(found.get(differ[0], ()))}" if differ else ""
    except RuntimeError as fault:  # sizes whose product is no number any more
        differ, told = ["sizes"], str(fault).partition("\n")[0]
    if differ:
        raise CheckpointError(
            str(path), got=told, expected=f"the network of {CONFIG}, in {len(found)} tensors",
            hint="restore the run's folder as `treediffusion train` wrote it",
        )  # fmt: skip
    network = make()
    network.load_state_dict(dict(tensors))
    return network


def _claim(run: Path, config: Config, data: ImageSet) -> None:
    """Writes the settings of a fresh run, or checks that they are those of the run there."""
    mine = {
        "config": json.loads(config.model_dump_json()),
        "data_fingerprint": data.fingerprint,
        "image_shape": list(data.images.shape[1:]),
    }
    if not (run / CONFIG).exists():
        write_json(run / CONFIG, mine)
        return
    old, fingerprint, _ = _read_claim(run)
    theirs = json.loads(old.model_dump_json())
    for place in _differences(mine["config"], theirs):
        raise ConfigError(
            place[0],
            got=repr(place[1]),
            expected=f"{place[2]!r}, which the run in {run} began with",
            hint="repeat the command it began with, or choose another --out",
        )
    if fingerprint != data.fingerprint:
        raise ConfigError(
            "data",
            got=f"images with fingerprint {data.fingerprint}",
            expected=f"{fingerprint}, those which the run in {run} began with",
            hint="restore the images, or choose another --out",
        )


def _read_claim(run: Path) -> tuple[Config, str, tuple[int, int, int]]:
    path = run / CONFIG
    try:
        claim = json.loads(path.read_text("utf-8"))
        channels, height, width = claim["image_shape"]
        fingerprint = str(claim["data_fingerprint"])
        settings = claim["config"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise CheckpointError(
            str(path),
            got=str(fault) or type(fault).__name__,
            expected="the settings of a run",
            hint="name a folder that `treediffusion train` wrote",
        ) from fault
    return parse_config(settings, source=str(path)), fingerprint, (channels, height, width)


def _differences(
    mine: dict[str, object], theirs: dict[str, object], prefix: str = ""
) -> list[tuple[str, object, object]]:
    """Places at which two nested settings differ, with both values."""
    found: list[tuple[str, object, object]] = []
    for key, value in mine.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            found += _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            found.append((prefix + key, value, other))
    return found


def _check_square(images: Pixels) -> None:
    if images.shape[-1] != images.shape[-2]:
        raise ConfigError(
            "data",
            got=f"images of {images.shape[-2]}x{images.shape[-1]} pixels",
            expected="square images",
            hint="crop or resize them first",
        )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
