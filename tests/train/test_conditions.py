"""What the denoiser is told of training images: leaves, latents, what is left out, and pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from treediffusion.config import DiffusionConfig, TreeConfig
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train import conditions
from treediffusion.train.conditions import Conditions
from treediffusion.train.images import TrainingImages

TREE = TreeTopology.initial().grow("r1").grow("r10")
MANY = 4000


@pytest.fixture(scope="module")
def tree() -> TreeVAE:
    torch.manual_seed(0)
    config = TreeConfig(latent_channels=2, channels=32, levels=5)
    made = TreeVAE(config, TREE, image_channels=1, image_size=8).eval()
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> TrainingImages:
    drawn = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TrainingImages(drawn.numpy())


def lengths(ids: Tensor) -> list[int]:
    return (ids >= 0).sum(dim=1).tolist()


def test_leaves_are_drawn_by_their_probability(tree: TreeVAE, images: TrainingImages) -> None:
    """Within four deviations of the share that p(l | x) gives each leaf."""
    torch.manual_seed(0)
    told = Conditions(images, tree, DiffusionConfig()).draw(torch.full((MANY,), 1))
    last = [max(path) for path in told.nodes.tolist()]
    prob = tree.assign(images[1:2]).exp()[0]
    for leaf, row in enumerate(TREE.leaves.tolist()):
        p = float(prob[leaf])
        # A leaf's row is the largest on its path, as rows are breadth first.
        share = sum(found == row for found in last) / MANY
        assert abs(share - p) < 4 * (p * (1 - p) / MANY) ** 0.5


@pytest.mark.parametrize("signal", ["leaf_id", "leaf_embedding", "leaf_id_embedding"])
def test_a_leafs_signal_has_one_slot(tree: TreeVAE, images: TrainingImages, signal: str) -> None:
    told = Conditions(images, tree, DiffusionConfig(signal=signal)).draw(torch.arange(3))  # type: ignore[arg-type]
    assert told.nodes.shape == (3, 1)
    assert set(told.nodes[:, 0].tolist()) <= set(range(TREE.num_leaves))
    assert told.z_path.shape == (3, 1, 2 * tree.latent_size**2)


def test_the_picture_is_that_of_the_drawn_leaf(tree: TreeVAE, images: TrainingImages) -> None:
    """Decoded from the very latents that the path holds."""
    torch.manual_seed(0)
    config = DiffusionConfig(signal="leaf_id_embedding", reconstruction="concat")
    told = Conditions(images, tree, config).draw(torch.arange(3))
    assert told.reconstruction is not None
    assert told.reconstruction.shape == images.shape
    for image, z, leaf in zip(
        told.reconstruction, told.z_path[:, 0], told.nodes[:, 0].tolist(), strict=True
    ):
        everywhere = z.view(1, 1, *tree.latent_shape).expand(1, TREE.num_nodes, -1, -1, -1)
        torch.testing.assert_close(image, tree.decode(everywhere)[0, leaf], rtol=0, atol=1e-5)


def test_no_decoder_runs_where_its_picture_is_not_seen(
    tree: TreeVAE, images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree.nodes, "decode", None)
    assert Conditions(images, tree, DiffusionConfig()).draw(torch.arange(3)).reconstruction is None


def test_signals_are_left_out_for_their_share(tree: TreeVAE, images: TrainingImages) -> None:
    torch.manual_seed(0)
    told = Conditions(images, tree, DiffusionConfig(path_dropout=0.25)).draw(
        torch.zeros(MANY).long()
    )
    empty = lengths(told.nodes).count(0) / MANY
    assert abs(empty - 0.25) < 4 * (0.25 * 0.75 / MANY) ** 0.5


def test_paths_are_cut_to_every_length_alike(tree: TreeVAE, images: TrainingImages) -> None:
    """Always a path from the root on; a cut one misses its leaf, and may be empty."""
    torch.manual_seed(0)
    told = Conditions(images, tree, DiffusionConfig(level_dropout=1.0)).draw(
        torch.zeros(MANY).long()
    )
    paths = {tuple(path) for path in TREE.paths.tolist()}
    cuts = {tuple(path[:k]) + (-1,) * (len(path) - k) for path in paths for k in range(len(path))}
    found = [tuple(ids) for ids in told.nodes.tolist()]
    assert set(found) <= cuts - paths
    assert {len([k for k in ids if k >= 0]) for ids in found} >= {0, 1}


def test_the_same_seed_draws_the_same(tree: TreeVAE, images: TrainingImages) -> None:
    source = Conditions(images, tree, DiffusionConfig(path_dropout=0.5, level_dropout=0.5))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(source.draw(torch.arange(3)))
    assert torch.equal(drawn[0].z_path, drawn[1].z_path)
    assert torch.equal(drawn[0].nodes, drawn[1].nodes)


@pytest.mark.parametrize("reconstruction", ["none", "concat"])
def test_what_there_is_no_room_for_is_computed_for_each_batch(
    reconstruction: str, tree: TreeVAE, images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the maps and logits of three images is asked for."""
    config = DiffusionConfig.model_validate({"reconstruction": reconstruction})
    asked, drawn = [], []
    for room in (True, False):
        monkeypatch.setattr(
            conditions, "has_room", lambda *ask, room=room: (asked.append(ask), room)[1]
        )
        source = Conditions(images, tree, config)
        torch.manual_seed(3)
        drawn.append(source.draw(torch.tensor([2, 0])))
    kept, fresh = drawn
    assert torch.equal(kept.nodes, fresh.nodes)
    torch.testing.assert_close(kept.z_path, fresh.z_path)
    torch.testing.assert_close(kept.reconstruction, fresh.reconstruction)
    features = tree.bottom_up(images[:])
    logit = tree.nodes.route(features[:, None])
    assert asked == [(images.device, features.nbytes + logit.nbytes)] * 2
