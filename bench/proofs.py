"""Trains a preset's trees on real data and sets what they reach beside the published figures.

    python bench/proofs.py NAME DATA [--seeds N] [--minutes M] [--runs FOLDER]

NAME is one of `PROOFS`; DATA is what `--data` reads (packs: see `packs.py`). A call that is stopped
or out of time is continued by the same command. A finished one writes `results/proofs/NAME.json`:
the settings that differ from the preset's, clustering scores on the test part (of data without one:
on all images) with mean and deviation over the seeds, minutes, machine, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

import torch
from machine import describe
from treediffusion.config import Config, load_preset, parse_config
from treediffusion.data import load_images
from treediffusion.errors import DataError
from treediffusion.evaluate.clustering import clustering_metrics
from treediffusion.evaluate.early import early_report, spread
from treediffusion.files import write_json
from treediffusion.train.budget import OutOfTime
from treediffusion.train.grower import Grower
from treediffusion.train.images import TrainingImages
from treediffusion.train.measure import leaf_prob
from treediffusion.train.restarts import APART, TOGETHER
from treediffusion.train.run import TREE, train_tree
from treediffusion.train.tree_stage import TreeStage

RESULTS = Path(__file__).parent / "results" / "proofs"


@dataclass(frozen=True)
class Proof:
    """What to train, and what was published.

    Attributes:
        preset: whose tree.
        changed: settings of the tree that differ from it, usually fewer epochs.
        published: mean and deviation, in percent, of TreeVAE's (NeurIPS 2023) or TreeDiffusion's
            Table 1; of digits, which neither has, nothing.
    """

    preset: str
    changed: dict[str, Any] = field(default_factory=dict)
    published: dict[str, tuple[float, float]] = field(default_factory=dict)


def _epochs(initial: int, subtree: int, intermediate: int, final: int) -> dict[str, Any]:
    names = ("initial", "subtree", "intermediate", "final")
    return {"phases": dict(zip(names, (initial, subtree, intermediate, final), strict=True))}


def _treevae(*scores: tuple[float, float]) -> dict[str, tuple[float, float]]:
    names = ("dendrogram_purity", "leaf_purity", "acc", "nmi")
    return dict(zip(names, scores, strict=True))


_MNIST = {"acc": (82.1, 4.8), "nmi": (82.8, 3.1)}
_FASHION = {"acc": (58.5, 2.9), "nmi": (62.6, 2.5)}
_CIFAR10 = {"acc": (50.1, 3.5), "nmi": (41.0, 2.7)}
_NEWSGROUPS = _treevae((17.5, 1.5), (38.4, 1.6), (32.8, 2.3), (34.4, 1.5))
_OMNIGLOT = _treevae((58.8, 4.0), (77.7, 3.9), (63.9, 7.0), (50.0, 5.9))

PROOFS = {
    # For two CPU cores.
    "digits": Proof("tiny"),
    "mnist-quick": Proof("mnist-quick", published=_MNIST),
    "fashion-quick": Proof("mnist-quick", published=_FASHION),
    "newsgroups20-short": Proof(
        "treevae-newsgroups20", _epochs(12, 12, 6, 16) | {"kl_step": 0.0125}, _NEWSGROUPS
    ),
    "omniglot5-short": Proof(
        "treevae-omniglot5", _epochs(12, 12, 6, 16) | {"kl_step": 0.0125}, _OMNIGLOT
    ),
    "cifar10-short": Proof(
        "paper-cifar10", _epochs(6, 4, 0, 0) | {"max_leaves": 4, "batch_size": 64}, _CIFAR10
    ),
    # For a GPU: the recipes as published.
    "mnist": Proof("paper-mnist", published=_MNIST),
    "fashion": Proof("paper-fashion", published=_FASHION),
    "cifar10": Proof("paper-cifar10", published=_CIFAR10),
    "newsgroups20": Proof("treevae-newsgroups20", published=_NEWSGROUPS),
    "omniglot5": Proof("treevae-omniglot5", published=_OMNIGLOT),
}


def main() -> int:
    """Trains, scores, writes a row; 3 where the minutes did not suffice."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=PROOFS)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--runs", type=Path, default=Path("runs/proofs"))
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    proof, run = PROOFS[given.name], given.runs / given.name
    config = _config(proof, given.data, given.seeds, given.threads)
    start = time.monotonic()
    try:
        train_tree(config, run, minutes=given.minutes, look=early_report(run))
    except OutOfTime as stop:
        _add_minutes(run, start)
        print(f"{given.name}: {stop}; the same command continues")
        return 3
    row = {
        "name": given.name,
        "preset": proof.preset,
        "changed": proof.changed,
        "seeds": given.seeds,
        "minutes": round(_add_minutes(run, start), 1),
        "scores": _scores(config, run),
        "published_percent": proof.published,
        "history": json.loads((run / "training.json").read_text("utf-8"))["tree"],
        "measured": describe(threads=torch.get_num_threads()) | _gpu(),
    }
    write_json(RESULTS / f"{given.name}.json", row)
    print(json.dumps(row["scores"], indent=1))
    return 0


def _config(proof: Proof, data: str, seeds: int, threads: int) -> Config:
    settings = load_preset(proof.preset).model_dump(mode="json")
    settings["tree"] |= proof.changed | {"restarts": seeds, "keep": "elbo"}
    settings |= {"data": data, "threads": threads or settings["threads"]}
    return parse_config(settings, source="bench/proofs.py")


def _add_minutes(run: Path, start: float) -> float:
    """Minutes of all calls of a run so far."""
    path = run / "minutes.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else 0.0
    total = float(before + (time.monotonic() - start) / 60)
    path.write_text(json.dumps(total), "utf-8")
    return total


def _scores(config: Config, run: Path) -> dict[str, Any]:
    """Of the kept tree and of all, on the test part, and the ELBO on the train part."""
    data = load_images(config.data)
    images = TrainingImages(data.images)
    try:
        test, part = load_images(config.data, split="test"), "test"
    except DataError:
        test, part = data, "train"
    if test.fingerprint == data.fingerprint:
        part = "train"
    assert test.labels is not None
    unseen = TrainingImages(test.images)
    rows, topologies = [], []
    for grown in _trees(config, run, images):
        leaf = leaf_prob(grown.tree.cpu(), unseen).argmax(1).numpy()
        row = clustering_metrics(test.labels, leaf, grown.tree.topology)
        rows.append(row | {"elbo": float(grown.state.history[-1]["elbo"])})
        topologies.append(grown.tree.topology.leaf_names)
    best = max(range(len(rows)), key=lambda k: rows[k]["elbo"])
    found: dict[str, Any] = {"part": part, "images": len(unseen), "best_elbo": rows[best]}
    found["leaves"] = [len(names) for names in topologies]
    return found | ({"all": spread(rows), "trees": rows} if len(rows) > 1 else {})


def _trees(config: Config, run: Path, images: TrainingImages) -> list[Grower]:
    """The finished trees of a run, read from its checkpoints."""
    count = config.tree.restarts
    if count == 1:
        return TreeStage(images, config.tree, run / TREE).run()
    if (run / TOGETHER).exists():
        return TreeStage(images, config.tree, run / TOGETHER, seeds=range(count)).run()
    paths = [run / APART.format(number) for number in range(count)]
    return [tree for path in paths for tree in TreeStage(images, config.tree, path).run()]


def _gpu() -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


if __name__ == "__main__":
    sys.exit(main())
