"""Every conditioning, prediction and solver through the whole path: model, bundle, runtime.

That a bundle computes what its model does, drawing included, is proved where it is exported; an
export that passes is half of each test here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.models import IRREGULAR, tiny_bundle, tiny_model
from treediffusion.bundle import Bundle
from treediffusion.config import load_preset
from treediffusion.diffusion.model import make_denoiser
from treediffusion.errors import ConfigError, TopologyError
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.runtime import Engine
from treediffusion.solvers import SOLVERS
from treediffusion.topology import TreeTopology

ROWS: dict[str, dict[str, Any]] = {
    # fact sheet 6.1, from the top; then form2, v and EDM
    "reconstruction": {"signal": "none", "reconstruction": "concat"},
    "reconstruction + leaf id": {"signal": "leaf_id", "reconstruction": "concat"},
    "reconstruction + leaf embedding": {"signal": "leaf_embedding", "reconstruction": "concat"},
    "leaf id + embedding": {"signal": "leaf_id_embedding"},
    "reconstruction + path": {"reconstruction": "concat", "pixel_range": "0..1"},
    "none": {"signal": "none"},
    "form2": {"reconstruction": "shift", "prediction": "v"},
    "edm": {"schedule": "edm", "prediction": "v", "augmentation": "edm"},
}
GUIDED = {"path_dropout": 0.1, "level_dropout": 0.1}
FEW: dict[str, Any] = {"num_inference_steps": 5, "spacing": "logsnr"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(tiny_bundle(), threads=1)


@pytest.fixture(scope="module")
def guided() -> Engine:
    return Engine.load(tiny_bundle(**GUIDED), threads=1)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_papers_exports_and_draws(row: str) -> None:
    """Two leaves differ exactly where the leaf is told, or its picture is seen."""
    with Engine.load(tiny_bundle(**ROWS[row]), threads=1) as engine:
        sheet = engine.generate_leaves(1, **FEW)
        made = engine.generate(2, **FEW)
    assert made.images.shape == (2, 1, 8, 8)
    same = all(np.array_equal(sheet.images[0, 0], image) for image in sheet.images[0])
    assert same == (row == "none")


COUNTS = [  # fact sheet 6.5: preset, changed settings, parameters
    ("paper-mnist", {}, 9_408_449),
    ("paper-mnist", {"reconstruction": "concat"}, 9_408_449 + 576),
    ("paper-mnist", {"signal": "none"}, 8_618_241),
    ("paper-mnist", {"signal": "none", "reconstruction": "concat"}, 8_618_817),
    ("paper-cifar10", {}, 39_358_339),
    ("paper-cifar10", {"reconstruction": "concat"}, 39_358_339 + 3_456),
    ("paper-cifar10", {"signal": "none"}, 35_746_307),
    ("paper-cifar10", {"signal": "none", "reconstruction": "concat"}, 35_749_763),
    ("paper-celeba", {}, 89_147_011),
    ("paper-celeba", {"reconstruction": "concat"}, 89_147_011 + 3_456),
    ("paper-celeba", {"signal": "none"}, 83_959_043),
    ("paper-celeba", {"signal": "none", "reconstruction": "concat"}, 83_962_499),
]
IMAGES = {"paper-mnist": (1, 28), "paper-cifar10": (3, 32), "paper-celeba": (3, 64)}


@pytest.mark.parametrize(("preset", "changed", "count"), COUNTS)
def test_every_row_has_the_published_parameters(
    preset: str, changed: dict[str, Any], count: int
) -> None:
    config = load_preset(preset)
    channels, size = IMAGES[preset]
    with torch.device("meta"):
        tree = TreeVAE(
            config.tree, TreeTopology.initial(), image_channels=channels, image_size=size
        )
        denoiser = make_denoiser(tree, config.diffusion.model_copy(update=changed))
    assert sum(weight.numel() for weight in denoiser.parameters()) == count


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_the_same_image_alone_and_in_a_batch(
    solver: str, engine: Engine
) -> None:
    many = engine.generate(3, seed=4, solver=solver, **FEW)
    one = engine.generate(1, seed=4, offset=2, solver=solver, **FEW)
    assert np.array_equal(many.images[2], one.images[0])


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_solvers_agree_where_steps_are_many(solver: str, engine: Engine) -> None:
    """All follow the same curve from the same noise to the same image.

    But for two, whose curve is another where estimates of x0 leave the range of pixels, as this
    untrained network's do: published DDIM keeps the noise of the estimate it limits, and ipndm
    limits none.
    """
    settings: dict[str, Any] = {"num_inference_steps": 120, "spacing": "logsnr"}
    reference, found = (
        engine.generate(2, seed=1, solver=name, **settings).images.astype(int)
        for name in ("heun", solver)
    )
    assert np.abs(reference - found).mean() < 1


def test_no_guidance_is_a_scale_of_one(guided: Engine) -> None:
    plain = guided.generate(2, **FEW)
    for scale in (1.0, (1.0,), (1.0, 1.0, 1.0, 1.0)):
        assert np.array_equal(guided.generate(2, guidance_scale=scale, **FEW).images, plain.images)


def test_scales_alike_at_every_depth_are_one_number(guided: Engine) -> None:
    one = guided.generate(2, guidance_scale=2.5, **FEW).images
    each = guided.generate(2, guidance_scale=(2.5, 2.5, 2.5, 2.5), **FEW).images
    assert np.array_equal(one, each)
    assert not np.array_equal(one, guided.generate(2, **FEW).images)


def test_a_scale_of_zero_forgets_the_leaf(guided: Engine) -> None:
    """And zero below a depth forgets what lies below it: siblings there become one image."""
    everywhere = guided.generate_leaves(1, guidance_scale=0.0, **FEW).images[0]
    assert all(np.array_equal(everywhere[0], image) for image in everywhere)
    top = guided.generate_leaves(1, guidance_scale=(1.0, 1.0, 0.0), **FEW).images[0]
    of_branch = {
        name[:2]: [k for k, leaf in enumerate(IRREGULAR.leaf_names) if leaf[:2] == name[:2]]
        for name in IRREGULAR.leaf_names
    }
    for leaves in of_branch.values():
        assert all(np.array_equal(top[leaves[0]], top[k]) for k in leaves)
    first = [leaves[0] for leaves in of_branch.values()]
    assert not np.array_equal(top[first[0]], top[first[1]])


@pytest.mark.parametrize("solver", ["ddpm", "heun", "ipndm"])
def test_guided_images_are_the_same_alone_and_in_a_batch(solver: str, guided: Engine) -> None:
    settings = FEW | {"solver": solver, "guidance_scale": 2.0}
    many = guided.generate(3, seed=4, **settings)
    one = guided.generate(1, seed=4, offset=2, **settings)
    assert np.array_equal(many.images[2], one.images[0])


def test_guidance_needs_a_model_that_was_trained_for_it(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale.*path_dropout"):
        engine.generate(1, guidance_scale=2.0)
    with Engine.load(tiny_bundle(path_dropout=0.1), threads=1) as whole:
        whole.generate(1, guidance_scale=2.0, **FEW)
        with pytest.raises(ConfigError, match=r"guidance_scale.*level_dropout"):
            whole.generate(1, guidance_scale=(2.0, 1.0))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"solver": "euler"}, "solver"),
        ({"solver": "heun", "eta": 0.5}, "eta"),
        ({"spacing": "linear"}, "spacing"),
        ({"num_inference_steps": 201, "spacing": "karras"}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_options_out_of_range_are_named(
    options: dict[str, Any], named: str, engine: Engine
) -> None:
    with pytest.raises(ConfigError, match=named):
        engine.generate(1, **options)


def test_an_interpolation_begins_and_ends_at_its_leaves(engine: Engine) -> None:
    names = IRREGULAR.leaf_names
    frames = engine.interpolate(names[0], names[-1], frames=3, num_images=2, seed=5, **FEW)
    sheet = engine.generate_leaves(2, seed=5, **FEW)
    assert frames.shape == (2, 3, 1, 8, 8)
    assert np.array_equal(frames[:, 0], sheet.images[:, 0])
    assert np.array_equal(frames[:, -1], sheet.images[:, -1])
    assert not np.array_equal(frames[:, 1], frames[:, 0])


def test_an_interpolation_to_itself_stands_still(engine: Engine) -> None:
    frames = engine.interpolate("r1", "r1", frames=2, **FEW)
    assert np.array_equal(frames[:, 0], frames[:, 1])


def test_an_interpolation_needs_leaves_and_frames(engine: Engine) -> None:
    with pytest.raises(TopologyError, match="r0"):
        engine.interpolate("r0", "r1")
    with pytest.raises(ConfigError, match="frames"):
        engine.interpolate("r1", "r1", frames=1)


def test_a_reconstruction_is_its_leafs_part_of_the_sheet(engine: Engine) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), dtype=np.uint8)
    own = engine.reconstruct(images, seed=2, **FEW)
    sheet = engine.reconstruct_leaves(images, seed=2, **FEW)
    for k in range(2):
        assert np.array_equal(own.images[k], sheet.images[k, own.leaf[k]])
    assert np.array_equal(own.leaf_prob, sheet.leaf_prob)


def test_a_bundle_says_what_its_model_is_told() -> None:
    told = Bundle.open(tiny_bundle(**GUIDED)).told
    assert told == tiny_model(**GUIDED).told
    assert told.guidance == "levels"
