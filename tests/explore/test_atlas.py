"""What a page shows: shares that add up, images of the engine, routers, and who is nearest."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.atlases import bars, page_values
from support.models import IRREGULAR, tiny_bundle
from treediffusion.cli_explore import Explore
from treediffusion.errors import BundleFormatError, ConfigError, DataError, ShapeError
from treediffusion.explore import Amounts, Atlas, Node, RealImages, clusters_atlas, collect, render
from treediffusion.explore.collect import _router, images_to_draw
from treediffusion.explore.finder import _fields, make_finder
from treediffusion.explore.sprites import pack
from treediffusion.progress import Progress
from treediffusion.runtime import Engine
from treediffusion.topology import TreeTopology

AMOUNTS = Amounts(leaf=3, inner=2, roots=2, members=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def atlas(engine: Engine) -> Atlas:
    images, place = bars(60)
    return collect(engine, RealImages(images, place), title="bars", seed=7, amounts=AMOUNTS)


def children(atlas: Atlas) -> dict[str, list[Node]]:
    """The nodes right below each, among those that are shown."""
    names = [node.name for node in atlas.nodes]
    found: dict[str, list[Node]] = {name: [] for name in names}
    for node in atlas.nodes[1:]:
        above = max((n for n in names if node.name.startswith(n) and n != node.name), key=len)
        found[above].append(node)
    return found


# ---- numbers ----------------------------------------------------------------------------------


def check_sums(atlas: Atlas) -> None:
    below = children(atlas)
    assert atlas.nodes[0].share == pytest.approx(1)
    for node in atlas.nodes:
        if below[node.name]:
            assert sum(child.share for child in below[node.name]) == pytest.approx(node.share)
            if node.count is not None:
                assert sum(child.count or 0 for child in below[node.name]) == node.count
        if node.classes is not None:
            assert sum(node.classes) == node.count


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_shares_of_children_sum_to_the_parents(leaves: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = TreeTopology.of(["r"]) if leaves == 1 else TreeTopology.initial()
    while tree.num_leaves < leaves:
        tree = tree.grow(str(rng.choice([n for n in tree.leaf_names if len(n) < 6])))
    for _ in range(int(rng.integers(0, max(1, leaves - 1)))):
        tree = tree.prune(str(rng.choice(tree.leaf_names)))
    images, place = bars(30, seed=1)
    leaf = rng.integers(0, tree.num_leaves, 30)
    atlas = clusters_atlas(tree, leaf, RealImages(images, place))
    check_sums(atlas)
    below = children(atlas)
    assert all(len(below[node.name]) in (0, 2) for node in atlas.nodes[1:])
    assert [n.name for n in atlas.nodes if not below[n.name]] == list(tree.leaf_names)
    render(atlas)


def test_shares_of_a_model_sum_with_and_without_real_images(engine: Engine, atlas: Atlas) -> None:
    check_sums(atlas)
    alone = collect(engine, amounts=AMOUNTS)
    check_sums(alone)
    assert [n.share for n in alone.nodes] == pytest.approx(
        [engine.node_share[engine.topology.row(n.name)] for n in alone.nodes]
    )
    assert alone.total is None
    assert alone.classes is None
    assert all(node.count is None and not node.members for node in alone.nodes)
    assert alone.finder is not None
    assert alone.finder.generated


def test_a_node_with_a_single_child_is_left_out_and_the_root_stays(atlas: Atlas) -> None:
    assert [node.name for node in atlas.nodes] == ["r", "r1", "r00", "r000", "r001"]
    chain = TreeTopology.of(["r", "r0", "r00", "r000", "r001"])
    images, place = bars(8)
    shown = clusters_atlas(chain, place % 2, RealImages(images))
    assert [node.name for node in shown.nodes] == ["r", "r00", "r000", "r001"]


def test_images_are_those_of_the_engine(engine: Engine, atlas: Atlas) -> None:
    """The command on the card draws the card's images; pairs and roots are the sheet's."""
    by_name = {node.name: node for node in atlas.nodes}
    for name, many in (("r", 2), ("r00", 2), ("r000", 3)):
        made = engine.generate(many, node=name, seed=7)
        samples = by_name[name].samples
        assert np.array_equal(atlas.tiles[[s.tile for s in samples]], made.images)
        assert [s.leaf for s in samples] == made.leaf.tolist()
        assert np.allclose([s.prob for s in samples], made.leaf_prob, atol=6e-4)
    sheet = engine.generate_leaves(2, seed=7)
    own = engine.decode_prior(2, seed=7)
    leaf = atlas.leaves.index("r001")
    for decoded, drawn in by_name["r001"].roots:
        found = [
            root
            for root in range(2)
            if np.array_equal(atlas.tiles[drawn], sheet.images[root, leaf])
            and np.array_equal(atlas.tiles[decoded], own.images[root, leaf])
        ]
        assert found
    ends = [atlas.leaves.index(name) for name in ("r000", "r001")]
    for pair in by_name["r00"].pairs:
        assert any(
            np.array_equal(atlas.tiles[list(pair)], sheet.images[root, ends]) for root in range(2)
        )


def test_the_nearest_real_image_is_the_nearest(atlas: Atlas) -> None:
    images = bars(60)[0].astype(np.int64)
    for node in atlas.nodes:
        for sample in node.samples:
            new = atlas.tiles[sample.tile].astype(np.int64)
            shown = atlas.tiles[sample.nearest].astype(np.int64)
            least = np.square(images - new).sum(axis=(1, 2, 3)).min()
            assert np.square(shown - new).sum() == least


def test_members_are_real_images_of_the_node(engine: Engine, atlas: Atlas) -> None:
    images = bars(60)[0]
    leaf = engine.assign(images).argmax(axis=1)
    for node in atlas.nodes:
        below = set(engine.topology.leaves_below(node.name).tolist())
        here = {image.tobytes() for image, k in zip(images, leaf, strict=True) if k in below}
        assert {atlas.tiles[tile].tobytes() for tile in node.members} <= here
        assert len(node.members) == min(4, len(here))


def test_a_router_in_numbers_by_hand() -> None:
    tree = TreeTopology.initial()
    prob = np.array([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25], [0.75, 0.25]])
    reach = np.stack([np.ones(4), prob[:, 0], prob[:, 1]], axis=1)
    found = _router(tree, 0, prob, reach)
    assert found is not None
    assert found.left == 0.625
    assert found.confidence == 0.875
    assert found.histogram == [0.25, 0, 0, 0, 0, 0, 0, 0.5, 0, 0.25]
    assert _router(tree, 1, prob, reach) is None


def test_a_router_counts_an_image_as_far_as_it_gets_there() -> None:
    tree = TreeTopology.of(["r", "r0", "r1", "r00", "r01"])
    prob = np.zeros((2, 3))
    prob[:, list(tree.leaf_names).index("r1")] = [0.0, 0.75]
    prob[:, list(tree.leaf_names).index("r00")] = [1.0, 0.0]
    prob[:, list(tree.leaf_names).index("r01")] = [0.0, 0.25]
    reach = np.stack([prob[:, tree.leaves_below(name)].sum(axis=1) for name in tree.names], axis=1)
    found = _router(tree, tree.row("r0"), prob, reach)
    assert found is not None
    assert found.left == 0.8  # one whole image left, a quarter of one right


def test_the_bar_moves_by_every_image_drawn(engine: Engine) -> None:
    progress = Progress(1, "", quiet=True)
    collect(engine, amounts=AMOUNTS, progress=progress, num_inference_steps=1)
    assert progress.done == images_to_draw(IRREGULAR, AMOUNTS) == (3 + 2) * 3 + 2 * 2


# ---- the finder -------------------------------------------------------------------------------


def test_known_images_find_their_own_leaf_and_unknown_ones_of_their_kind_too() -> None:
    images, place = bars(400)
    finder = make_finder(images, place, 4, generated=False)
    assert finder.agreement == 1
    assert finder.held_out == 160
    assert len(finder.leaf) == 240
    votes = finder.leaf_probabilities(images, 4)
    assert np.array_equal(votes.argmax(axis=1), place)
    assert np.allclose(votes.sum(axis=1), 1)


def test_agreement_counts_images_that_are_not_known() -> None:
    """Labels that nothing in the images tells are guessed."""
    images = bars(800)[0]
    told = np.random.default_rng(2).integers(0, 4, 800)
    finder = make_finder(images, told, 4, generated=False)
    assert finder.agreement is not None
    assert 0.15 < finder.agreement < 0.35
    few = make_finder(images[:20], told[:20], 4, generated=False)
    assert few.agreement is None


@pytest.mark.parametrize(("side", "grid"), [(8, 8), (28, 8), (5, 5), (33, 8)])
def test_fields_are_means(side: int, grid: int) -> None:
    weight = _fields(side, grid)
    assert np.allclose(weight.sum(axis=1), 1)
    assert np.allclose(weight.sum(axis=0), grid / side)


def test_light_and_contrast_do_not_change_the_answer() -> None:
    images, place = bars(400)
    finder = make_finder(images, place, 4, generated=False)
    paler = (images // 3 + 90).astype(np.uint8)
    assert np.array_equal(finder.leaf_probabilities(paler, 4).argmax(axis=1), place)
    flat = finder.leaf_probabilities(np.full((1, 1, 8, 8), 9, np.uint8), 4)
    assert np.isfinite(flat).all()


def test_the_same_atlas_is_the_same_page(engine: Engine, atlas: Atlas) -> None:
    images, place = bars(60)
    again = collect(engine, RealImages(images, place), title="bars", seed=7, amounts=AMOUNTS)
    assert render(again) == render(atlas)


def test_classes_are_those_that_occur() -> None:
    images = bars(4)[0]
    assert RealImages(images).classes() is None
    names, index = RealImages(images, np.array([7, 3, 7, 3])).classes() or ((), np.empty(0))
    assert names == ("3", "7")
    assert index.tolist() == [1, 0, 1, 0]
    named = RealImages(images, np.array([0, 2, 5, 0]), ("a", "b", "c")).classes()
    assert named is not None
    assert named[0] == ("a", "c", "5")


# ---- mistakes, and the command ----------------------------------------------------------------


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    images = bars(8)[0]
    with pytest.raises(ShapeError, match="uint8"):
        RealImages(images.astype(np.float32))
    with pytest.raises(ShapeError, match="one for each image"):
        RealImages(images, np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match="one for each image"):
        clusters_atlas(TreeTopology.initial(), np.zeros(3, np.int64), RealImages(images))
    with pytest.raises(ShapeError, match="images"):
        collect(engine, RealImages(np.zeros((2, 1, 9, 9), np.uint8)), amounts=AMOUNTS)
    with pytest.raises(ConfigError, match="leaf"):
        Amounts(leaf=-1)
    with pytest.raises(ConfigError, match="assigned"):
        Amounts(assigned=0)
    with pytest.raises(ShapeError, match="one channel or three"):
        pack(np.zeros((2, 2, 8, 8), np.uint8))


def test_nothing_drawn_is_a_page_at_once(engine: Engine) -> None:
    """What a server shows before anybody asked for an image."""
    none = Amounts(leaf=0, inner=0, roots=0)
    found = collect(engine, amounts=none)
    assert found.finder is None
    assert all(not node.samples and not node.pairs for node in found.nodes)
    render(found)


def test_many_images_are_looked_at_in_part(engine: Engine) -> None:
    images, place = bars(50)
    few = dataclasses.replace(AMOUNTS, assigned=20)
    found = collect(engine, RealImages(images, place), amounts=few, num_inference_steps=1)
    assert found.total == 20
    assert found.nodes[0].count == 20


@pytest.mark.parametrize("kind", ["bundle", "run"])
def test_the_command_writes_the_page_into_the_folder(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with a bundle needs no export; the page names no path."""
    shutil.copytree(tiny_bundle(), tmp_path / "run" / "bundle")
    (tmp_path / "run" / "config.json").write_text("{}")
    model = tmp_path / "run" if kind == "run" else tmp_path / "run" / "bundle"
    np.savez(tmp_path / "mine.npz", images=bars(40)[0], labels=bars(40)[1])
    command = Explore(model, data=str(tmp_path / "mine.npz"))
    command.drawing.num_inference_steps = 1
    assert command.run() == 0
    page = (model / "explorer.html").read_text()
    assert page_values(page)["title"] == "mine"
    assert str(tmp_path) not in page
    assert "3 leaves" in capsys.readouterr().out
    Engine.load(tmp_path / "run" / "bundle").close()  # whole, page or not


def test_the_command_goes_without_the_training_images_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Explore(tiny_bundle(), out=tmp_path / "page.html")
    command.drawing.num_inference_steps = 1
    assert command.run() == 0
    assert "no real images on the page: data: got 'digits-1'" in capsys.readouterr().out
    assert page_values((tmp_path / "page.html").read_text())["total"] is None


def test_the_commands_mistakes(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="absent"):
        Explore(tmp_path / "absent").run()
    with pytest.raises(DataError, match="absent"):
        Explore(tiny_bundle(), data=str(tmp_path / "absent"), out=tmp_path / "p.html").run()


def test_pages_are_made_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['matplotlib'] = None\n"
        "import treediffusion.explore, treediffusion.cli_explore"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
