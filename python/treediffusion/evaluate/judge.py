"""Generated images before an independent judge: a classifier that knows the labels.

    images ~ bundle,   classes, features = classifier(images),   leaf again = assign(images)

Trains the classifier on the labelled images of the training part (or reads it, if it was trained
on them before), draws images along sampled paths, and compares them with the test part. Features
are those of images rounded to bytes. The distance is Frechet's in the features of our own
classifier: it is no FID, and does not compare with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import ImageSet, to_bytes
from ..errors import ConfigError, DataError, ShapeError
from ..files import write_json
from ..progress import Progress
from ..runtime import Engine
from ..runtime.plan import SamplingOptions
from .classifier import Architecture, Classifier, best_device, train_classifier
from .figures import class_table, save
from .frechet import frechet_distance, image_statistics
from .leaf_quality import COLLAPSED_BELOW, leaf_quality

CLASSIFIER = "classifier.safetensors"
ENTROPY = "natural logarithm; every generated image counts in its leaf, however probable"
CHUNK = 500
"""Real images that are assigned at once."""
DRAWN_AT_ONCE = 10
"""Between two movements of the bar."""
DRAWN_PER_SEEN = 20
"""Images that the classifier learns from in about the time in which one is drawn, for the bar."""


@dataclass(frozen=True)
class Judged:
    """What `judge` found.

    Attributes:
        scores: what `quality.json` holds.
        classifier: the judge.
    """

    scores: dict[str, Any]
    classifier: Classifier


def judge(
    engine: Engine,
    train: ImageSet,
    test: ImageSet,
    out: Path,
    *,
    num_images: int = 1000,
    seed: int = 0,
    epochs: int = 10,
    architecture: Architecture = "resnet18",
    sampling: SamplingOptions | None = None,
    quiet: bool = False,
) -> Judged:
    """Writes `quality.json`, `classes.png` and the classifier into a folder.

    Args:
        engine: a model at work.
        train: labelled images that the classifier learns from.
        test: labelled images that the generated ones are compared with.
        out: the folder.
        num_images: n, drawn and compared; the floor of the distance depends on it.
        seed: of the images and of the classifier.
        epochs: passes of the classifier over its images.
        architecture: of the classifier.
        sampling: how images are drawn; the bundle's own way if None.
        quiet: no progress bar.

    Raises:
        ConfigError: too few images for a distance.
        DataError: images without labels, or with other classes in the parts.
        ShapeError: images of another shape than the model's.
    """
    if num_images < 2:
        raise ConfigError("num_images", got=num_images, expected="at least 2, to have a spread")
    for part in (train, test):
        if part.images.shape[1:] != engine.image_shape:
            raise ShapeError(
                "images", got=list(part.images.shape[1:]),
                expected=f"{list(engine.image_shape)}, those that the model draws",
            )  # fmt: skip
    known, labels = _numbered(train)
    classes, test_labels = _numbered(test)
    if not np.array_equal(known, classes):
        raise DataError(
            "labels",
            got=f"classes {classes.tolist()} in the test part",
            expected=f"those of the training part, {known.tolist()}",
        )
    tree, own, real = engine.topology, to_bytes(train.images), to_bytes(test.images)
    learning = len(own) * epochs
    with Progress(learning + DRAWN_PER_SEEN * num_images, "judging", quiet=quiet) as progress:
        classifier = train_classifier(
            own, labels, classes=len(known), seed=seed, epochs=epochs, architecture=architecture,
            path=out / CLASSIFIER, device=best_device(), progress=progress,
        )  # fmt: skip
        images, leaf, again = [], [], []
        for start in range(0, num_images, DRAWN_AT_ONCE):
            count = min(DRAWN_AT_ONCE, num_images - start)
            made = engine.generate(count, seed=seed, offset=start, **(sampling or {}))
            images.append(made.images)
            leaf.append(made.leaf)
            again.append(engine.assign(made.images).argmax(1))
            progress.advance(DRAWN_PER_SEEN * count, "drawing and assigning")
    drawn, beside = np.concatenate(images), real[:num_images]
    judged, truth = classifier.judge(drawn), classifier.judge(beside)
    quality = leaf_quality(
        np.concatenate(leaf), judged.probabilities, judged.features,
        assigned=np.concatenate(again), real_leaf=_assigned(engine, beside),
        real_features=truth.features, leaves=tree.num_leaves,
    )  # fmt: skip
    rest = real[num_images:] if len(real) >= 2 * num_images else real
    statistics = image_statistics(classifier, rest)
    distance, floor = (
        frechet_distance(image_statistics(classifier, each), statistics) for each in (drawn, beside)
    )
    accuracy = classifier.accuracy(real, test_labels)
    scores = {
        "images": num_images,
        "seed": seed,
        "classifier": {
            "key": classifier.key,
            "architecture": architecture,
            "epochs": epochs,
            "test_accuracy": accuracy,
        },
        "test_images_were_trained_on": train.fingerprint == test.fingerprint,
        "classes": known.tolist(),
        "leaf_names": list(tree.leaf_names),
        "frechet_in_classifier_features": {"generated": distance, "as_many_test_images": floor},
        "entropy": ENTROPY,
        "collapsed_below": COLLAPSED_BELOW,
        "leaves": quality.to_json(),
    }
    write_json(out / "quality.json", scores)
    named = train.class_names
    names = [str(k) if named is None else named[k] for k in known.tolist()]
    title = f"Classes of {num_images} generated images by leaf, as a classifier sees them"
    save(class_table(np.array(quality.histogram), names, tree, title=title), out / "classes.png")
    return Judged(scores, classifier)


def _numbered(data: ImageSet) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes, and each image's as a number from 0."""
    if data.labels is None:
        raise DataError(
            "images",
            got="no labels",
            expected="a class for each image, which the classifier learns",
            hint="sort them into a folder for each class, or give an .npz file with labels",
        )
    classes, numbers = np.unique(data.labels, return_inverse=True)
    return classes, numbers.astype(np.int64)


def _assigned(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.intp]:
    parts = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    return np.concatenate([engine.assign(part).argmax(1) for part in parts])
