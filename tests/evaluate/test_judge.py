"""Generated images before a classifier: the whole way once, and what it needs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.models import IRREGULAR, tiny_bundle
from treediffusion.cli import main
from treediffusion.data import ImageSet, load_images
from treediffusion.errors import ConfigError, DataError, ShapeError
from treediffusion.evaluate.figures import class_table
from treediffusion.evaluate.judge import CLASSIFIER, judge
from treediffusion.runtime import Engine

IMAGES = 60


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("digits")


def test_a_model_is_judged_and_the_judge_is_kept(digits: ImageSet, tmp_path: Path) -> None:
    """Every image counts once; a second call reads the classifier and says the same."""
    settings = {"num_images": IMAGES, "epochs": 2, "quiet": True}
    with Engine.load(tiny_bundle(), threads=1) as engine:
        first = judge(engine, digits, digits, tmp_path, **settings).scores  # type: ignore[arg-type]
        kept = (tmp_path / CLASSIFIER).stat().st_mtime_ns
        again = judge(engine, digits, digits, tmp_path, **settings).scores  # type: ignore[arg-type]
    assert (tmp_path / CLASSIFIER).stat().st_mtime_ns == kept
    assert first == again
    assert json.loads((tmp_path / "quality.json").read_text("utf-8")) == json.loads(
        json.dumps(first)
    )
    assert first["test_images_were_trained_on"]
    assert first["entropy"].startswith("natural logarithm; every generated image counts")
    assert first["collapsed_below"] == 0.25
    assert first["classifier"]["architecture"] == "resnet18"
    histogram = np.array(first["leaves"]["histogram"])
    assert histogram.shape == (IRREGULAR.num_leaves, 10)
    assert histogram.sum() == IMAGES
    assert 0 <= first["leaves"]["mean_entropy"] <= math.log(10)
    distance = first["frechet_in_classifier_features"]
    assert distance["generated"] > distance["as_many_test_images"] >= 0
    assert Image.open(tmp_path / "classes.png").size[0] >= 800


def test_labels_are_needed_and_must_be_the_same(digits: ImageSet, tmp_path: Path) -> None:
    labels = digits.labels
    assert labels is not None
    without = replace(digits, labels=None)
    few = replace(digits, images=digits.images[labels > 0], labels=labels[labels > 0])
    with Engine.load(tiny_bundle(), threads=1) as engine:
        with pytest.raises(DataError, match="no labels"):
            judge(engine, without, digits, tmp_path)
        with pytest.raises(DataError, match=r"labels.*test part"):
            judge(engine, digits, few, tmp_path)
        with pytest.raises(ConfigError, match="num_images"):
            judge(engine, digits, digits, tmp_path, num_images=1)
        with pytest.raises(ShapeError, match="model draws"):
            judge(engine, replace(digits, images=digits.images[..., :4, :4]), digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_judges_with_either_network_and_keeps_to_one_that_is_there(
    digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert digits.labels is not None
    images, labels = digits.images[:64], digits.labels[:64]
    np.savez(tmp_path / "few.npz", train_images=images, train_labels=labels, test_images=images,
             test_labels=labels)  # fmt: skip
    common = ["evaluate", "--bundle", str(tiny_bundle()), "--data", str(tmp_path / "few.npz")]
    common += ["--epochs", "1", "--num-images", "20", "--num-inference-steps", "2"]
    common += ["--out", str(tmp_path)]
    assert main([*common, "--no-train-classifier"]) == 2
    assert "leave --no-train-classifier out" in capsys.readouterr().err
    assert main([*common, "--train-classifier", "--architecture", "resnet50"]) == 0
    said = capsys.readouterr().out
    assert "mean entropy of a leaf, nats" in said
    assert "diversity in a leaf" in said
    found = json.loads((tmp_path / "quality.json").read_text("utf-8"))
    assert found["classifier"]["architecture"] == "resnet50"
    assert main([*common, "--no-train-classifier", "--architecture", "resnet50"]) == 0
    assert main(common) == 2
    assert "remove the file to have it made again" in capsys.readouterr().err


def test_without_weights_a_protocol_ends_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--bundle", str(tiny_bundle()), "--data", "digits"]
    command += ["--out", str(tmp_path), "--protocol", "paper"]
    assert main([*command, "--inception", str(tmp_path / "absent.pth")]) == 2
    assert "absent.pth: got no such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_has_a_cell_for_each_leaf_and_class() -> None:
    counts = np.arange(IRREGULAR.num_leaves * 3).reshape(-1, 3)
    figure = class_table(counts, ["a", "b", "c"], IRREGULAR, title="Title")
    cells = [patch.get_gid() for patch in figure.axes[0].patches]
    assert len(cells) == len(set(cells)) == counts.size
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"Title", "a", "b", "c", *IRREGULAR.leaf_names} <= set(words)
    with pytest.raises(ShapeError, match="counts"):
        class_table(counts[:, :2], ["a", "b", "c"], IRREGULAR)
