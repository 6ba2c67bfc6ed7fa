"""What the engine promises of images, seeds, nodes and batches, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import IRREGULAR, tiny_bundle
from support.tables import table_of
from treediffusion.bundle import Bundle
from treediffusion.errors import (
    BackendUnavailableError,
    BundleFormatError,
    BundleIntegrityError,
    ConfigError,
    DependencyError,
    ShapeError,
    TopologyError,
)
from treediffusion.progress import Progress
from treediffusion.runtime import Engine
from treediffusion.runtime.backends import OnnxRuntimeBackend
from treediffusion.runtime.batches import Names, name_images
from treediffusion.runtime.pixels import to_uint8, to_unit
from treediffusion.runtime.plan import Plan
from treediffusion.runtime.routing import choose
from treediffusion.runtime.sampling import Sampler

BLOCKED = ["torch", "torchvision", "triton", "onnx", "onnxscript", "pydantic", "PIL"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        yield engine


def photos(count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 1, 8, 8), np.uint8)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 6), st.integers(1, 7), st.integers(1, 9), st.sampled_from([0.0, 1.0]))
def test_an_image_is_the_same_alone_and_in_any_batch(
    image: int, total: int, size: int, eta: float
) -> None:
    """Bytes, leaf and probabilities; the group holds the image wherever it may lie in it."""
    engine = _engine()
    alone = engine.generate(1, seed=7, offset=image, eta=eta)
    first = max(0, image - total // 2)
    group = engine.generate(total, seed=7, offset=first, batch_size=size, eta=eta)
    row = image - first
    assert np.array_equal(alone.images[0], group.images[row])
    assert alone.leaf[0] == group.leaf[row]
    assert np.array_equal(alone.leaf_prob[0], group.leaf_prob[row])


@pytest.mark.parametrize("threads", [1, 2])
def test_floats_are_the_same_bits_alone_and_in_a_batch(threads: int) -> None:
    """Before rounding to bytes, and whatever the number of threads."""
    bundle = Bundle.open(tiny_bundle())
    one, many = (Sampler(bundle, OnnxRuntimeBackend(bundle, threads=n)) for n in (1, threads))
    table = table_of(bundle.schedule, [180, 90, 30, 0], eta=0.5)
    plan = Plan(table, (IRREGULAR.max_depth + 1,), (1.0,))
    leaf = np.arange(7, dtype=np.int64) % IRREGULAR.num_leaves

    def floats(sampler: Sampler, images: list[int]) -> np.ndarray:
        names = Names([3] * len(images), images)
        z, _ = sampler.prior(names)
        return sampler.draw(z, leaf[images], plan, names)

    batch = floats(many, list(range(7)))
    assert batch.dtype == np.float32
    for i in range(7):
        assert np.array_equal(batch[i], floats(one, [i])[0])


def test_calls_of_one_size_are_filled_and_cut() -> None:
    """A back end with one size sees only calls of that size, and rows keep their order."""
    bundle = Bundle.open(tiny_bundle())
    inner = OnnxRuntimeBackend(bundle, threads=1)
    sizes = []

    class Wide:
        sizes = (4,)
        close = inner.close

        def run(self, graph: str, feeds: Any) -> dict[str, np.ndarray]:
            sizes.append(len(feeds["images"]))
            return inner.run(graph, feeds)

    feeds = {"images": to_unit(photos(6))}
    wide, narrow = (Sampler(bundle, each).call("assign", feeds) for each in (Wide(), inner))
    assert sizes == [4, 4]
    np.testing.assert_allclose(wide["leaf_prob"], narrow["leaf_prob"], atol=1e-6)


def test_offset_cuts_a_run_into_calls(engine: Engine) -> None:
    whole, part = engine.generate(5, seed=1), engine.generate(2, seed=1, offset=3)
    assert np.array_equal(whole.images[3:], part.images)
    assert np.array_equal(whole.leaf[3:], part.leaf)
    assert part.seed.tolist() == [1, 1]
    assert part.index.tolist() == [3, 4]


def test_seeds_and_images_differ(engine: Engine) -> None:
    a, b = engine.generate(3, seed=1).images, engine.generate(3, seed=2).images
    assert len({image.tobytes() for image in (*a, *b)}) == 6


@pytest.mark.parametrize("node", IRREGULAR.names)
def test_a_node_gives_its_own_leaves(engine: Engine, node: str) -> None:
    drawn = engine.generate(6, node=node, num_inference_steps=1)
    below = set(IRREGULAR.leaves_below(node).tolist())
    assert set(drawn.leaf.tolist()) <= below
    assert all(drawn.leaf_names[leaf].startswith(node) for leaf in drawn.leaf)


class DecidedByTheRoot:
    """A back end whose every router goes left where the root's first number is above 1."""

    sizes = (1,)

    def run(self, graph: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        noise = feeds["noise"]
        left = (noise[:, 0, 0, 0, 0] > 1).astype(np.float32)
        return {"z": noise, "p_left": np.tile(left[:, None], len(IRREGULAR.routers))}

    def close(self) -> None: ...


def test_latents_of_a_node_lead_there() -> None:
    """One root in six turns left; of the roots drawn for the left child, practically all do."""
    sampler = Sampler(Bundle.open(tiny_bundle()), DecidedByTheRoot())
    left, right = IRREGULAR.names[1:3]
    names = name_images(100)
    whole = sampler.prior(names)[0][:, 0, 0, 0, 0]
    assert 5 <= (whole > 1).sum() <= 30
    assert (sampler.prior_through(left, names)[0][:, 0, 0, 0, 0] > 1).mean() > 0.95
    assert (sampler.prior_through(right, names)[0][:, 0, 0, 0, 0] <= 1).all()


def test_a_node_keeps_its_images_in_any_batch() -> None:
    sampler = Sampler(Bundle.open(tiny_bundle()), DecidedByTheRoot())
    whole = sampler.prior_through("r0", name_images(6, 3))[0]
    assert np.array_equal(whole[4:5], sampler.prior_through("r0", name_images(1, 3, offset=4))[0])


def test_choices_follow_the_weights() -> None:
    weight = np.tile([0.0, 1.0, 3.0, 0.0], (4000, 1))
    u = (np.arange(4000, dtype=np.float32) + 0.5) / 4000
    counts = np.bincount(choose(weight, u), minlength=4)
    assert counts.tolist() == [0, 1000, 3000, 0]
    assert choose(np.zeros((2, 3)), u[:2]).tolist() == [0, 0]


def test_probabilities_sum_to_one(engine: Engine) -> None:
    for leaf_prob in (
        engine.generate(4, num_inference_steps=1).leaf_prob,
        engine.assign(photos(4)),
        engine.decode_prior(4).leaf_prob,
    ):
        assert leaf_prob.shape == (4, IRREGULAR.num_leaves)
        assert leaf_prob.dtype == np.float32
        np.testing.assert_allclose(leaf_prob.sum(axis=1), 1.0, atol=1e-5)


def test_a_sheet_holds_the_images_of_every_leaf(engine: Engine) -> None:
    images, leaf_prob = engine.generate_leaves(2, seed=4, offset=1, batch_size=1)
    assert images.shape == (2, IRREGULAR.num_leaves, 1, 8, 8)
    drawn = engine.generate(2, seed=4, offset=1)
    assert np.array_equal(leaf_prob, drawn.leaf_prob)
    assert np.array_equal(images[np.arange(2), drawn.leaf], drawn.images)


def test_treevaes_own_images_go_with_the_sheet(engine: Engine) -> None:
    own = engine.decode_prior(3, seed=4, batch_size=2)
    assert own.images.shape == (3, IRREGULAR.num_leaves, 1, 8, 8)
    assert own.images.dtype == np.uint8
    assert np.array_equal(
        own.leaf_prob, engine.generate_leaves(3, seed=4, num_inference_steps=1).leaf_prob
    )


def test_reconstruction_takes_the_most_probable_leaf(engine: Engine) -> None:
    images = photos(5)
    drawn = engine.reconstruct(images, leaf="most_probable", seed=2)
    assert np.array_equal(drawn.leaf, engine.assign(images).argmax(axis=1))
    np.testing.assert_allclose(drawn.leaf_prob, engine.assign(images), atol=1e-6)
    again = engine.reconstruct(images, leaf="most_probable", seed=2, batch_size=2)
    assert np.array_equal(drawn.images, again.images)
    assert drawn.images.shape == images.shape


def test_reconstruction_draws_leaves_by_probability(engine: Engine) -> None:
    images = np.repeat(photos(1), 300, axis=0)
    drawn = engine.reconstruct(images, num_inference_steps=1)
    expected = engine.assign(images[:1])[0]
    observed = np.bincount(drawn.leaf, minlength=len(expected)) / 300
    assert (np.abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / 300)).all()


def test_assignment_does_not_depend_on_the_batch(engine: Engine) -> None:
    images = photos(5)
    whole = engine.assign(images)
    for i in range(5):
        assert np.array_equal(whole[i], engine.assign(images[i : i + 1])[0])


def test_eta_and_steps_change_images_and_defaults_are_the_bundles(engine: Engine) -> None:
    default = engine.generate(1, seed=3).images
    own = engine.manifest["sampling"]
    assert np.array_equal(default, engine.generate(1, seed=3, **own).images)
    assert not np.array_equal(default, engine.generate(1, seed=3, eta=1.0).images)
    assert not np.array_equal(default, engine.generate(1, seed=3, num_inference_steps=3).images)


def test_progress_counts_images(engine: Engine) -> None:
    with Progress(5, "generate", quiet=True) as progress:
        engine.generate(5, num_inference_steps=1, batch_size=2, progress=progress)
        assert progress.fraction == 1.0


def test_bytes_round_half_up_and_clip() -> None:
    levels = np.array([-2, -1, 0, 1, 3], np.float32)
    assert to_uint8(levels, (-1.0, 1.0)).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(levels, (0.0, 1.0)).tolist() == [0, 0, 0, 255, 255]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(to_unit(every), (0.0, 1.0)), every)
    assert np.array_equal(to_uint8(2 * to_unit(every) - 1, (-1.0, 1.0)), every)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda e: e.generate(0), ConfigError, "num_images"),
        (lambda e: e.generate(2.0), ConfigError, "num_images"),
        (lambda e: e.generate(True), ConfigError, "num_images"),
        (lambda e: e.generate(seed=-1), ConfigError, "seed"),
        (lambda e: e.generate(seed=2**64), ConfigError, "seed"),
        (lambda e: e.generate(seed=None), ConfigError, "seed"),
        (lambda e: e.generate(2, offset=2**64 - 1), ConfigError, "offset"),
        (lambda e: e.generate(offset=-1), ConfigError, "offset"),
        (lambda e: e.generate(batch_size=0), ConfigError, "batch_size"),
        (lambda e: e.generate(num_inference_steps=0), ConfigError, "num_inference_steps"),
        (lambda e: e.generate(spacing="wide"), ConfigError, "spacing"),
        (lambda e: e.generate(eta=2.0), ConfigError, "eta"),
        (lambda e: e.generate(eta="much"), ConfigError, "eta"),
        (lambda e: e.generate(eta=float("nan")), ConfigError, "eta"),
        (lambda e: e.generate(node="r01"), TopologyError, "r000"),
        (lambda e: e.generate(node=3), TopologyError, "node"),
        (lambda e: e.generate(node=["r"]), TopologyError, "node"),
        (lambda e: e.assign([[0]]), ShapeError, "list"),
        (lambda e: e.assign(photos(2).astype(np.float32)), ShapeError, "float32"),
        (lambda e: e.assign(photos(2)[0]), ShapeError, "images"),
        (lambda e: e.assign(photos(2)[:, :, :7]), ShapeError, "images"),
        (lambda e: e.assign(photos(2)[:0]), ShapeError, "at least 1"),
        (lambda e: e.reconstruct(photos(2)[:0]), ShapeError, "at least 1"),
        (lambda e: e.reconstruct(photos(1), leaf="best"), ConfigError, "most_probable"),
        (lambda e: e.generate_leaves(0), ConfigError, "num_images"),
        (lambda e: e.decode_prior(0), ConfigError, "num_images"),
    ],
)
def test_bad_arguments(
    engine: Engine, call: Callable[[Any], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call(engine)


def test_the_last_image_of_all(engine: Engine) -> None:
    last = 2**64 - 1
    assert len(engine.generate(offset=last, seed=last, num_inference_steps=1).leaf) == 1


def test_unavailable_back_ends() -> None:
    with pytest.raises(BackendUnavailableError, match="onnxruntime"):
        Engine.load(tiny_bundle(), backend="abacus")
    with pytest.raises(ConfigError, match="threads"):
        Engine.load(tiny_bundle(), threads=0)
    with pytest.raises(BackendUnavailableError, match="CPUExecutionProvider"):
        OnnxRuntimeBackend(Bundle.open(tiny_bundle()), provider="AbacusExecutionProvider")


def test_a_provider_that_is_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU with no more than a warning."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["GPUExecutionProvider"])

    class Session:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    backend = OnnxRuntimeBackend(Bundle.open(tiny_bundle()), provider="GPUExecutionProvider")
    with pytest.raises(BackendUnavailableError, match="CPUExecutionProvider in place of GPU"):
        backend.run("assign", {})


def test_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"treediffusion\[cpu\]"):
        Engine.load(tiny_bundle(), backend="onnxruntime")


def test_another_back_end_only_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle has no graphs for TensorRT, so nothing but a refusal or a warning is right."""
    with pytest.raises((BackendUnavailableError, DependencyError)):
        Engine.load(tiny_bundle(), backend="tensorrt")
    with pytest.warns(UserWarning, match="onnxruntime .* in place of tensorrt"):
        engine = Engine.load(tiny_bundle(), backend="tensorrt", allow_fallback=True)
    with engine:
        assert str(engine.info()["backend"]).startswith("onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime: .*; openvino: "):
        Engine.load(tiny_bundle())


def test_a_closed_engine_says_so() -> None:
    with Engine.load(tiny_bundle(), threads=1) as engine:
        pass
    with pytest.raises(BackendUnavailableError, match="close"):
        engine.generate()


def test_a_damaged_bundle(tmp_path: Path) -> None:
    copied = tmp_path / "b"
    shutil.copytree(tiny_bundle(), copied)
    step = copied / "graphs/onnx-cpu-fp32/step.onnx"
    step.write_bytes(bytes(step.stat().st_size))
    with pytest.raises(BundleIntegrityError, match=r"step\.onnx"):
        Engine.load(copied)
    with pytest.raises(BundleFormatError, match="step"):
        Engine.load(copied, verify=False)


def test_it_runs_where_training_packages_are_not() -> None:
    """The whole way in a process that cannot import them, and gives the same image."""
    code = """
import importlib.abc, json, sys
blocked = set(json.loads(sys.argv[2]))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from treediffusion.runtime import Engine
with Engine.load(sys.argv[1], threads=1) as engine:
    print(engine.generate(seed=11).images.ravel().tolist())
assert not blocked & {name.partition(".")[0] for name in sys.modules}
"""
    command = [sys.executable, "-c", code, str(tiny_bundle()), json.dumps(BLOCKED)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = _engine().generate(seed=11).images.ravel().tolist()
    assert json.loads(ended.stdout) == expected


def test_what_the_engine_tells_of_its_bundle(engine: Engine) -> None:
    assert engine.topology == IRREGULAR
    assert engine.image_shape == (1, 8, 8)
    assert engine.node_share[0] == 1.0
    assert engine.manifest["producer"]["name"] == "treediffusion"


_OPEN: list[Engine] = []


def _engine() -> Engine:
    """One for property tests, which may not take a fixture."""
    if not _OPEN:
        _OPEN.append(Engine.load(tiny_bundle(), threads=1))
    return _OPEN[0]
