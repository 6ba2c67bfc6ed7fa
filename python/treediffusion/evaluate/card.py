"""A run's card: README.md with what the model is, of which data, under which terms, how good.

    ---  YAML front matter as the Hub reads it  ---  prose, pictures, tables

Everything comes from files of the run's folder; what is not there is not said. Every number stands
beside the protocol it was measured by. No path of the machine gets into a card: images of the
user's own are named by the last part of their path. Words below the last line of a card are the
user's, and stay when it is written again; a README.md of another hand is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import __version__
from ..config import Config, load_preset, parse_config, preset_names
from ..data import RECIPES, Recipe
from ..errors import CheckpointError, ConfigError
from ..files import write_text
from ..topology import TreeTopology
from ..tree_text import tree_text

FILE = "README.md"
KEEP = "<!-- Written by treediffusion. What follows this line is yours, and stays. -->"
TASK = "unconditional-image-generation"
TAGS = ["treediffusion", "hierarchical-clustering", "image-generation", "diffusion", "vae"]
LIBRARY = "treediffusion"
# Where the Hub keeps the same images, so that a card leads to them.
HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
PICTURES = {
    "The tree": ("figures/tree.png", "tree.png", "preview.png"),
    "One root through every leaf": ("figures/sheet.png", "sheet.png"),
    "New images of each leaf": ("figures/gallery.png", "gallery.png", "preview-images.png"),
}
NAMES = {
    "acc": "accuracy of the clusters",
    "nmi": "normalised mutual information",
    "ari": "adjusted Rand index",
    "dendrogram_purity": "dendrogram purity",
    "leaf_purity": "leaf purity",
}
USE = f"""## Use

```python
from treediffusion.hub import PretrainedTreeDiffusion
from treediffusion.export import export_bundle
from treediffusion.runtime import Engine

model = PretrainedTreeDiffusion.from_pretrained("this repository, or a folder").model
export_bundle(model, "bundle")
with Engine.load("bundle") as engine:
    images = engine.generate(16, node="r0", seed=7).images
```
Made with treediffusion {__version__}: TreeVAE (Manduchi et al., NeurIPS 2023) and TreeDiffusion
(Gonçalves et al., 2024).
"""


@dataclass(frozen=True)
class Measured:
    """A number of a card.

    Attributes:
        key: what the Hub calls it.
        name: the same in words.
        value: itself.
        protocol: how it was measured.
        split: of the data.
    """

    key: str
    name: str
    value: float
    protocol: str
    split: str


def write_card(run: Path) -> Path | None:
    """Writes a run's card, or writes it again.

    Args:
        run: the run's folder, at any stage of it.

    Returns:
        The card; None if there is a README.md of another hand.

    Raises:
        CheckpointError: not a run's folder, or a card that cannot be written.
    """
    path, words = run / FILE, ""
    if path.exists():
        _, found, words = path.read_text("utf-8").partition(KEEP)
        if not found:
            return None
    write_text(path, model_card(run) + words.removeprefix("\n"))
    return path


def model_card(run: Path) -> str:
    """The card of what a run's folder holds.

    Raises:
        CheckpointError: no settings of a run.
    """
    claim = _json(run / "config.json")
    try:
        config = parse_config(claim["config"], source=str(run / "config.json"))
        shape, fingerprint = list(claim["image_shape"]), str(claim["data_fingerprint"])
    except (KeyError, TypeError) as fault:
        raise CheckpointError(
            str(run / "config.json"), got=f"no {fault}" if claim else "no such file",
            expected="the settings of a run",
            hint="name a folder that `treediffusion train` wrote",
        ) from fault  # fmt: skip
    name, recipe = data_name(config.data)
    numbers = list(measurements(run))
    parts = [
        front_matter(name, recipe, numbers),
        f"# A tree of {recipe.title.partition(';')[0] if recipe else f'images: {name}'}\n",
        *_tree(run, config, list(claim.get("node_share", ()))),
        *_data(name, recipe, shape, fingerprint),
        *_settings(config),
        *_numbers(numbers),
        USE,
        KEEP,
    ]
    return "\n".join(parts) + "\n"


def front_matter(name: str, recipe: Recipe | None, numbers: list[Measured]) -> str:
    """What the Hub reads, between two lines of dashes.

    No licence of the weights is stated: that is for their owner, within the terms of the data.
    """
    facts: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": TASK, "tags": TAGS}
    hub = HUB.get(name) if recipe else None
    if hub:
        facts["datasets"] = [hub]
    if numbers:
        title = recipe.name if recipe else name
        results = []
        for split in dict.fromkeys(number.split for number in numbers):
            metrics = [
                {"type": one.key, "name": one.name, "value": one.value}
                for one in numbers
                if one.split == split
            ]
            dataset = {"name": title, "type": hub or title, "split": split}
            results.append({"task": {"type": TASK}, "dataset": dataset, "metrics": metrics})
        facts["model-index"] = [{"name": f"treediffusion-{title}", "results": results}]
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def data_name(data: str) -> tuple[str, Recipe | None]:
    """What a card calls the images, and their recipe if they are a known set.

    >>> data_name("mnist:/somewhere")[0], data_name("/home/me/cats")
    ('mnist', ('cats', None))
    """
    name = data.partition(":")[0]
    if name in RECIPES:
        return name, RECIPES[name]
    return Path(data.rstrip("/\\").replace("\\", "/")).name or "own", None


def measurements(run: Path) -> Iterator[Measured]:
    """Every number that the folder holds, with its protocol."""
    metrics = _json(run / "metrics.json")
    if "clustering" in metrics:
        how = f"{metrics['images']:,} images; labels were only compared with the finished clusters"
        for key, value in metrics["clustering"].items():
            yield Measured(key, NAMES.get(key, key), round(float(value), 4), how, "train")
    quality = _json(run / "quality.json")
    if quality:
        yield from _judged(quality)
    for key, record in _json(run / "fid.json").items():
        how = (
            f"{record['generated']:,} generated against {record['real']:,} images, "
            f"{record['sampler']} in {record['steps']} steps, {record['rounding']}"
        )
        how += f"; protocol {record['protocol']}" if record["protocol"] else "; no published one"
        short = key.partition("_")[0]
        name = short.upper() if len(short) == 3 else short
        yield Measured(key, name, round(float(record["value"]), 4), how, record["split"])


def _judged(quality: Mapping[str, Any]) -> Iterator[Measured]:
    count, leaves = quality["images"], quality["leaves"]
    drawn = f"{count:,} generated images, judged by a classifier of the training part"
    seen = ", which is the training part itself" if quality["test_images_were_trained_on"] else ""
    distance = quality["frechet_in_classifier_features"]
    own = f"{drawn}, against the test part{seen}; as many test images have "
    own += f"{distance['as_many_test_images']:.4g}. This is no FID"
    rows = (
        ("frechet_in_classifier_features", "Fréchet distance in a classifier's features",
         distance["generated"], own),
        ("leaf_entropy", "mean entropy of a leaf's classes, nats", leaves["mean_entropy"], drawn),
        ("leaf_agreement", "images that return to their leaf", leaves["mean_agreement"],
         f"{count:,} generated images, assigned again"),
    )  # fmt: skip
    for key, name, value, how in rows:
        yield Measured(key, name, round(float(value), 4), how, "test")


def _tree(run: Path, config: Config, share: list[float]) -> Iterator[str]:
    path = run / "tree.json"
    if not path.is_file():
        yield f"A tree of up to {config.tree.max_leaves} leaves, which is not grown yet.\n"
        return
    topology = TreeTopology.from_json(path.read_text("utf-8"), source=path)
    history = _json(run / "training.json").get("diffusion") or []
    drawing = (
        f"and a diffusion model, trained for {history[-1]['step']:,} steps, that draws new images "
        "of every branch."
        if history
        else "without a model that draws."
    )
    yield (
        f"A TreeVAE with {topology.num_leaves} leaves, grown on images without labels, {drawing}\n"
    )
    shown = False
    for title, places in PICTURES.items():
        place = next((place for place in places if (run / place).is_file()), None)
        if place:
            shown = True
            yield f"![{title}]({place})\n"
    if not shown and len(share) == topology.num_nodes:
        yield f"```\n{tree_text(topology, np.array(share, np.float64))}\n```\n"


def _data(name: str, recipe: Recipe | None, shape: list[int], fingerprint: str) -> Iterator[str]:
    channels, height, width = shape
    what = (
        f"vectors of {channels} numbers" if height == 1 else f"{channels}x{height}x{width} pixels"
    )
    yield "## Data\n"
    if recipe:
        rows = {
            "Set": f"`{recipe.name}`, {recipe.title}",
            "Described at": recipe.page,
            "To be cited as": recipe.citation,
            "Terms of the data": recipe.terms,
        }
    else:
        rows = {"Set": f"images of the owner's, `{name}`", "Terms of the data": "not known here"}
    rows |= {"Images": what, "Fingerprint": f"`{fingerprint}`"}
    yield _table(("", ""), rows.items())
    yield "No licence of these weights is stated: their owner chooses one that the terms allow.\n"


def _settings(config: Config) -> Iterator[str]:
    yield "## Settings\n"
    sampling = config.sampling
    rows = {
        "Preset": f"`{config.preset}`" if config.preset else "none",
        "Seed": str(config.seed),
        "Leaves, at most": str(config.tree.max_leaves),
        "Denoiser": f"{config.diffusion.steps:,} steps of {config.diffusion.batch_size} images, "
        f"condition `{config.diffusion.signal}`, average {config.diffusion.ema:g}",
        "Sampling": f"{sampling.solver}, {sampling.num_inference_steps} steps",
    }
    changed = _changed(config)
    if changed:
        rows["Changed from the preset"] = ", ".join(changed)
    yield _table(("", ""), rows.items())


def _changed(config: Config) -> list[str]:
    """Settings that are not the preset's, but for the images, the seed and the machine's."""
    if config.preset not in preset_names():
        return []
    try:
        preset = dict(_flat(load_preset(config.preset).model_dump(mode="json")))
    except ConfigError:
        return []
    left = {"data", "seed", "threads", "preset"}
    mine = _flat(config.model_dump(mode="json"))
    return [f"`{k} = {json.dumps(v)}`" for k, v in mine if k not in left and preset.get(k) != v]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _numbers(numbers: list[Measured]) -> Iterator[str]:
    yield "## Results\n"
    if not numbers:
        yield "Nothing has been measured yet.\n"
        return
    rows = [(one.name, f"{one.value:.4g}", one.protocol) for one in numbers]
    yield _table(("Measure", "Value", "How"), rows)


def _table(head: tuple[str, ...], rows: Any) -> str:
    """Markdown; a bar in a cell would begin another."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(
        "| "
        + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line)
        + " |\n"
        for line in lines
    )


def _json(path: Path) -> dict[str, Any]:
    """An object of a file; nothing where there is none, or no whole one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
