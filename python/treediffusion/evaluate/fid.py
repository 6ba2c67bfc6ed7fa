"""FID, KID, precision and recall of a bundle's images, under protocols that have names.

    paper      10,000 images against all of the test part, as the published tables have it
    standard   50,000 images against all of the training part, as most others count it

Numbers of two protocols do not compare: the training part gives lower ones, and few images give
higher ones (see `frechet`). So a number's key says what was measured in which features from how
many images against which part, with which sampler, steps and average of weights:

    fid_inception_10k_test_ddim96_ema0.9999

In the features of anything but the Inception network the first two are no FID and no KID and are
called `frechet` and `mmd`. Images go to the extractor as bytes, see `statistics`. The published
code truncated generated pixels where this rounds them, resized them a little differently inside the
network, and counted fewer images for two sets; its numbers compare to about a tenth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data import ImageSet
from ..errors import ConfigError, DataError, ShapeError
from ..files import write_json
from ..progress import Progress
from ..runtime import Engine
from ..runtime.plan import SamplingOptions
from .frechet import frechet_distance
from .kid import SUBSET, SUBSETS, kernel_distance
from .precision_recall import NEIGHBOURS, precision_recall
from .statistics import ROUNDING, Extractor, Gathered, gather, gather_batches

Split = Literal["train", "test"]
UInt8Array = NDArray[np.uint8]

FILE = "fid.json"
DRAWN_AT_ONCE = 50
DRAWN_PER_SEEN = 5
"""Images whose features take about as long as one is drawn, for the progress bar."""


@dataclass(frozen=True)
class FidProtocol:
    """How many generated images are compared with which part.

    Attributes:
        name: of the protocol.
        images: generated.
        split: the part of the real ones, all of which count.
    """

    name: str
    images: int
    split: Split


PROTOCOLS = {
    "paper": FidProtocol("paper", 10_000, "test"),
    "standard": FidProtocol("standard", 50_000, "train"),
}


@dataclass(frozen=True)
class Drawn:
    """How images were drawn, for the keys.

    Attributes:
        sampler: the solver's name.
        steps: of denoising.
        ema: decay of the averaged weights; None where it is not known.
        settings: what else there is to say: spacing, eta, guidance, seed.
    """

    sampler: str
    steps: int
    ema: float | None
    settings: Mapping[str, Any]


def measure(
    extractor: Extractor,
    generated: Gathered,
    real: Gathered,
    *,
    split: Split,
    drawn: Drawn,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every measure, by its key, with all that it depends on.

    Args:
        extractor: whose features these are.
        generated: images of the model.
        real: images of a part.
        split: which part.
        drawn: how the images were drawn.
        seed: of KID's subsets.

    Returns:
        By key: `value` and its conditions; `protocol` is None unless the numbers are exactly its.
    """
    count = generated.statistics.count
    own = extractor.name == "inception"
    facts = {
        "extractor": extractor.key,
        "generated": count,
        "real": real.statistics.count,
        "split": split,
        "protocol": protocol_of(count, split),
        "rounding": ROUNDING,
        "sampler": drawn.sampler,
        "steps": drawn.steps,
        "ema": drawn.ema,
        **drawn.settings,
    }

    def key(measure: str) -> str:
        return metric_key(measure, extractor.name, count, split, drawn)

    distance = frechet_distance(generated.statistics, real.statistics)
    kernel = kernel_distance(generated.features, real.features, seed=seed)
    among = precision_recall(generated.features, real.features)
    compared = {"compared": [len(generated.features), len(real.features)]}
    subsets = {"subsets": SUBSETS, "subset": min(SUBSET, *compared["compared"])}
    return {
        key("fid" if own else "frechet"): {"value": distance} | facts,
        key("kid" if own else "mmd"): {"value": kernel.mean, "deviation": kernel.deviation}
        | facts | compared | subsets,
        key("precision"): {"value": among.precision} | facts | compared
        | {"neighbours": NEIGHBOURS},
        key("recall"): {"value": among.recall} | facts | compared | {"neighbours": NEIGHBOURS},
    }  # fmt: skip


def measure_bundle(
    engine: Engine,
    part: ImageSet,
    extractor: Extractor,
    out: Path,
    *,
    images: int,
    split: Split,
    seed: int = 0,
    sampling: SamplingOptions | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Draws images, measures them, and adds the numbers to `fid.json` in a folder.

    Args:
        engine: a model at work.
        part: real images, all of which count.
        extractor: `Inception`, or a classifier's features.
        out: the folder.
        images: generated, 10 or more.
        split: which part the real images are.
        seed: of the images and of KID's subsets.
        sampling: how images are drawn; the bundle's own way if None.
        cache: a folder that keeps the real images' features; `out` if None.
        quiet: no progress bar.

    Returns:
        What was measured, by key.

    Raises:
        ConfigError: too few images.
        DataError: too few real ones.
        ShapeError: images of another shape than the model's.
    """
    least = NEIGHBOURS + 1
    if images < least:
        raise ConfigError("images", got=images, expected=f"{least} or more")
    if len(part.images) < least:
        raise DataError("images", got=len(part.images), expected=f"{least} or more")
    if part.images.shape[1:] != engine.image_shape:
        raise ShapeError(
            "images", got=list(part.images.shape[1:]),
            expected=f"{list(engine.image_shape)}, those that the model draws",
        )  # fmt: skip
    options = sampling or {}
    total = len(part.images) + images * (DRAWN_PER_SEEN + 1)
    with Progress(total, "measuring", quiet=quiet) as progress:
        real = gather(extractor, part.images, cache=cache or out, progress=progress)
        batches = _drawn(engine, images, seed, options, progress)
        generated = gather_batches(extractor, batches, images, progress=progress)
    found = measure(
        extractor, generated, real, split=split, seed=seed, drawn=how_drawn(engine, seed, options)
    )
    write_json(out / FILE, _earlier(out / FILE) | found)
    return found


def how_drawn(engine: Engine, seed: int, options: SamplingOptions) -> Drawn:
    """What the keys and records say of the drawing: a bundle's own way, and what a call changed."""
    told = {name: value for name, value in options.items() if value is not None}
    own = dict(engine.manifest["sampling"]) | told
    training = engine.manifest["config"]["diffusion"]
    ema = engine.manifest.get("ema", training["ema"])
    scale = own["guidance_scale"]
    settings = {
        "spacing": own["spacing"],
        "eta": own["eta"],
        "guidance_scale": list(scale) if isinstance(scale, tuple) else scale,
        "seed": seed,
    }
    return Drawn(str(own["solver"]), int(own["num_inference_steps"]), ema, settings)


def metric_key(measure: str, extractor: str, count: int, split: str, drawn: Drawn) -> str:
    """The name of a number.

    >>> metric_key("fid", "inception", 10_000, "test", Drawn("ddim", 96, 0.9999, {}))
    'fid_inception_10k_test_ddim96_ema0.9999'
    """
    images = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    ema = "" if drawn.ema is None else f"_ema{drawn.ema:g}"
    return f"{measure}_{extractor}_{images}_{split}_{drawn.sampler}{drawn.steps}{ema}"


def protocol_of(count: int, split: str) -> str | None:
    """The protocol that a measurement is of, if it is of one."""
    for protocol in PROTOCOLS.values():
        if (protocol.images, protocol.split) == (count, split):
            return protocol.name
    return None


def _earlier(path: Path) -> dict[str, Any]:
    """What the file holds of other measurements."""
    try:
        held = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as fault:
        held = str(fault)
    if not isinstance(held, dict):
        raise DataError(
            str(path), got=str(held)[:80], expected="measurements by key, as JSON",
            hint="remove the file, or choose another folder",
        )  # fmt: skip
    return held


def _drawn(
    engine: Engine, count: int, seed: int, options: SamplingOptions, progress: Progress
) -> Iterable[UInt8Array]:
    def parts() -> Iterator[UInt8Array]:
        for start in range(0, count, DRAWN_AT_ONCE):
            few = min(DRAWN_AT_ONCE, count - start)
            images = engine.generate(few, seed=seed, offset=start, **options).images
            progress.advance(DRAWN_PER_SEEN * few, "drawing")
            yield images

    return parts()
