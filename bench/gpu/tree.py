"""What a tree costs on a GPU: steps in three forms, and whole trainings where there are images.

    python bench/gpu/tree.py --json OUT.json [--recipe PRESET FOLDER]... [--seeds N]

Before it come the tests that need a GPU, in the same call: `pytest -m gpu`. The forms of a step are
the node-by-node reference, ours one operation after another, and ours as one CUDA graph. A recipe
trains a preset's tree on the training images of a folder, and scores it on its test images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the cases
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the baselines' home

import torch
from cases import treevae
from machine import describe
from treediffusion.config import load_preset
from treediffusion.data import load_images, to_float
from treediffusion.evaluate.clustering import clustering_metrics
from treediffusion.files import write_json
from treediffusion.train.losses import TreeObjective
from treediffusion.train.measure import leaf_prob
from treediffusion.train.optimizer import make_adam
from treediffusion.train.step import WARMUP, GraphedStep, Step
from treediffusion.train.tree_stage import TreeStage

SETTINGS = {"mnist": treevae.mnist(256), "cifar": treevae.cifar(256)}
WINDOWS, PER_WINDOW = 15, 20


def main() -> int:
    """Measures, prints as it goes, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--recipe", nargs=2, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: nothing to measure here")
    found: dict[str, object] = describe(threads=torch.get_num_threads())
    found["gpu"] = torch.cuda.get_device_name()
    found["steps_ms"] = {name: steps(setting) for name, setting in SETTINGS.items()}
    write_json(given.json, found)
    rows = []
    for preset, folder in given.recipe:
        for seed in range(given.seeds):
            rows.append(recipe(preset, folder, seed))
            write_json(given.json, found | {"recipes": rows})
    return 0


def steps(setting: treevae.Setting) -> dict[str, float]:
    """Milliseconds of a training step in each form, and of assigning a batch."""
    torch.manual_seed(0)
    tree, reference = (model.cuda() for model in treevae.trees(setting))
    images = torch.rand(4 * setting.batch, *tree.image_shape, device="cuda")
    noise = torch.randn(setting.batch, tree.topology.num_nodes, *tree.latent_shape, device="cuda")
    rows = torch.arange(setting.batch, device="cuda")
    plain = torch.optim.Adam(reference.parameters(), 1e-3, weight_decay=1e-5)

    def baseline() -> None:
        plain.zero_grad(set_to_none=True)
        torch.autograd.backward(reference.loss(images[rows], noise, 1.0))
        plain.step()

    made = {"node by node": median_ms(baseline)}
    for name, kind in (("ours", Step), ("ours, one graph", GraphedStep)):
        step = kind(TreeObjective(tree, images), make_adam(tree.parameters(), 1e-3))
        step.set(kl_weight=1.0, learning_rate=1e-3)
        for _ in range(WARMUP + 1):
            step(rows)
        made[name] = median_ms(lambda step=step: step(rows))
    tree.eval()
    with torch.inference_mode():
        made["assign"] = median_ms(lambda: tree.assign(images[rows]))
    print(setting.image_size, made, flush=True)
    return made


def median_ms(call: Callable[[], object]) -> float:
    """Of windows of several calls, each window waited for."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(WINDOWS):
        start = time.perf_counter()
        for _ in range(PER_WINDOW):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / PER_WINDOW * 1e3)
    return round(statistics.median(times), 4)


def recipe(preset: str, folder: str, seed: int) -> dict[str, object]:
    """A whole training of a preset's tree, with its minutes and scores on the test images."""
    config = load_preset(preset).tree
    train, test = (load_images(folder, split=split) for split in ("train", "test"))
    images = torch.from_numpy(to_float(train.images)).cuda()
    torch.manual_seed(seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder_of_run:
        (grown,) = TreeStage(images, config, Path(folder_of_run) / "tree.safetensors").run()
    minutes = (time.perf_counter() - start) / 60
    row: dict[str, object] = {"preset": preset, "seed": seed, "minutes": round(minutes, 2)}
    row["elbo"] = grown.state.history[-1]["elbo"]
    if test.labels is not None:
        unseen = torch.from_numpy(to_float(test.images)).cuda()
        leaf = leaf_prob(grown.tree, unseen).argmax(1).cpu().numpy()
        row |= clustering_metrics(test.labels, leaf, grown.tree.topology)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
