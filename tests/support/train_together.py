"""What each process of a team does: `torchrun ... train_together.py FOLDER SCENARIO`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from treediffusion.train import checkpoint
from treediffusion.train.budget import OutOfTime
from treediffusion.train.distributed import Team, joined

from support.small_stage import Impatient, small_config, small_stage

AVERAGES = {"ema": 0.9, "ema_also": (0.5,)}


def die(folder: Path, team: Team) -> None:
    """The leader is gone right after its fourth checkpoint; one is written in every step."""
    checkpoint.INTERVAL_S = -1.0
    real, saves = checkpoint.save, [0]

    def save(path: Path, *content: object) -> None:
        real(path, *content)  # type: ignore[arg-type]
        saves[0] += 1
        if saves[0] == 4:
            os._exit(9)

    checkpoint.save = save  # type: ignore[assignment]
    small_stage(folder / "killed", small_config(**AVERAGES), team=team).run()


def train(folder: Path, team: Team) -> None:
    """Straight; stopped by the leader's clock and continued; what a dead team left, continued."""
    config = small_config(**AVERAGES)
    small_stage(folder / "straight", config, team=team).run()

    if (folder / "killed").exists():
        small_stage(folder / "killed", config, team=team).run()

    # The follower's own time is over first, and does not count.
    progress = Impatient(5 if team.leads else 2)
    left = ""
    try:
        small_stage(folder / "stopped", config, team=team, progress=progress).run()
    except OutOfTime:
        left = "out of time"
    except SystemExit as end:
        left = f"exit {end.code}"
    assert left == ("out of time" if team.leads else "exit 0"), left
    dist.barrier()
    small_stage(folder / "stopped", config, team=team).run()

    # With dropout, masks differ; weights and the numbers in common do not.
    stage = small_stage(folder / "masked", small_config(unet={"dropout": 0.5}), team=team)
    stage.run()
    with torch.no_grad():
        sums = [float(weight.double().sum()) for weight in stage.ema.module.parameters()]
    sums.append(float(torch.rand(())))
    first = torch.tensor(sums, dtype=torch.float64)
    dist.broadcast(first, src=0)
    assert first.tolist() == sums

    shown = team.in_turn(lambda: (folder / "shown").write_text(str(team.rank)))
    assert shown == 1

    def fail() -> None:
        (folder / f"failing {team.rank}").touch()
        raise ValueError

    try:
        team.in_turn(fail)
    except ValueError:
        left = "failed"
    except SystemExit as end:
        left = f"exit {end.code}"
    assert left == ("failed" if team.leads else "exit 0"), left


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as joint:
        {"die": die, "train": train}[sys.argv[2]](Path(sys.argv[1]), joint)
        if not joint.leads:
            (Path(sys.argv[1]) / f"{sys.argv[2]} followed").touch()
