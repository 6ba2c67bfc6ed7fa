"""An independent judge of generated images: a residual network trained on real, labelled ones.

    probabilities = softmax(W f(x) + b),  f(x) = mean over places of the last map of a ResNet

Everything is judged as stored in a file: bytes. Floats are clamped to 0..1, multiplied by 255 and
rounded half up before the network sees them, real and generated ones alike.

The papers train torchvision's ResNet-50 from its ImageNet weights: Adam, rate 1e-3, 50 epochs, no
augmentation, 1000-way head, the stem made for large pictures. Here nothing is downloaded: every
network begins at random, its head has K classes, pixels are standardised, batches are shuffled
and the rate falls to zero as a cosine; `resnet50` has the papers' layers and stem, `resnet18` a
stem for small images. Entropies and distances compare models only if one classifier judged them
all. With 16 channels and 28x28 pixels expect some 3 ms an image and epoch on one core.

Not here: no augmentation, no choice among epochs, and nothing of the tree: it never sees a leaf.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import to_bytes
from ..errors import ConfigError, DataError, ShapeError
from ..optional import require
from ..progress import Progress
from ..train.optimizer import make_adam
from .keyed import content_key, load_keyed, save_keyed

Architecture = Literal["resnet18", "resnet50"]
UInt8Array = NDArray[np.uint8]

KIND = "classifier"
RECIPE = 1
"""Number of the way of training; another way is another number, and so another key."""
LAYERS = {"resnet18": ("BasicBlock", (2, 2, 2, 2)), "resnet50": ("Bottleneck", (3, 4, 6, 3))}
SMALL_WIDTH, FULL_WIDTH = 16, 64
SMALL_SIDE = 32
MIN_SIDE = 8
BATCH = 128
LEARNING_RATE = 1e-3
CHUNK = 500
"""Images in a pass that trains nothing."""


class Judgement(NamedTuple):
    """What one pass says of n images.

    Attributes:
        features: [n, D] float32, pooled maps before the last layer.
        probabilities: [n, K] float32, of the classes.
    """

    features: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class ResNet(nn.Module):
    """Torchvision's residual blocks, at any width: 64 channels in the first stage are its own.

    Args:
        architecture: which blocks, how many, and which stem: 3x3 without pooling for `resnet18`,
            7x7 with stride 2 and pooling for `resnet50`.
        width: channels of the first of four stages; each stage doubles them and halves the sides.
        channels: of the images.
        classes: K.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, architecture: Architecture, *, width: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        name, depths = LAYERS[architecture]
        block = getattr(require("torchvision.models.resnet", extra="train"), name)
        if architecture == "resnet18":
            stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
            pool: list[nn.Module] = []
        else:
            stem = [nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)]
            pool = [nn.MaxPool2d(3, stride=2, padding=1)]
        self.stem = nn.Sequential(*stem, nn.BatchNorm2d(width), nn.ReLU(), *pool)
        stages, inner = [], width
        for number, depth in enumerate(depths):
            outer = width << number
            stages.append(_stage(block, inner, outer, depth=depth, stride=1 if number == 0 else 2))
            inner = outer * block.expansion
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inner, classes)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def standardise(self, images: UInt8Array) -> None:
        """Take each channel's mean and deviation from images: [n, C, H, W] uint8."""
        planes = images.swapaxes(0, 1)
        counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in planes])
        share, value = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
        mean = share @ value
        deviation = np.sqrt(np.maximum(share @ value**2 - mean**2, 0))
        # A channel that never changes has no deviation to divide by.
        scale = 1 / np.maximum(deviation, 1 / 255)
        self.mean.copy_(torch.from_numpy(mean)[:, None, None])
        self.scale.copy_(torch.from_numpy(scale)[:, None, None])

    def features(self, images: Tensor) -> Tensor:
        """[n, C, H, W] uint8 -> [n, D] float."""
        x = (images.to(self.mean.dtype) / 255 - self.mean) * self.scale
        return cast("Tensor", self.stages(self.stem(x))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] uint8 -> [n, K] float, logits."""
        return cast("Tensor", self.head(self.features(images)))


class Classifier:
    """A trained network that judges images; see `train_classifier`.

    Args:
        network: in eval mode from here on.
        image_shape: (C, H, W) of every image.
        key: what it was trained from, as a content hash.
    """

    def __init__(self, network: ResNet, *, image_shape: tuple[int, ...], key: str) -> None:
        self.network, self.image_shape, self.key = network.eval(), image_shape, key

    @property
    def classes(self) -> int:
        """K."""
        return self.network.head.out_features

    @property
    def width(self) -> int:
        """D, numbers in a feature vector."""
        return self.network.head.in_features

    @torch.no_grad()
    def judge(self, images: NDArray[Any]) -> Judgement:
        """Features and probabilities in one pass; either alone costs as much.

        Args:
            images: [n, C, H, W] uint8, or float, which is clamped to 0..1 and rounded to bytes.

        Raises:
            ShapeError: images of another shape or kind, or a pixel that is not finite.
        """
        pixels = as_bytes(images, name="images")
        if pixels.shape[1:] != self.image_shape:
            raise ShapeError(
                "images",
                got=f"shape {list(pixels.shape)}",
                expected=f"[n, {', '.join(map(str, self.image_shape))}], as it was trained on",
            )
        network, features, probabilities = self.network, [], []
        for start in range(0, len(pixels), CHUNK):
            x = torch.tensor(pixels[start : start + CHUNK], device=network.mean.device)
            found = network.features(x)
            features.append(found.cpu().numpy())
            probabilities.append(F.softmax(network.head(found), dim=1).cpu().numpy())
        return Judgement(np.concatenate(features), np.concatenate(probabilities))

    def features(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """[n, C, H, W] -> [n, D] float32; see `judge`."""
        return self.judge(images).features

    def probabilities(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """[n, C, H, W] -> [n, K] float32; see `judge`."""
        return self.judge(images).probabilities

    def accuracy(self, images: NDArray[Any], labels: NDArray[Any]) -> float:
        """Share of images whose most probable class is their label.

        Args:
            images: [n, C, H, W], as for `judge`; held out, or the number says nothing.
            labels: [n] int, 0 to K - 1; a class may be absent.

        Raises:
            ShapeError: images or labels of another shape, kind or range.
        """
        _check_labels(labels, len(images), self.classes)
        return float((self.probabilities(images).argmax(1) == labels).mean())


def best_device() -> str:
    """Where there is most to compute with."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def train_classifier(
    images: NDArray[Any],
    labels: NDArray[Any],
    *,
    classes: int,
    seed: int = 0,
    epochs: int = 10,
    architecture: Architecture = "resnet18",
    width: int | None = None,
    path: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Classifier:
    """A classifier of these images, trained, or read from `path` if it was trained from the same.

    On a CPU equal seeds and thread numbers give equal bits; PyTorch's generator is left alone.

    A file of something else at `path` is an error, and stays: scores under two classifiers do not
    compare, and a silent change of judge would pass for a change of the images.

    Args:
        images: [n, C, H, W] uint8, or float in 0..1, rounded to bytes; sides of 8 or more.
        labels: [n] int, 0 to K - 1, each of them in use.
        classes: K, 2 or more.
        seed: of the first weights and the order of images.
        epochs: passes over the images.
        architecture: of `ResNet`.
        width: of `ResNet`; None is 16 for grey images of sides up to 32, and 64 otherwise.
        path: a safetensors file, read if it is there and written if not; None keeps nothing.
        device: where to train and judge.
        progress: advanced by n with every epoch; n * epochs in all.

    Raises:
        ShapeError: images or labels of a wrong shape, kind or range.
        DataError: a class without images.
        ConfigError: a setting that cannot be.
        CheckpointError: `path` holds something else, or what was damaged, or cannot be written.
    """
    pixels = _checked(images, labels, classes)
    settings = _settings(
        pixels, classes=classes, seed=seed, epochs=epochs, architecture=architecture, width=width
    )
    key = content_key(pixels, np.asarray(labels, np.int64), settings)
    facts = settings | {"images": len(pixels), "image_shape": list(pixels.shape[1:])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(
            architecture, width=settings["width"], channels=pixels.shape[1], classes=classes
        )
    # Channels last: a third less time on a CPU.
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path is not None and path.exists():
        network.load_state_dict(load_keyed(path, kind=KIND, key=key, facts=facts)[0])
        if progress is not None:
            progress.skip(len(pixels) * epochs)
    else:
        network.standardise(pixels)
        _fit(network, pixels, labels, seed=seed, epochs=epochs, progress=progress)
        if path is not None:
            save_keyed(path, network.state_dict(), facts, kind=KIND, key=key)
    return Classifier(network, image_shape=pixels.shape[1:], key=key)


def as_bytes(images: NDArray[Any], *, name: str) -> UInt8Array:
    """Images as a file would hold them: bytes stay, floats are clamped to 0..1 and rounded.

    Args:
        images: [n, C, H, W] uint8 or float, n of 1 or more.
        name: of the argument, for the error.

    Raises:
        ShapeError: another shape or kind, or a pixel that is not finite.
    """
    expected = "uint8 or float [n, C, H, W], n of 1 or more, floats in 0..1"
    if not isinstance(images, np.ndarray):
        raise ShapeError(name, got=type(images).__name__, expected=expected)
    right = images.dtype == np.uint8 or images.dtype.kind == "f"
    if images.ndim != 4 or images.size == 0 or not right:
        raise ShapeError(name, got=f"{images.dtype} {list(images.shape)}", expected=expected)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images, dtype=np.uint8)
    wrong = np.count_nonzero(~np.isfinite(images))
    if wrong:
        raise ShapeError(name, got=f"{wrong} pixels that are not finite", expected=expected)
    return np.ascontiguousarray(to_bytes(np.clip(images.astype(np.float32, copy=False), 0, 1)))


def _settings(
    pixels: UInt8Array,
    *,
    classes: int,
    seed: int,
    epochs: int,
    architecture: Architecture,
    width: int | None,
) -> dict[str, Any]:
    """All that a classifier depends on besides images and labels."""
    if architecture not in LAYERS:
        raise ConfigError("architecture", got=repr(architecture), expected=", ".join(LAYERS))
    if width is None:
        grey = architecture == "resnet18" and pixels.shape[1] == 1
        width = SMALL_WIDTH if grey and max(pixels.shape[2:]) <= SMALL_SIDE else FULL_WIDTH
    for name, count in (("epochs", epochs), ("width", width)):
        if count < 1:
            raise ConfigError(name, got=count, expected="1 or more")
    return {
        "recipe": RECIPE,
        "architecture": architecture,
        "width": width,
        "classes": classes,
        "seed": seed,
        "epochs": epochs,
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
    }


def _fit(
    network: ResNet,
    pixels: UInt8Array,
    labels: NDArray[Any],
    *,
    seed: int,
    epochs: int,
    progress: Progress | None,
) -> None:
    """Cross-entropy by Adam, every image once an epoch, in an order of its own each time."""
    device = network.mean.device
    x = torch.tensor(pixels, device=device)
    y = torch.tensor(np.asarray(labels, np.int64), device=device)
    optimizer = make_adam(network.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    # Batches of nearly equal size, because a last one of a single image has no batch statistics.
    batches = math.ceil(len(x) / BATCH)
    network.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(device)
        for number, rows in enumerate(torch.tensor_split(order, batches)):
            done = (epoch * batches + number) / (epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if progress is not None:
            progress.advance(len(x), f"classifier {epoch + 1}/{epochs}")


def _stage(block: Any, inner: int, outer: int, *, depth: int, stride: int) -> nn.Sequential:
    """Blocks of one size; the first one changes it, and its shortcut then has a convolution."""
    end, shortcut = outer * block.expansion, None
    if stride != 1 or inner != end:
        shortcut = nn.Sequential(
            nn.Conv2d(inner, end, 1, stride=stride, bias=False), nn.BatchNorm2d(end)
        )
    first = block(inner, outer, stride, shortcut)
    return nn.Sequential(first, *(block(end, outer) for _ in range(depth - 1)))


def _checked(images: NDArray[Any], labels: NDArray[Any], classes: int) -> UInt8Array:
    """The images to train on, as bytes."""
    if classes < 2:
        raise ConfigError("classes", got=classes, expected="2 or more, since one needs no judge")
    _check_unit(images)
    pixels = as_bytes(images, name="images")
    if min(pixels.shape[2:]) < MIN_SIDE:
        raise ShapeError(
            "images", got=f"{list(pixels.shape)}", expected=f"[n, C, H, W], sides from {MIN_SIDE}"
        )
    _check_labels(labels, len(pixels), classes)
    missing = np.setdiff1d(np.arange(classes), labels)
    if len(missing):
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            "labels",
            got=f"no image of class {few}",
            expected=f"every class from 0 to {classes - 1}",
            hint="number the classes in use: np.unique(labels, return_inverse=True)[1]",
        )
    return pixels


def _check_unit(images: NDArray[Any]) -> None:
    """Real pixels outside 0..1 are a wrong unit; generated ones overshoot, and are clamped."""
    floats = isinstance(images, np.ndarray) and images.dtype.kind == "f" and images.size > 0
    if floats and (images.min() < 0 or images.max() > 1):
        raise ShapeError(
            "images",
            got=f"pixels from {images.min():g} to {images.max():g}",
            expected="floats in 0..1, or uint8",
            hint="divide by 255 if they are 0..255",
        )


def _check_labels(labels: NDArray[Any], count: int, classes: int) -> None:
    expected = f"integers [{count}] from 0 to {classes - 1}, one per image"
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        got = str(getattr(labels, "dtype", type(labels).__name__))
        raise ShapeError("labels", got=got, expected=expected)
    if labels.shape != (count,):
        raise ShapeError("labels", got=f"shape {list(labels.shape)}", expected=expected)
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise ShapeError(
            "labels", got=f"numbers from {labels.min()} to {labels.max()}", expected=expected
        )
