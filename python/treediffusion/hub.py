"""Trained models as folders that can be shared, and as repositories of the Hugging Face Hub.

    config.json         settings, tree, shares of its nodes, and the hash of the weights
    model.safetensors   tree.* and denoiser.*, the averaged weights
    README.md           the card; with it the run's pictures and measurements, where there are any

Saving and loading a folder needs no network; `HF_HUB_OFFLINE=1` or `local_files_only=True` keeps
the rest from it, too. Nothing in such a folder is executed and nothing is unpickled: JSON is
parsed, tensors are read, and weights that are not those of the settings are refused. Paths of the
machine stay out: images of the user's own are named by the last part of their path.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from torch import Tensor

from . import __version__
from .config import parse_config
from .diffusion.model import TreeDiffusion, make_denoiser
from .errors import CheckpointError, ConfigError, TopologyError
from .evaluate import card
from .files import write_json, write_text
from .nn.tree_vae import TreeVAE
from .optional import require
from .topology import TreeTopology
from .train import checkpoint
from .train.run import load_run

FORMAT = 1
CONFIG, WEIGHTS, TREE, CARD = "config.json", "model.safetensors", "tree.json", card.FILE
BESIDE = (
    *("metrics.json", "quality.json", "fid.json", "training.json"),
    *(place for places in card.PICTURES.values() for place in places),
)
"""What of a run goes along with its model."""

_hub: Any = require("huggingface_hub", extra="hub")


_Mixin: Any = _hub.ModelHubMixin


class PretrainedTreeDiffusion(_Mixin):  # type: ignore[misc]
    """A trained model that can be saved, shared and loaded again.

    `save_pretrained(folder)`, `from_pretrained(folder or repository)` and `push_to_hub(repository)`
    are huggingface_hub's, with all their arguments.

    Attributes:
        model: both networks, in eval mode, on the CPU.

    Example::

        PretrainedTreeDiffusion.from_run("runs/demo").push_to_hub("owner/name", private=True)
    """

    def __init__(self, model: TreeDiffusion, *, run: str | Path | None = None) -> None:
        """Wraps a model.

        Args:
            model: what is shared.
            run: the folder it comes from; its card, pictures and measurements go along.
        """
        self.model = model
        self._run = None if run is None else Path(run)

    @classmethod
    def from_run(cls, run: str | Path, *, ema: float | None = None) -> Self:
        """The model of a finished run, see `load_run`, whose errors it has.

        Args:
            run: the folder.
            ema: decay of the averaged weights to take; None for the main one.
        """
        return cls(load_run(Path(run), ema=ema), run=run)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a folder that `save_pretrained` wrote, or a repository of the Hub.

        Args:
            pretrained_model_name_or_path: the folder, or `owner/name`.
            **options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            CheckpointError: neither of both, out of reach, damaged, or of another version.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir() and not (Path(name) / CONFIG).is_file():
            raise _unusable(name, f"a folder without {CONFIG}")
        try:
            return cast("Self", super().from_pretrained(name, **options))
        except CheckpointError:
            raise
        # Files and connections; JSON of another form, and names that no repository can have.
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            _hub.errors.HfHubHTTPError,
        ) as fault:
            raise _unusable(name, " ".join(str(fault).split())[:300]) from fault

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card as huggingface_hub has it."""
        return _hub.ModelCard(self._card(), ignore_metadata_errors=False)

    def _save_pretrained(self, save_directory: Path) -> None:
        folder, model = Path(save_directory), self.model
        tensors = {f"tree.{name}": tensor for name, tensor in model.tree.state_dict().items()}
        tensors |= {f"denoiser.{k}": tensor for k, tensor in model.denoiser.state_dict().items()}
        checkpoint.save(folder / WEIGHTS, tensors, {"kind": "model"})
        settings = json.loads(model.config.model_dump_json())
        name, recipe = card.data_name(model.config.data)
        # A folder of the user's may have the name of a published set, which it is not.
        settings["data"] = name if recipe else f"./{name}"
        facts = {
            "format": FORMAT,
            "producer": {"name": card.LIBRARY, "version": __version__},
            "config": settings,
            "nodes": list(model.tree.topology.names),
            "node_share": model.node_share.tolist(),
            "image_shape": list(model.tree.image_shape),
            "data_fingerprint": model.data_fingerprint,
            "weights_sha256": _sha256(folder / WEIGHTS),
        }
        write_json(folder / CONFIG, facts)
        write_text(folder / TREE, model.tree.topology.to_json())
        for place in BESIDE if self._run is not None else ():
            source, target = cast("Path", self._run) / place, folder / place
            if source.is_file() and source.resolve() != target.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        # The mixin keeps a card that is there; it writes ours.
        card.write_card(folder)

    def _card(self) -> str:
        with _hub.utils.SoftTemporaryDirectory() as folder:
            self._save_pretrained(Path(folder))
            return (Path(folder) / CARD).read_text("utf-8")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        folder = Path(model_id)
        local = folder.is_dir()
        taken = {
            key: options[key]
            for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")
            if key in options
        }

        def find(name: str) -> Path:
            if local:
                return folder / name
            return Path(_hub.hf_hub_download(repo_id=model_id, filename=name, **taken))

        config = find(CONFIG)
        facts = json.loads(config.read_text("utf-8"))
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
            raise CheckpointError(
                str(config),
                got=f"format {found!r}",
                expected=f"format {FORMAT}",
                hint="upgrade treediffusion if the folder is newer, or save the model again",
            )
        return cls(_model(facts, find(WEIGHTS), config), run=folder if local else None)


def _model(facts: dict[str, Any], weights: Path, config: Path) -> TreeDiffusion:
    """Both networks, if the weights are those of the settings."""
    found = _sha256(weights)
    if found != facts["weights_sha256"]:
        raise CheckpointError(
            str(weights),
            got=f"sha256 {found}",
            expected=f"sha256 {facts['weights_sha256']}, that of {CONFIG}",
            hint="copy or download both files again",
        )
    tensors, _ = checkpoint.load(weights)
    try:
        settings = parse_config(facts["config"], source=str(config))
        topology = TreeTopology(tuple(facts["nodes"]))
        channels, size, _ = (int(side) for side in facts["image_shape"])
        tree = TreeVAE(settings.tree, topology, image_channels=channels, image_size=size)
        tree.load_state_dict(_under("tree.", tensors))
        denoiser = make_denoiser(tree, settings.diffusion)
        denoiser.load_state_dict(_under("denoiser.", tensors))
    except (RuntimeError, ConfigError, TopologyError) as fault:
        reason = " ".join(str(fault).split())[:300]
        raise CheckpointError(
            str(config), got=reason, expected="settings and a tree that the weights are of",
            hint="save the model again with this version",
        ) from fault  # fmt: skip
    share = np.array(facts["node_share"], np.float64)
    if share.shape != (topology.num_nodes,):
        raise CheckpointError(
            str(config), got=f"{share.shape} shares", expected=f"{topology.num_nodes}, one a node"
        )
    return TreeDiffusion(
        settings, tree.eval(), denoiser.eval(), share, str(facts["data_fingerprint"])
    )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unusable(name: str, got: str) -> CheckpointError:
    near = "the network is off, so only folders and what was downloaded before are within reach"
    far = "check the name, and the network if it is a repository's"
    return CheckpointError(
        name,
        got=got,
        expected="a folder that save_pretrained wrote, or a repository within reach",
        hint=near if _hub.constants.HF_HUB_OFFLINE else far,
    )
