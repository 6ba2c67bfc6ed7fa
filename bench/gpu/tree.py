"""What a tree costs on a GPU: a step in its forms, and several trees joined.

    python bench/gpu/tree.py --json OUT.json

Before it come the tests that need a GPU, in the same call: `pytest -m gpu`; after it whole
trainings: `bench/proofs.py`. The forms of a step are the node-by-node reference, ours one operation
after another, ours as one CUDA graph, that compiled, and one graph of 16 trees. Not run yet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the cases
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the baselines' home

import torch
from cases import treevae
from machine import describe
from treediffusion.files import write_json
from treediffusion.nn.grove import Grove
from treediffusion.train.images import TrainingImages
from treediffusion.train.losses import TreeObjective
from treediffusion.train.optimizer import make_adam
from treediffusion.train.step import WARMUP, GraphedStep, Step

SETTINGS = {"mnist": treevae.mnist(256), "cifar": treevae.cifar(256)}
WINDOWS, PER_WINDOW = 15, 20
TREES = 16


def main() -> int:
    """Measures, prints as it goes, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device: nothing to measure here")
    found: dict[str, object] = describe(threads=torch.get_num_threads())
    found["gpu"] = torch.cuda.get_device_name()
    found["steps_ms"] = {name: steps(setting) for name, setting in SETTINGS.items()}
    write_json(given.json, found)
    return 0


def steps(setting: treevae.Setting) -> dict[str, float]:
    """Milliseconds of a training step in each form, and of assigning a batch."""
    torch.manual_seed(0)
    tree, reference = (model.cuda() for model in treevae.trees(setting))
    images = torch.rand(4 * setting.batch, *tree.image_shape, device="cuda")
    placed = TrainingImages(images.cpu().numpy(), "cuda")
    noise = torch.randn(setting.batch, tree.topology.num_nodes, *tree.latent_shape, device="cuda")
    rows = torch.arange(setting.batch, device="cuda")
    plain = torch.optim.Adam(reference.parameters(), 1e-3, weight_decay=1e-5)

    def baseline() -> None:
        plain.zero_grad(set_to_none=True)
        torch.autograd.backward(reference.loss(images[rows], noise, 1.0))
        plain.step()

    made = {"node by node": median_ms(baseline)}
    trees = [treevae.trees(setting)[0].cuda() for _ in range(TREES)]
    grove, many = Grove(trees), rows[:, None].expand(-1, TREES).contiguous()
    forms = (
        ("ours", Step, tree, rows, False),
        ("ours, one graph", GraphedStep, tree, rows, False),
        ("ours, compiled, one graph", GraphedStep, tree, rows, True),
        (f"{TREES} trees, one graph", GraphedStep, grove, many, False),
    )
    for name, kind, trained, picked, compiled in forms:
        optimizer = make_adam(trained.parameters(), 1e-3)
        step = kind(TreeObjective(trained, placed), optimizer, compiled=compiled)
        step.set(kl_weight=1.0, learning_rate=1e-3)
        for _ in range(WARMUP + 1):
            step(picked)
        made[name] = median_ms(lambda step=step, picked=picked: step(picked))
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


if __name__ == "__main__":
    sys.exit(main())
