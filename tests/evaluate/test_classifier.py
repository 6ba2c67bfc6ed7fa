"""The judge: what network it is, what it learns, and that its file is its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models import resnet18, resnet50
from treediffusion.data import load_images
from treediffusion.errors import CheckpointError, ConfigError, DataError, ShapeError
from treediffusion.evaluate.classifier import (
    BATCH,
    Classifier,
    ResNet,
    as_bytes,
    train_classifier,
)
from treediffusion.evaluate.keyed import content_key
from treediffusion.progress import Progress
from treediffusion.train.checkpoint import load, save

UInt8Array = NDArray[np.uint8]


def squares(count: int = 40) -> tuple[UInt8Array, NDArray[np.int64]]:
    """Noise with a bright square on the left (0), the right (1), or nowhere (2)."""
    images = np.random.default_rng(0).integers(0, 60, (count, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(count) % 3
    images[labels == 0, :, 2:6, :4] = 220
    images[labels == 1, :, 2:6, 4:] = 220
    return images, labels


def quick(images: NDArray[Any], labels: NDArray[Any], **changes: Any) -> Classifier:
    settings: dict[str, Any] = {"classes": 3, "epochs": 2, "width": 4}
    return train_classifier(images, labels, **settings | changes)


def weights(classifier: Classifier) -> list[torch.Tensor]:
    return list(classifier.network.state_dict().values())


def test_digits_are_told_apart_when_held_out() -> None:
    """Three in four digits to learn from: 95 % of the others at least, at the small width."""
    digits = load_images("digits")
    assert digits.labels is not None
    order = np.random.default_rng(0).permutation(len(digits.images))
    learnt, held = order[:1350], order[1350:]
    judge = train_classifier(digits.images[learnt], digits.labels[learnt], classes=10, epochs=15)
    assert judge.width == 8 * 16
    assert judge.accuracy(digits.images[held], digits.labels[held]) >= 0.95


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_at_width_64_the_stages_are_torchvisions(architecture: Any) -> None:
    """The same weights give the same logits, with our stem in front of torchvision's stages."""
    torch.manual_seed(0)
    ours = ResNet(architecture, width=64, channels=1, classes=5).eval()
    theirs = {"resnet18": resnet18, "resnet50": resnet50}[architecture](num_classes=5).eval()
    theirs.conv1, theirs.bn1 = ours.stem[0], ours.stem[1]
    if architecture == "resnet18":
        theirs.maxpool = torch.nn.Identity()
    mine = [*ours.stages.state_dict().values(), *ours.head.state_dict().values()]
    names = [name for name in theirs.state_dict() if name.startswith(("layer", "fc"))]
    theirs.load_state_dict(dict(zip(names, mine, strict=True)), strict=False)
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images / 255))


def test_probabilities_are_the_softmax_of_the_last_layer_on_the_features() -> None:
    images, labels = squares()
    judge = quick(images, labels)
    found = judge.judge(images)
    assert found.features.shape == (40, judge.width) == (40, 32)
    assert found.probabilities.shape == (40, judge.classes) == (40, 3)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    head = judge.network.head
    logits = found.features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    ratio = np.log(found.probabilities) - logits
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), atol=1e-4)
    assert np.array_equal(judge.features(images), found.features)
    assert np.array_equal(judge.probabilities(images), found.probabilities)


def test_judging_is_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode nothing of an image depends on those beside it."""
    images, labels = squares()
    judge = quick(images, labels)
    whole = judge.judge(images)
    monkeypatch.setattr("treediffusion.evaluate.classifier.CHUNK", 7)
    np.testing.assert_allclose(judge.judge(images).features, whole.features, atol=1e-5)


def test_pixels_are_standardised_by_the_training_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    images[:, 2] = 7  # never changes
    network = ResNet("resnet18", width=2, channels=3, classes=2)
    network.standardise(images)
    unit = images / 255
    np.testing.assert_allclose(network.mean[:, 0, 0], unit.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(1 / network.scale[:2, 0, 0], unit.std((0, 2, 3))[:2], rtol=1e-5)
    assert network.scale[2, 0, 0] == pytest.approx(255)


def test_a_seed_is_the_same_weights_and_no_other_seeds_and_global_numbers_stay() -> None:
    images, labels = squares()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = quick(images, labels, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = quick(images, labels, seed=1), quick(images, labels, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(same), strict=True))
    assert not torch.equal(one.network.head.weight, other.network.head.weight)
    assert one.key == same.key != other.key


def test_a_last_batch_of_one_image_does_not_arise() -> None:
    """One more image than a batch, on images whose last maps are a single pixel."""
    images, labels = squares(BATCH + 1)
    assert np.isfinite(quick(images, labels, epochs=1).probabilities(images)).all()


def test_floats_are_judged_as_the_bytes_they_become() -> None:
    images, labels = squares()
    judge = quick(images, labels)
    assert quick(images / 255, labels).key == judge.key
    floats = images.astype(np.float32) / 255
    assert np.array_equal(judge.features(floats + np.float32(0.001)), judge.features(images))
    values = np.array([-3, 0, 0.499 / 255, 0.5 / 255, 1, 1.7], np.float32).reshape(1, 1, 1, 6)
    assert as_bytes(values, name="x").ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_progress_is_the_number_of_images_an_epoch(tmp_path: Path) -> None:
    """A classifier from a file counts as done, too."""
    images, labels = squares()
    for _ in range(2):
        progress = Progress(80, "test", stream=io.StringIO(), quiet=True)
        quick(images, labels, progress=progress, path=tmp_path / "c.safetensors")
        assert progress.done == 80


def test_a_file_gives_back_the_classifier_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, (images, labels) = tmp_path / "deep" / "c.safetensors", squares()
    written = quick(images, labels, path=path)
    monkeypatch.delattr("treediffusion.evaluate.classifier._fit")
    read = quick(images, labels, path=path)
    assert read.key == written.key
    assert all(torch.equal(a, b) for a, b in zip(weights(read), weights(written), strict=True))
    assert np.array_equal(read.features(images), written.features(images))


def test_a_file_of_other_images_labels_or_settings_is_an_error_and_stays(tmp_path: Path) -> None:
    path, (images, labels) = tmp_path / "c.safetensors", squares()
    key = quick(images, labels, path=path).key
    content = path.read_bytes()
    other = images.copy()
    other[5, 0, 1, 1] ^= 1
    for changed in (
        (other, labels, {}),
        (images, labels[::-1].copy(), {}),
        (images, labels, {"seed": 1}),
        (images, labels, {"epochs": 3}),
        (images, labels, {"width": 5}),
    ):
        with pytest.raises(CheckpointError, match=f"with the key {key}"):
            quick(changed[0], changed[1], path=path, **changed[2])
    with pytest.raises(CheckpointError, match=r"epochs 2, expected .*, epochs 3, which is of"):
        quick(images, labels, path=path, epochs=3)
    assert path.read_bytes() == content


def test_a_damaged_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    path, (images, labels) = tmp_path / "c.safetensors", squares()
    quick(images, labels, path=path)
    content = path.read_bytes()
    tensors, state = load(path)
    path.write_bytes(content[:-40])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        quick(images, labels, path=path)
    flipped = bytearray(content)
    flipped[-40] ^= 1  # a weight, which the format itself does not check
    path.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match="expected sha256"):
        quick(images, labels, path=path)
    del tensors["head.bias"]
    save(path, tensors, state)
    with pytest.raises(CheckpointError, match="not those that were written"):
        quick(images, labels, path=path)
    save(path, tensors, {"stage": "tree"})
    with pytest.raises(CheckpointError, match="something else with the key none"):
        quick(images, labels, path=path)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.arange(40) % 2 * 2, DataError, "no image of class 1"),
        (np.zeros(40, int), DataError, "no image of class 1, 2"),
        (np.arange(40) % 4, ShapeError, "numbers from 0 to 3"),
        (np.arange(40) % 3 - 1, ShapeError, "numbers from -1 to 1"),
        (np.arange(40) % 3 + 0.0, ShapeError, "float64"),
        (np.arange(39) % 3, ShapeError, r"shape \[39\]"),
        ([0, 1, 2], ShapeError, "list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quick(squares()[0], labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((0, 1, 8, 8), np.uint8), "n of 1 or more"),
        (np.zeros((3, 1, 8, 8), np.int64), "int64"),
        (np.zeros((3, 1, 8, 7), np.uint8), "sides from 8"),
        (np.full((3, 1, 8, 8), 2.0), "pixels from 2 to 2"),
        (np.full((3, 1, 8, 8), np.nan), "192 pixels that are not finite"),
        ("pictures", "str"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        quick(images, np.arange(3))


def test_settings_that_cannot_be_are_refused() -> None:
    images, labels = squares()
    for name, value in (("classes", 1), ("epochs", 0), ("width", 0), ("architecture", "vgg")):
        with pytest.raises(ConfigError, match=name):
            quick(images, labels, **{name: value})


def test_only_images_of_its_own_shape_are_judged_and_only_its_classes_compared() -> None:
    images, labels = squares()
    judge = quick(images, labels, epochs=1)
    with pytest.raises(ShapeError, match=r"\[n, 1, 8, 8\], as it was trained on"):
        judge.features(np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ShapeError, match="not finite"):
        judge.probabilities(np.full((2, 1, 8, 8), np.inf))
    with pytest.raises(ShapeError, match="numbers from 3 to 3"):
        judge.accuracy(images, np.full(40, 3))
    guess = judge.probabilities(images).argmax(1)
    assert judge.accuracy(images, guess) == 1
    assert judge.accuracy(images[:4], np.array([*guess[:3], (guess[3] + 1) % 3])) == 0.75


def test_a_key_is_of_values_types_shapes_and_order() -> None:
    a = np.arange(6, dtype=np.uint8)
    keys = {
        content_key(a),
        content_key(a.astype(np.int64)),
        content_key(a.reshape(2, 3)),
        content_key(a, "x"),
        content_key("x", a),
        content_key(a, {"b": 1}),
    }
    assert len(keys) == 6
    assert content_key(a.reshape(2, 3).T) == content_key(np.ascontiguousarray(a.reshape(2, 3).T))
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
