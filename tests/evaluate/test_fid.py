"""FID and its protocols: the formula is torch-fidelity's, the weights are the published or none."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import tiny_bundle
from torch import Tensor
from torch.utils.data import Dataset
from treediffusion.data import ImageSet
from treediffusion.errors import CheckpointError, ConfigError, DataError, ShapeError
from treediffusion.evaluate import fid, fid_inception
from treediffusion.evaluate.classifier import Classifier, ResNet
from treediffusion.evaluate.fid import Drawn, measure, measure_bundle, metric_key, protocol_of
from treediffusion.evaluate.fid_inception import Inception, default_weights
from treediffusion.evaluate.statistics import ClassifierFeatures, gather
from treediffusion.runtime import Engine

DRAWN = Drawn("ddim", 96, 0.9999, {"eta": 0.0, "seed": 0})


def pictures(count: int, *, seed: int = 0, top: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, top, (count, 1, 8, 8), dtype=np.uint8)


def image_set(images: NDArray[np.uint8]) -> ImageSet:
    return ImageSet(images, None, "random", None, "0" * 16)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet("resnet18", width=2, channels=1, classes=2)
    return Classifier(network, image_shape=(1, 8, 8), key="random weights")


@pytest.mark.parametrize(
    ("measure", "count", "split", "expected"),
    [
        ("fid", 10_000, "test", "fid_inception_10k_test_ddim96_ema0.9999"),
        ("kid", 50_000, "train", "kid_inception_50k_train_ddim96_ema0.9999"),
        ("recall", 1234, "test", "recall_inception_1234_test_ddim96_ema0.9999"),
    ],
)
def test_a_key_says_how_a_number_came_about(
    measure: str, count: int, split: str, expected: str
) -> None:
    assert metric_key(measure, "inception", count, split, DRAWN) == expected
    unknown = replace(DRAWN, ema=None)
    assert metric_key(measure, "inception", count, split, unknown) == expected.split("_ema")[0]


def test_a_protocol_is_named_only_for_its_own_numbers() -> None:
    assert protocol_of(10_000, "test") == "paper"
    assert protocol_of(50_000, "train") == "standard"
    for other in ((9_999, "test"), (10_000, "train"), (50_000, "test")):
        assert protocol_of(*other) is None


def test_in_a_classifiers_features_nothing_is_called_fid_or_kid(classifier: Classifier) -> None:
    extractor = ClassifierFeatures(classifier)
    generated, real = gather(extractor, pictures(30)), gather(extractor, pictures(40, seed=1))
    found = measure(extractor, generated, real, split="test", drawn=DRAWN)
    assert [key.split("_")[0] for key in found] == ["frechet", "mmd", "precision", "recall"]
    for record in found.values():
        assert math.isfinite(record["value"])
        assert (record["generated"], record["real"], record["protocol"]) == (30, 40, None)
        assert record["extractor"] == "random weights"
        assert record["rounding"].startswith("floats clamped")
    json.dumps(found, allow_nan=False)


def test_the_measures_are_torch_fidelitys_with_our_classifier_registered(
    classifier: Classifier,
) -> None:
    """Its own route from images to numbers, with the same extractor in it."""
    library = pytest.importorskip("torch_fidelity")
    name = "treediffusion-classifier"

    class Registered(library.FeatureExtractorBase):  # type: ignore[name-defined,misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.network = classifier.network

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.network.features(x),)

    class Images(Dataset[Tensor]):
        def __init__(self, images: NDArray[np.uint8]) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, row: int) -> Tensor:
            return torch.from_numpy(self.images[row])

    registry = pytest.importorskip("torch_fidelity.registry")
    registry.FEATURE_EXTRACTORS_REGISTRY.pop(name, None)
    library.register_feature_extractor(name, Registered)
    made, true = pictures(60, top=200), pictures(60, seed=1)
    theirs = library.calculate_metrics(
        input1=Images(made), input2=Images(true), feature_extractor=name, cuda=False, fid=True,
        kid=True, prc=True, kid_subset_size=60, kid_subsets=1, save_cpu_ram=True, verbose=False,
        cache=False,
    )  # fmt: skip
    extractor = ClassifierFeatures(classifier)
    found = measure(
        extractor, gather(extractor, made), gather(extractor, true), split="test", drawn=DRAWN
    )
    values = [record["value"] for record in found.values()]
    expected = [
        theirs[key]
        for key in (
            "frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall",
        )
    ]  # fmt: skip
    assert values == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.fixture(scope="module")
def inception_state() -> dict[str, Tensor]:
    """Weights of the right names and shapes, all small: the published ones cannot be had here."""
    library = pytest.importorskip(fid_inception.MODULE)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = library.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path="none"
        )
    state: dict[str, Tensor] = network.state_dict()
    return state


def as_published(path: Path, patch: pytest.MonkeyPatch) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    patch.setattr(fid_inception, "SHA256_BEGINS", digest[:8])
    return path


def test_inception_takes_grey_and_coloured_bytes_of_any_size(
    inception_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(inception_state, path)
    extractor = Inception(as_published(path, monkeypatch))
    grey = torch.from_numpy(pictures(2))
    found = extractor.extract(grey)
    assert found.shape == (2, Inception.width)
    assert found.dtype == torch.float32
    assert torch.equal(found, extractor.extract(grey.repeat(1, 3, 1, 1)))
    assert not found.requires_grad
    key = metric_key("fid", extractor.name, 10_000, "test", DRAWN)
    assert key == "fid_inception_10k_test_ddim96_ema0.9999"
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in extractor.key


def test_without_the_weights_one_error_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded: opening any connection would fail the test."""
    pytest.importorskip(fid_inception.MODULE)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert default_weights().parent == tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no such file") as caught:
        Inception()
    message = str(caught.value)
    assert str(default_weights()) in message
    assert "download https://" in message
    with pytest.raises(CheckpointError, match=r"mine\.pth"):
        Inception(tmp_path / "mine.pth")


def test_other_weights_are_no_inception(
    inception_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dict(list(inception_state.items())[:5]), path)
    with pytest.raises(CheckpointError, match="sha256 begins with"):
        Inception(path)
    with pytest.raises(CheckpointError, match="other tensors"):
        Inception(as_published(path, monkeypatch))


def test_nothing_in_a_file_of_weights_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that would call a function is refused, even if it had the published hash."""
    pytest.importorskip(fid_inception.MODULE)
    path, mark = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"a": torch.zeros(1)}, path)
    with ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for name, content in parts.items():
            harm = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
            archive.writestr(name, harm if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match="tensors"):
        Inception(as_published(path, monkeypatch))
    assert not mark.exists()


class Drawer:
    """An engine's face: image i of a seed is always the same."""

    image_shape = (1, 8, 8)
    manifest: ClassVar[dict[str, Any]] = {
        "config": {"diffusion": {"ema": 0.999}},
        "sampling": {
            "num_inference_steps": 6, "solver": "ddim", "spacing": "quad", "eta": 0.0,
            "guidance_scale": 1.0,
        },
    }  # fmt: skip

    def generate(self, count: int, *, seed: int, offset: int, **_: Any) -> Any:
        images = [pictures(1, seed=1000 * seed + offset + k) for k in range(count)]
        return SimpleNamespace(images=np.concatenate(images))


def test_images_are_measured_in_parts_and_kept_by_key(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, part = ClassifierFeatures(classifier), image_set(pictures(30, seed=1))
    engine, how = cast("Engine", Drawer()), {"images": 12, "split": "test", "quiet": True}
    first = measure_bundle(engine, part, extractor, tmp_path, **how)  # type: ignore[arg-type]
    other = measure_bundle(
        engine, part, extractor, tmp_path, sampling={"num_inference_steps": 3}, seed=1, **how  # type: ignore[arg-type]
    )  # fmt: skip
    monkeypatch.setattr(fid, "DRAWN_AT_ONCE", 5)
    again = measure_bundle(engine, part, extractor, tmp_path, **how)  # type: ignore[arg-type]
    for key, record in first.items():
        assert again[key]["value"] == pytest.approx(record["value"], rel=1e-4)
    assert next(iter(first)) == "frechet_classifier_12_test_ddim6_ema0.999"
    assert next(iter(other)) == "frechet_classifier_12_test_ddim3_ema0.999"
    held = json.loads((tmp_path / fid.FILE).read_text("utf-8"))
    assert held == json.loads(json.dumps(again | other))
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 1


@pytest.mark.slow
def test_a_bundle_is_measured(classifier: Classifier, tmp_path: Path) -> None:
    extractor, part = ClassifierFeatures(classifier), image_set(pictures(30, seed=1))
    with Engine.load(tiny_bundle(), threads=1) as engine:
        found = measure_bundle(
            engine, part, extractor, tmp_path, images=12, split="test", quiet=True
        )
    assert {record["steps"] for record in found.values()} == {6}
    assert all(math.isfinite(record["value"]) for record in found.values())


def test_what_cannot_be_measured_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    def run(images: NDArray[np.uint8], count: int = 12) -> None:
        measure_bundle(
            cast("Engine", Drawer()), image_set(images), ClassifierFeatures(classifier), tmp_path,
            images=count, split="test", quiet=True,
        )  # fmt: skip

    with pytest.raises(ConfigError, match="images: got 2"):
        run(pictures(30), 2)
    with pytest.raises(DataError, match="images: got 3"):
        run(pictures(3))
    with pytest.raises(ShapeError, match="those that the model draws"):
        run(pictures(30)[..., :4])
    (tmp_path / fid.FILE).write_text("[]", "utf-8")
    with pytest.raises(DataError, match=r"fid\.json"):
        run(pictures(30))
