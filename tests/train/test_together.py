"""Several trees in one stage: each grows by its own decisions, and a stopped stage goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from treediffusion.config import Config, TreeConfig
from treediffusion.progress import Progress
from treediffusion.topology import TreeTopology
from treediffusion.train import checkpoint, restarts
from treediffusion.train.budget import OutOfTime
from treediffusion.train.grower import Grower
from treediffusion.train.images import TrainingImages
from treediffusion.train.selection import choose_tree, compare_trees, describe_trees
from treediffusion.train.tree_stage import TreeStage, save_grown

SEEDS = (3, 4, 5)
CONFIG = TreeConfig.model_validate(
    {
        "latent_channels": 2,
        "channels": 8,
        "levels": 4,
        "max_leaves": 4,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "phases": {
            "initial": 6, "subtree": 3, "intermediate": 2, "final": 2, "intermediate_every": 1,
        },
    }
)  # fmt: skip


def images() -> TrainingImages:
    """Bars at four places, so that leaves have something to part."""
    generator = torch.Generator().manual_seed(0)
    found = 0.2 * torch.rand(70, 1, 8, 8, generator=generator)
    for number in range(len(found)):
        found[number, :, :, 2 * (number % 4)] += 0.8
    return TrainingImages(found.numpy())


def stage(folder: Path, progress: Progress | None = None) -> TreeStage:
    return TreeStage(images(), CONFIG, folder / "trees.safetensors", progress, seeds=SEEDS)


class Limited(Progress):
    """Ends the call after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(1, "", quiet=True)
        self.steps = steps

    def advance(self, amount: float, description: str) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise OutOfTime(description, 0.0, None)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> list[Grower]:
    return stage(tmp_path_factory.mktemp("whole")).run()


def test_every_tree_is_finished_and_its_own(grown: list[Grower]) -> None:
    for number, tree in enumerate(grown):
        assert tree.done
        assert all(math.isfinite(row["elbo"]) for row in tree.state.history)
        assert tree.state.history[0]["phase"] == "initial"
        assert tree.state.history[-1]["phase"] == "final"
        assert tree.state.node_share[0] == pytest.approx(1)
        written = TreeTopology.from_json(tree.path.read_text())
        assert written == tree.tree.topology
        assert tree.path.name == f"tree-{number}.json"
    elbos = {tree.state.history[-1]["elbo"] for tree in grown}
    assert len(elbos) == len(SEEDS)


def test_training_moves_every_tree(grown: list[Grower]) -> None:
    """From the ELBO after the first phase to that after the last."""
    for tree in grown:
        first, last = (tree.state.history[k]["reconstruction"] for k in (0, -1))
        assert last < first


@pytest.mark.parametrize("stops", [(1,), (27, 3, 9), (24, 16)])
def test_a_stage_that_is_stopped_ends_bit_for_bit_alike(
    stops: tuple[int, ...], grown: list[Grower], tmp_path: Path
) -> None:
    for steps in stops:
        with pytest.raises(OutOfTime):
            stage(tmp_path, Limited(steps)).run()
        torch.rand(17)  # what happens in between does not matter
    again = stage(tmp_path).run()
    for mine, theirs in zip(again, grown, strict=True):
        assert mine.tree.topology == theirs.tree.topology
        assert mine.state.history == theirs.state.history
        expected = theirs.tree.state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in mine.tree.state_dict().items())


def test_a_tree_that_needs_another_phase_does_not_hold_the_others_back(tmp_path: Path) -> None:
    """Those in the first kind of phase are trained; the others wait, unchanged."""
    three = stage(tmp_path)
    for tree, kind in zip(three.growers, ("final", "initial", "final"), strict=True):
        tree.state.phase = type(tree.state.phase)(kind)
    three._begin_phase()
    assert three._round == [three.growers[1]]
    assert three._trained is three.growers[1].tree
    three.growers[1].state.phase = type(three.growers[1].state.phase)("done")
    assert three._round == [three.growers[0], three.growers[2]]


def test_the_kept_tree_is_a_checkpoint_like_any_other(grown: list[Grower], tmp_path: Path) -> None:
    kept = choose_tree(grown, CONFIG)
    save_grown(kept, tmp_path / "tree.safetensors")
    (again,) = TreeStage(images(), CONFIG, tmp_path / "tree.safetensors").run()
    assert again.state == kept.state
    torch.testing.assert_close(again.leaf_prob(), kept.leaf_prob(), rtol=0, atol=0)
    with_stage = checkpoint.load(tmp_path / "tree.safetensors")[0]
    assert {name.partition(".")[0] for name in with_stage} == {"model", "rng"}


def test_mean_and_deviation_are_those_of_the_trees(grown: list[Grower]) -> None:
    found = compare_trees(grown, choose_tree(grown, CONFIG))
    elbos = torch.tensor([tree.state.history[-1]["elbo"] for tree in grown], dtype=torch.float64)
    assert found["mean"]["elbo"] == pytest.approx(elbos.mean().item())
    assert found["deviation"]["elbo"] == pytest.approx(elbos.std().item())
    assert found["trees"][found["kept"]]["elbo"] == elbos.max().item()
    assert f"kept tree {found['kept']} of 3: ELBO" in describe_trees(found)


def test_trees_go_on_in_the_form_they_were_begun_in(tmp_path: Path) -> None:
    """A run that changes machines would otherwise begin anew."""
    config = Config(tree=CONFIG.model_copy(update={"restarts": len(SEEDS)}))
    with pytest.raises(OutOfTime):
        TreeStage(
            images(), config.tree, tmp_path / restarts.TOGETHER, Limited(9),
            seeds=[number * restarts.SEED_STRIDE for number in range(len(SEEDS))],
        ).run()  # fmt: skip
    quiet = Progress(1, "", quiet=True)
    trees = restarts.train_trees(images(), config, tmp_path, quiet, lambda line: None)
    assert all(tree.done for tree in trees)
    assert not (tmp_path / restarts.APART.format(0)).exists()


def test_an_epoch_is_as_long_as_the_longest_trees(tmp_path: Path) -> None:
    """Whole batches of each tree's images, and trees with fewer see theirs again."""
    three = stage(tmp_path)
    batches = list(three._batches(three.growers, [48, 16, 35]))
    assert [tuple(rows.shape) for rows in batches] == [(16, 3)] * 3
    rows = torch.cat(batches)
    assert sorted(rows[:, 0].tolist()) == list(range(48))
    assert sorted(rows[:, 1].tolist()) == sorted(list(range(16)) * 3)
    first = rows[:32, 2].tolist()
    assert len(set(first)) == 32
    assert rows[:, 2].max() < 35
