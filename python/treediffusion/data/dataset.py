"""One set of images, and how a name or a path becomes one.

Every set is `images: [n, C, H, W]`, bytes as stored or floats in [0, 1], so that a set has one
fingerprint however it was packed; vectors are images of one pixel, [n, D, 1, 1]. `to_float` maps
them to [0, 1]. Labels travel along for evaluation only; training never reads them. Nothing here
augments or shuffles.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import DataError
from .cache import Packed, packed
from .content import Content, Pixels, Split, fingerprint
from .decoding import decode_all, refuse, resized
from .listing import Listing
from .pictures import Fit
from .sources import Source, find_source, stamps

FEWEST = 2  # images of a leaf: batch normalisation compares them


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size.

    Attributes:
        images: [n, C, H, W], pixels as stored: uint8, or float32 in 0..1. A large set is mapped
            from its packed copy; what is written to it stays in this process.
        labels: [n] int64, ground-truth classes, used only for evaluation; None where unknown.
        name: what the set is called in tables and file names.
        class_names: name of each class; None where classes are numbers only.
        fingerprint: first 16 hexadecimal digits of the SHA-256 of shape, type unless uint8, and
            pixels.
    """

    images: Pixels
    labels: NDArray[np.int64] | None
    name: str
    class_names: tuple[str, ...] | None
    fingerprint: str


def load(
    source: str, *, split: Split = "train", size: int | None = None, skip_corrupt: bool = False
) -> ImageSet:
    """The images that a name or a path means.

    What has to be decoded or computed is packed once, and mapped into memory from then on; arrays
    and idx files are read as they are. `digits` has no split: both are the same 1,797 images, so a
    score on its "test" set is a score on training images.

    Args:
        source: name of a recipe (`RECIPES`), perhaps with the folder of its originals as
            `NAME:FOLDER`; or a folder, a zip or a CSV list of pictures, an .npy or .npz file, idx
            files, or 20 Newsgroups.
        split: which part; a source without a test part has a train part only.
        size: side to scale images to: the middle square of pictures, or what the recipe cuts out.
            None leaves them as they are, or as the recipe says.
        skip_corrupt: leave out pictures that cannot be used, and say so.

    Raises:
        DataError: no such source, no such split, or contents that cannot be used.
    """
    if size is not None and size < 1:
        raise DataError("size", got=size, expected="a side of 1 pixel or more")
    found = find_source(source, split=split)
    made = _pack(found, split, size)
    if made.refused:
        count = len(made.content.images) + len(made.refused)
        if not skip_corrupt:
            refuse(made.refused, count, source)
        line = f"{found.name}: {len(made.refused)} of {count} pictures left out"
        print(f"treediffusion: {line}, which cannot be used", file=sys.stderr)
    if not len(made.content.images):
        raise DataError("data", got=f"{source!r} without a picture that can be used", expected="1")
    content = made.content
    return ImageSet(
        content.images, content.labels, found.name, content.class_names, made.fingerprint
    )


load_images = load
"""The same; the name that says what it loads where `load` alone would not."""


def load_like(settings: Mapping[str, Any], source: str, *, split: Split = "train") -> ImageSet:
    """Images for a trained model: scaled, and chosen, as those it was trained on.

    Args:
        settings: of its training, as a bundle's manifest has them.
        source: as for `load`.
        split: as for `load`.
    """
    size, skip = settings.get("image_size"), settings.get("skip_corrupt", False)
    return load(source, split=split, size=size, skip_corrupt=skip)


def load_to_train(config: Config) -> ImageSet:
    """The training images that settings mean.

    Raises:
        DataError: as `load`, or fewer images than the settings' tree can be grown on.
    """
    size, skip = config.image_size, config.skip_corrupt
    found = load(config.data, size=size, skip_corrupt=skip)
    leaves = config.tree.max_leaves
    if len(found.images) < FEWEST * leaves:
        raise DataError(
            "data",
            got=f"{len(found.images)} images in {config.data!r}",
            expected=f"at least {FEWEST * leaves}, {FEWEST} for each of {leaves} leaves",
            hint="add images, hundreds if you can, or lower --tree.max-leaves",
        )
    return found


def to_float(images: Pixels) -> NDArray[np.float32]:
    """Pixels in [0, 1], float32, of any shape: 0 stays 0 and 255 becomes 1.

    Floats are in that range already, and the array itself is returned.
    """
    if images.dtype == np.float32:
        return images.astype(np.float32, copy=False)
    return images.astype(np.float32) / np.float32(255)


def to_bytes(images: Pixels) -> NDArray[np.uint8]:
    """Pixels of 0 to 255, of any shape; floats are rounded to the nearest."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    rounded: NDArray[np.uint8] = np.floor(images * np.float32(255) + np.float32(0.5)).astype(
        np.uint8
    )
    return rounded


def _pack(source: Source, split: Split, size: int | None) -> Packed:
    """The images, out of the cache if they were worth putting there."""
    recipe = source.recipe
    if source.place is not None:
        facts = None if recipe is None else recipe.facts()
        key = [source.name, split, size, stamps(source.place), facts]
        return packed(source.name, key, partial(_packed_arrays, source, split, size))
    found = source.read()
    if isinstance(found, Content):
        return _arrays(source, found, size)
    if recipe is not None:
        recipe.check(found, split)
    fit = Fit(size) if recipe is None else Fit(size or recipe.size, recipe.cut)
    labels = None if found.labels is None else found.labels.tolist()
    files = [[entry.place, *entry.stamp] for entry in found.entries]
    described = [source.name, split, fit, files, labels, found.class_names]
    return packed(source.name, described, partial(_pictures, source, found, fit))


def _packed_arrays(source: Source, split: Split, size: int | None) -> Packed:
    source.check()
    found = cast(Content, source.read())
    if source.recipe is not None:
        source.recipe.check(found, split)
    return _arrays(source, found, size)


def _arrays(source: Source, found: Content, size: int | None) -> Packed:
    images = found.images
    if size is not None and images.shape[2:] != (size, size):
        if images.shape[2:] == (1, 1):
            raise DataError("size", got=size, expected="none, for vectors", hint="leave it out")
        images = resized(images, size, title=f"scaling {source.name}")
    return _described(found._replace(images=np.ascontiguousarray(images)))


def _pictures(source: Source, listing: Listing, fit: Fit) -> Packed:
    source.check()
    made = decode_all(listing.entries, fit, title=f"reading {source.name}")
    labels = None if listing.labels is None else listing.labels[made.kept]
    return _described(Content(made.images, labels, listing.class_names), made.refused)


def _described(content: Content, refused: tuple[DataError, ...] = ()) -> Packed:
    return Packed(content, refused, fingerprint(content.images))
