"""How far the goals of PyTorch's convolutions could be reached at best, on this core.

    python bench/bounds.py [--json bench/results/bounds.json]

The other side's floating-point operations in convolutions and products of matrices, at the best
rate at which this core convolves, are what a direct method cannot go below. So

    bound = the other side's time / (its operations / that rate)

is the ratio if everything else were free. Winograd's products are fewer, and may exceed it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the baselines' home

import torch
from cases import denoising, treevae
from cases.pair import Case, prepare, threads
from machine import describe
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from treediffusion.files import write_json

CASES: dict[str, Case] = {
    "treevae/step-mnist-32": lambda: treevae.step(treevae.mnist(32)),
    "treevae/step-cifar-32": lambda: treevae.step(treevae.cifar(32)),
    "treevae/step-cifar-128": lambda: treevae.step(treevae.cifar(128)),
    "diffusion/step-16": lambda: denoising.eager_step(denoising.mnist(), 16),
    "diffusion/train-step": lambda: denoising.training(denoising.mnist(), 16),
}
MAPS = ((16, 64, 32), (16, 128, 16), (32, 128, 8))
"""Images, channels and side of the convolutions that are tried for the best rate."""
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    prepare()
    rate = max(_rate(*sizes) for sizes in MAPS)
    print(f"best convolution: {rate / 1e9:.1f} GFLOP/s on one core")
    rows = []
    for name, case in CASES.items():
        ours, baseline = case()
        with FlopCounterMode(display=False) as counted:
            baseline()
        work, slow, fast = counted.get_total_flops(), _seconds(baseline), _seconds(ours)
        rows.append({
            "name": name, "gflop": work / 1e9, "ours_s": fast, "baseline_s": slow,
            "ratio": slow / fast, "bound": slow * rate / work,
        })  # fmt: skip
        print(f"{name:24} {slow / fast:5.2f}x of at most {slow * rate / work:5.2f}x", flush=True)
    if told.json is not None:
        facts = {"format": 1} | describe(threads=threads())
        write_json(told.json, facts | {"best_gflop_per_s": rate / 1e9, "rows": rows})


@torch.no_grad()
def _rate(images: int, channels: int, side: int) -> float:
    """Operations a second of a 3x3 convolution, in the better layout."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(images, channels, side, side).to(memory_format=layout)
        conv(x)
        found.append(min(_timed(conv, x) for _ in range(REPEATS)))
    return 2 * 9 * images * (channels * side) ** 2 / min(found)


def _timed(conv: nn.Module, x: torch.Tensor) -> float:
    began = time.process_time()
    conv(x)
    return time.process_time() - began


def _seconds(side: Callable[[], object]) -> float:
    side()
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        side()
        found.append(time.process_time() - began)
    return statistics.median(found)


if __name__ == "__main__":
    main()
