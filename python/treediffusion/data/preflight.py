"""What is in a set before anything is trained on it: counts, sizes, classes, and what is wrong.

Every picture is decoded once, and none is kept. Two are duplicates if their decoded pixels are
equal, in whatever format they were saved; scaled or recompressed copies are not found.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .content import Content, Pixels, Split
from .decoding import in_threads, resized
from .listing import Listing
from .pictures import Entry, Fit, decode
from .sources import Source, find_source

FEW = 1000
FEW_OF_CLASS = 20
OBLONG = 2.0
MEMORY = 2**33  # bytes as 32-bit floats, which is how a set is trained on
SHEET = 64
SHEET_SIDE = 64


class Look(NamedTuple):
    """One picture that was decoded."""

    name: str
    size: tuple[int, int]
    mode: str
    digest: bytes


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        name: of the set.
        count: images that can be used.
        sizes: number of images of each width and height, as they are in the source.
        modes: number of images of each way to keep pixels, in Pillow's words, or arrays' types.
        classes: number of images of each class; None without labels.
        refused: what is wrong with each of the others.
        duplicates: names of pictures that are equal, group by group.
        warnings: what may go wrong in training.
        side: of the images that would be trained on; None as long as they are not square alike.
    """

    name: str
    count: int
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    classes: Mapping[str, int] | None
    refused: tuple[DataError, ...]
    duplicates: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    side: int | None


def inspect(given: str, *, split: Split = "train", size: int | None = None) -> Report:
    """Looks at every image of a source; arguments are those of `load`.

    Raises:
        DataError: no such source, no such split, or nothing that can be looked at.
    """
    source = find_source(given, split=split)
    source.check()
    found = source.read()
    if source.recipe is not None:
        source.recipe.check(found, split)
    if isinstance(found, Content):
        looks, labels = _look_at_arrays(found), found.labels
        refused: list[DataError] = []
    else:
        looks, refused, kept = _look_at_pictures(found, source.name)
        labels = None if found.labels is None else found.labels[kept]
    sizes = Counter(look.size for look in looks)
    classes = _classes(labels, found.class_names)
    side = _side(source, sizes, size)
    channels = found.images.shape[1] if isinstance(found, Content) else 3
    warnings = _warnings_of_count(len(looks), classes)
    if source.recipe is None:
        warnings += _warnings_of_size(sizes, size)
    warnings += _warnings_of_memory(len(looks), channels, side)
    return Report(
        name=source.name,
        count=len(looks),
        sizes=dict(sizes.most_common()),
        modes=dict(Counter(look.mode for look in looks).most_common()),
        classes=classes,
        refused=tuple(refused),
        duplicates=_duplicates(looks),
        warnings=tuple(warnings),
        side=side,
    )


def contact_sheet(
    given: str, *, split: Split = "train", size: int | None = None
) -> NDArray[np.uint8]:
    """[n, C, H, W], at most 64 images spread evenly over a set, as training would see them.

    Raises:
        DataError: no such source, no picture that can be used, or vectors.
    """
    source = find_source(given, split=split)
    found = source.read()
    number = len(found.images) if isinstance(found, Content) else len(found.entries)
    rows = np.linspace(0, number - 1, min(SHEET, number)).round().astype(int)
    if isinstance(found, Content):
        if found.images.shape[2:] == (1, 1):
            raise DataError("--sheet", got="vectors", expected="images")
        from .dataset import to_bytes

        images: Pixels = found.images[rows]
        if size is not None:
            images = resized(images, size, title=f"scaling {source.name}")
        return to_bytes(images)
    recipe = source.recipe
    fit = Fit(size or SHEET_SIDE) if recipe is None else Fit(size or recipe.size, recipe.cut)
    pictures = []
    for row in rows:
        try:
            pictures.append(decode(found.entries[row], fit).pixels)
        except DataError:
            continue
    if not pictures:
        raise DataError("--sheet", got="no picture that can be used", expected="one or more")
    channels = max(map(len, pictures))
    shown = [np.broadcast_to(one, (channels, *one.shape[1:])) for one in pictures]
    return np.stack(shown)


def _look_at_pictures(
    listing: Listing, name: str
) -> tuple[list[Look], list[DataError], NDArray[np.int64]]:
    looks: list[Look] = []
    refused: list[DataError] = []
    kept: list[int] = []
    for row, look in enumerate(in_threads(_look, listing.entries, title=f"looking at {name}")):
        if isinstance(look, DataError):
            refused.append(look)
        else:
            looks.append(look)
            kept.append(row)
    return looks, refused, np.array(kept, np.int64)


def _look(entry: Entry) -> Look | DataError:
    try:
        picture = decode(entry, Fit())
    except DataError as fault:
        return fault
    return Look(entry.name, picture.size, picture.mode, _digest(picture.pixels))


def _look_at_arrays(content: Content) -> list[Look]:
    height, width = content.images.shape[2:]
    mode = f"{content.images.shape[1]} x {content.images.dtype}"
    return [
        Look(f"image {row}", (width, height), mode, _digest(image))
        for row, image in enumerate(content.images)
    ]


def _digest(pixels: Pixels) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _duplicates(looks: Sequence[Look]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[Hashable, list[str]] = defaultdict(list)
    for look in looks:
        groups[look.digest].append(look.name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _classes(
    labels: NDArray[np.int64] | None, names: tuple[str, ...] | None
) -> dict[str, int] | None:
    if labels is None:
        return None
    found = Counter(labels.tolist())
    if names is None:
        return {str(number): found[number] for number in sorted(found)}
    return {name: found[number] for number, name in enumerate(names)}


def _side(source: Source, sizes: Mapping[tuple[int, int], int], size: int | None) -> int | None:
    if size is not None or source.recipe is not None:
        return size or (source.recipe.size if source.recipe else None)
    if not sizes:
        return None
    (width, height), *others = sizes
    return width if width == height and not others else None


def _warnings_of_count(count: int, classes: Mapping[str, int] | None) -> list[str]:
    found = []
    if count < FEW:
        few = "1 image is" if count == 1 else f"{count or 'no'} images are"
        found.append(f"{few} few: a tree wants hundreds for each of its leaves")
    small = [name for name, number in (classes or {}).items() if number < FEW_OF_CLASS]
    if small:
        shown = ", ".join(small[:5]) + (" and more" if len(small) > 5 else "")
        found.append(f"fewer than {FEW_OF_CLASS} images of {shown}: scores of them say little")
    return found


def _warnings_of_size(sizes: Mapping[tuple[int, int], int], size: int | None) -> list[str]:
    if size is None:
        if len(sizes) > 1:
            return ["images of several sizes need one to be trained at, such as --image-size 64"]
        if any(width != height for width, height in sizes):
            return ["oblong images cannot be trained on; --image-size makes them square"]
        return []
    cut = sum(n for sides, n in sizes.items() if max(sides) > OBLONG * min(sides))
    small = sum(n for sides, n in sizes.items() if min(sides) < size)
    found = []
    if cut:
        found.append(f"{cut} images lose more than half: the middle square is what is kept")
    if small:
        found.append(f"{small} images are smaller than {size}x{size} and will be enlarged")
    return found


def _warnings_of_memory(count: int, channels: int, side: int | None) -> list[str]:
    need = 4 * count * channels * (side or 0) ** 2
    if need <= MEMORY:
        return []
    return [f"{need / 2**30:.0f} GiB of memory are needed to train on them at {side}x{side}"]
