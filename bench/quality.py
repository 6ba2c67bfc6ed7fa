"""Denoisers of one tree under equal wall time: what a recipe, a solver and a condition are worth.

    python bench/quality.py DATA [--steps N] [--out FOLDER]     half an hour for 900 on a quiet core

DATA is a folder of idx files with labels, as of MNIST; images are made half as wide (means of 2x2
pixels), so that a CPU gets somewhere. One tree is trained on `TRAINED` of them, then the denoisers
of `RECIPES`: the first in N steps, the others in as many as take the same time, by steps of all
that were timed in turn before. Schedules that are counted in steps (warm-up, averaging) keep the
published share of the training. Every model draws `DRAWN` images along sampled paths, all from the
same numbers.

Distances are Frechet's in the features of our own classifier, which is trained on the labels of
the images the models see; they are no FID. As a floor, that of as many test images is beside them.
Writes `results/quality.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from treediffusion.config import Config, SamplingConfig, TreeConfig, load_preset, parse_config
from treediffusion.data import load_images
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.diffusion.model import make_table
from treediffusion.diffusion.sampler import sample
from treediffusion.evaluate.classifier import Classifier, train_classifier
from treediffusion.evaluate.figures import image_grid, save_png
from treediffusion.evaluate.frechet import frechet_distance, image_statistics
from treediffusion.evaluate.leaf_quality import leaf_quality
from treediffusion.files import write_json
from treediffusion.nn.prepared import prepared
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.runtime.pixels import to_uint8
from treediffusion.signals import leaf_slots
from treediffusion.train.diffusion_stage import DiffusionStage
from treediffusion.train.images import TrainingImages
from treediffusion.train.measure import leaf_prob
from treediffusion.train.tree_stage import TreeStage

RESULTS = Path(__file__).parent / "results" / "quality.json"
TRAINED, DRAWN, TOGETHER = 12_000, 1_000, 200
TREE: dict[str, Any] = {
    "latent_channels": 2, "channels": 32, "levels": 6, "residual": True,
    "codec_sizes": [14, 7, 2], "codec_channels": [16], "max_leaves": 10, "batch_size": 256,
    "learning_rate": 1.5e-3, "final_rate": 0.2, "kl_step": 0.05, "kl_limit": 0.5,
    "phases": {"initial": 10, "subtree": 8, "intermediate": 4, "final": 6},
}  # fmt: skip
NETWORK: dict[str, Any] = {
    "unet": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "heads": 4, "attention": [2]},
    "batch_size": 64,
}
PUBLISHED_STEPS = 234_000
ROUNDS, PROBED = 5, 10


@dataclass(frozen=True)
class Recipe:
    """What to train.

    Attributes:
        preset: whose recipe.
        changed: settings of the second stage that differ from it, besides the network's.
    """

    preset: str
    changed: dict[str, Any]


# Networks are alike, without dropout, in float32: wall time then buys the same number of steps.
RECIPES = {
    "paper": Recipe("paper-mnist", {}),
    "modern": Recipe("modern-mnist", {"precision": "float32"}),
    "modern, no path": Recipe(
        "modern-mnist",
        {"precision": "float32", "signal": "none", "path_dropout": 0.0, "level_dropout": 0.0},
    ),
}
HUNDRED = SamplingConfig(solver="ddim", num_inference_steps=100, spacing="logsnr")
STEPS = {"dpmpp_2m": 10, "dpmpp_3m": 10, "unipc": 10, "ipndm": 10, "ddim": 10, "heun": 5}
"""Heun's five are nine evaluations."""
TEN = {
    f"{solver}, {steps} steps": SamplingConfig.model_validate(
        {"solver": solver, "num_inference_steps": steps, "spacing": "logsnr"}
    )
    for solver, steps in STEPS.items()
}


def main() -> int:
    """Trains, draws, judges, writes the row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train, test = (_halved(given.data, split) for split in ("train", "test"))
    images = TrainingImages(train[0][:TRAINED])
    tree = _tree(images, given.out)
    judge = train_classifier(
        train[0][:TRAINED], train[1][:TRAINED], classes=10, seed=0, epochs=6,
        path=given.out / "classifier.safetensors",
    )  # fmt: skip
    real = image_statistics(judge, test[0][DRAWN:])
    score = Score(judge, tree, real, test[0][:DRAWN])
    row: dict[str, Any] = {
        "data": Path(given.data).name,
        "classifier": {"key": judge.key, "test_accuracy": judge.accuracy(*test)},
        "floor": frechet_distance(image_statistics(judge, test[0][:DRAWN]), real),
        "recipes": {},
    }
    steps = _equal_steps(images, tree, given.steps, given.out)
    for name, recipe in RECIPES.items():
        config, denoiser, spent = _denoiser(images, tree, recipe, steps[name], given.out / name)
        drawn = {"own": config.sampling, "100 evaluations": HUNDRED}
        if name == "paper":
            del drawn["100 evaluations"]
        if name == "modern":
            drawn |= TEN
        scores = {
            told: score(config, denoiser, sampling, given.out / f"{name}, {told}.png")
            for told, sampling in drawn.items()
        }
        row["recipes"][name] = {"trained": spent, "drawn": scores}
        for told, found in scores.items():
            print(f"{name:16} {told:20} {found['evaluations']:4} {found['frechet']:8.2f}"
                  f" {found['mean_entropy']:6.3f}", flush=True)  # fmt: skip
    write_json(RESULTS, row | {"measured": describe(threads=1)})
    return 0


def _halved(data: str, split: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images of half the side, and labels."""
    found = load_images(data, split=split)  # type: ignore[arg-type]
    assert found.labels is not None
    n, c, side, _ = found.images.shape
    blocks = found.images.reshape(n, c, side // 2, 2, side // 2, 2).astype(np.float32)
    return blocks.mean(axis=(3, 5)).round().astype(np.uint8), found.labels


def _tree(images: TrainingImages, out: Path) -> TreeVAE:
    torch.manual_seed(0)
    config = TreeConfig.model_validate(TREE)
    (grown,) = TreeStage(images, config, out / "tree.safetensors").run()
    return grown.tree.eval()


def _equal_steps(images: TrainingImages, tree: TreeVAE, steps: int, out: Path) -> dict[str, int]:
    """Steps of every recipe that take the time of so many of the first."""
    seconds: dict[str, list[float]] = {name: [] for name in RECIPES}
    for _ in range(ROUNDS):
        for name, recipe in RECIPES.items():
            config = _stage_config(recipe, steps=PROBED).diffusion
            stage = DiffusionStage(images, tree, config, out / "probe", seed=0)
            start = time.process_time()
            stage.run()
            seconds[name].append(time.process_time() - start)
            (out / "probe").unlink()
    first, *_ = (statistics.median(times) for times in seconds.values())
    return {name: round(steps * first / statistics.median(t)) for name, t in seconds.items()}


def _denoiser(
    images: TrainingImages, tree: TreeVAE, recipe: Recipe, steps: int, path: Path
) -> tuple[Config, Denoiser, dict[str, Any]]:
    config = _stage_config(recipe, steps=steps)
    torch.manual_seed(1)
    start = time.process_time()
    stage = DiffusionStage(images, tree, config.diffusion, path.with_suffix(".st"), seed=0)
    denoiser = stage.run()
    spent = {"steps": steps, "cpu_minutes": round((time.process_time() - start) / 60, 2)}
    return config, denoiser, spent | {"loss": stage.state.history[-1]["loss"]}


def _stage_config(recipe: Recipe, *, steps: int) -> Config:
    settings = load_preset(recipe.preset).model_dump(mode="json")
    share = steps / PUBLISHED_STEPS
    settings["diffusion"] |= NETWORK | recipe.changed | {
        "steps": steps,
        "warmup": round(settings["diffusion"]["warmup"] * share),
        "ema": 1 - min((1 - settings["diffusion"]["ema"]) / share, 0.05),
        "ema_also": [],
        "unet": NETWORK["unet"] | {"dropout": 0.0},
    }  # fmt: skip
    return parse_config(settings, source="bench/quality.py")


@dataclass(frozen=True)
class Score:
    """Draws images and judges them; `real` are statistics of test images that are in no draw."""

    judge: Classifier
    tree: TreeVAE
    real: Any
    test: NDArray[np.uint8]

    def __call__(
        self, config: Config, denoiser: Denoiser, sampling: SamplingConfig, picture: Path
    ) -> dict[str, Any]:
        """Scores of a model's images; writes 100 of them."""
        images, leaf, evaluations = draw(self.tree, config, denoiser, sampling)
        save_png(picture, image_grid(images[:100], 10))
        judged, of_test = self.judge.judge(images), self.judge.judge(self.test)
        again, of_real = (
            leaf_prob(self.tree, TrainingImages(each)).argmax(1).numpy()
            for each in (images, self.test)
        )
        found = leaf_quality(
            leaf, judged.probabilities, judged.features, assigned=again, real_leaf=of_real,
            real_features=of_test.features, leaves=self.tree.topology.num_leaves,
        )  # fmt: skip
        return {
            "evaluations": evaluations,
            "frechet": frechet_distance(image_statistics(self.judge, images), self.real),
            "mean_entropy": found.mean_entropy,
            "pooled_entropy": found.pooled_entropy,
            "agreement": found.mean_agreement,
        }


@torch.inference_mode()
def draw(
    tree: TreeVAE, config: Config, denoiser: Denoiser, sampling: SamplingConfig
) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """`DRAWN` images [n, C, H, W] along sampled paths, their leaves [n], and evaluations each."""
    numbers = torch.Generator().manual_seed(7)
    settings = config.diffusion
    table, quick = make_table(settings, sampling), prepared(denoiser)
    low, high = (0.0, 1.0) if settings.pixel_range == "0..1" else (-1.0, 1.0)
    slots = leaf_slots(tree.topology, settings.signal)
    rows, ids = (torch.from_numpy(part) for part in slots)
    images, leaves = [], []
    for _ in range(DRAWN // TOGETHER):
        shape = TOGETHER, tree.topology.num_nodes, *tree.latent_shape
        found = tree.generate(torch.randn(shape, generator=numbers))
        prob = found.log_node_prob[:, tree.nodes.leaf_rows].exp()
        leaf = torch.multinomial(prob, 1, generator=numbers)[:, 0]
        each = torch.arange(TOGETHER)[:, None]
        z_path = found.z.flatten(2)[each, rows[leaf].clamp(min=0)]
        start = torch.randn(TOGETHER, *tree.image_shape, generator=numbers)
        x = sample(quick, denoiser.condition(z_path, ids[leaf]), start, table)
        images.append(to_uint8(x.numpy(), (low, high)))
        leaves.append(leaf.numpy())
    return np.concatenate(images), np.concatenate(leaves), len(table.timestep)


if __name__ == "__main__":
    sys.exit(main())
