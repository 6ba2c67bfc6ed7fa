"""DeepECT: both losses pair by pair, the rules of its tree, and clusters that are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_stage import Impatient
from treediffusion.baselines.deepect import MEMORY, ClusterTree
from treediffusion.baselines.deepect_stage import assign, train_deepect
from treediffusion.config import TreeConfig
from treediffusion.errors import ConfigError
from treediffusion.evaluate.clustering import clustering_metrics
from treediffusion.train.budget import OutOfTime
from treediffusion.train.images import TrainingImages

CONFIG = TreeConfig(
    codec="mlp", latent_channels=3, latent_size=1, channels=8, levels=3, max_leaves=4,
    batch_size=16, learning_rate=3e-3, likelihood="gaussian",
    phases={"initial": 6, "subtree": 4, "intermediate": 2, "final": 3},
)  # fmt: skip
LEAVES = 4


def grown() -> ClusterTree:
    """Five nodes r, r0, r1, r10, r11 with centres in a plane of the three axes."""
    torch.manual_seed(0)
    model = ClusterTree(CONFIG, LEAVES, image_channels=6, image_size=1).double()
    model.slot = {"r": 0, "r0": 3, "r1": 1, "r10": 2, "r11": 5}
    with torch.no_grad():
        model.centres.copy_(torch.randn(2 * LEAVES - 1, 3, dtype=torch.float64))
    return model


def blobs() -> tuple[TrainingImages, np.ndarray]:
    """Four classes of vectors around corners that are far apart."""
    numbers = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    corners = numbers.integers(0, 2, (4, 10)) * 0.8 + 0.1
    corners[:, :4] = np.eye(4) * 0.8 + 0.1
    points = np.clip(corners[labels] + numbers.normal(0, 0.02, (160, 10)), 0, 1)
    order = numbers.permutation(160)
    vectors = points[order].astype(np.float32)[:, :, None, None]
    return TrainingImages(vectors), labels[order]


def test_both_losses_are_their_definitions() -> None:
    model = grown()
    z = torch.randn(12, 3, dtype=torch.float64)
    names = ["r0", "r10", "r11"]
    centre = {name: model.centres[row].detach() for name, row in model.slot.items()}
    leaf = [min(names, key=lambda n, one=one: float((one - centre[n]).norm())) for one in z]
    centring = 0.0
    for name in names:
        mine = [one for one, where in zip(z, leaf, strict=True) if where == name]
        if mine:
            centring += float((centre[name] - torch.stack(mine).mean(0)).norm()) / len(names)
    pairs = [("r0", "r1"), ("r1", "r0"), ("r10", "r11"), ("r11", "r10")]
    compression = 0.0
    for name, sibling in pairs:
        line = (centre[name] - centre[sibling]) / (centre[name] - centre[sibling]).norm()
        for one, where in zip(z, leaf, strict=True):
            if where.startswith(name):
                compression += abs(float((centre[name] - one) @ line)) / (len(pairs) * len(z))
    found = model.losses(z)
    assert found[0].item() == pytest.approx(centring)
    assert found[1].item() == pytest.approx(compression)


def test_what_each_loss_moves() -> None:
    """Centring moves the leaves' centres and no code; compression codes and no centre."""
    for place, moves_centres in ((0, True), (1, False)):
        model, z = grown(), torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        loss = model.losses(z)[place]
        centres, codes = torch.autograd.grad(loss, [model.centres, z], allow_unused=True)
        assert (centres is not None and bool(centres.any())) == moves_centres
        assert (codes is not None and bool(codes.any())) != moves_centres
        if centres is not None:
            inner = [model.slot["r"], model.slot["r1"]]
            assert not centres[inner].any()


def test_inner_centres_are_the_means_of_what_is_below() -> None:
    model = grown()
    model.size[[2, 5, 3, 1]] = torch.tensor([3.0, 1.0, 6.0, 4.0], dtype=torch.float64)
    model.settle()
    c = model.centres
    torch.testing.assert_close(c[1], 0.75 * c[2] + 0.25 * c[5])
    torch.testing.assert_close(c[0], 0.6 * c[3] + 0.4 * c[1])


def test_sizes_fade_by_half_in_a_step() -> None:
    model, z = grown(), torch.randn(12, 3, dtype=torch.float64)
    model.size.fill_(8.0)
    model.losses(z)
    rows = [model.slot[name] for name in ("r0", "r10", "r11")]
    assert float(model.size[0]) == pytest.approx(MEMORY * 8 + (1 - MEMORY) * 12)
    assert float(model.size[rows].sum()) == pytest.approx(3 * MEMORY * 8 + (1 - MEMORY) * 12)


def test_a_node_without_images_gives_way_to_its_sibling() -> None:
    model = grown()
    model.size.fill_(5.0)
    model.size[model.slot["r0"]] = 0.01
    model.settle()
    assert model.slot == {"r": 1, "r0": 2, "r1": 5}


def test_the_leaf_with_the_largest_sum_of_squares_is_split_in_two() -> None:
    """r10 holds few codes far apart, r0 many that are close: the sum counts, not the mean."""
    model = grown()
    with torch.no_grad():
        model.centres[[3, 2, 5]] = torch.tensor(
            [[0.0, 0, 0], [100, 0, 0], [0, 100, 0]], dtype=torch.float64
        )
    wide = torch.tensor([[100.0, 0, 9], [100, 0, -9]] * 3, dtype=torch.float64)
    narrow = torch.randn(50, 3, dtype=torch.float64) * 0.1
    model.split(torch.cat([narrow, wide]), seed=0)
    assert set(model.slot) == {"r", "r0", "r1", "r10", "r11", "r100", "r101"}
    halves = model.centres[[model.slot["r100"], model.slot["r101"]]]
    assert sorted(halves[:, 2].tolist()) == pytest.approx([-9, 9])
    assert len(set(model.slot.values())) == 7


def test_codes_that_are_all_the_same_are_not_split() -> None:
    model = grown()
    model.split(torch.zeros(9, 3, dtype=torch.float64), seed=0)
    assert len(model.slot) == 5


def test_blobs_that_are_apart_end_in_leaves_of_their_own(tmp_path: Path) -> None:
    vectors, labels = blobs()
    model = train_deepect(vectors, CONFIG, LEAVES, tmp_path / "ect", seed=0)
    scores = clustering_metrics(labels, assign(model, vectors).numpy(), model.topology)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))


def test_a_stopped_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    vectors, _ = blobs()
    straight = train_deepect(vectors, CONFIG, 3, tmp_path / "a", seed=1)
    stops, finished = 0, None
    while finished is None:
        try:
            finished = train_deepect(
                vectors, CONFIG, 3, tmp_path / "b", seed=1, progress=Impatient(47)
            )
        except OutOfTime:
            stops += 1
    assert stops >= 2
    assert finished.slot == straight.slot
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, finished.state_dict()[name]), name


@pytest.mark.parametrize("leaves", [1, 161])
def test_leaves_must_fit_the_images(leaves: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 to 160"):
        train_deepect(blobs()[0], CONFIG, leaves, tmp_path / "x", seed=0)
