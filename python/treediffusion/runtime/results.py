"""What the engine's calls give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .batches import Names

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Generation:
    """Images and where they come from.

    Attributes:
        images: [n, C, H, W] uint8.
        leaf: [n] int64, id of each image's leaf.
        leaf_prob: [n, L] float32, probability of each leaf given the image's latents, whatever
            node was asked for; after `reconstruct`, given the image that was reconstructed.
        leaf_names: [L] what the ids mean; a leaf's name is its path.
        seed: [n] uint64 of each image.
        index: [n] uint64, its index among the images of its seed.
    """

    images: Bytes
    leaf: NDArray[np.int64]
    leaf_prob: Floats
    leaf_names: tuple[str, ...]
    seed: NDArray[np.uint64]
    index: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        images: Bytes,
        leaf: NDArray[np.int64],
        leaf_prob: Floats,
        leaf_names: tuple[str, ...],
        names: Names,
    ) -> Self:
        """A batch with its names."""
        seed, index = np.array(names.seed, np.uint64), np.array(names.index, np.uint64)
        return cls(images, leaf, leaf_prob, leaf_names, seed, index)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All batches of a call."""
        arrays = [field.name for field in fields(cls) if field.name != "leaf_names"]
        found = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
        return cls(**found, leaf_names=parts[0].leaf_names)


class Sheet(NamedTuple):
    """The same latents through every leaf.

    Attributes:
        images: [n, L, C, H, W] uint8.
        leaf_prob: [n, L] float32.
    """

    images: Bytes
    leaf_prob: Floats

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All batches of a call."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class Preview:
    """What a call has drawn so far.

    Attributes:
        images: [n, ...] uint8, the newest estimate of a batch's finished images.
        rows: where the batch lies in the call.
        evaluation: evaluations of the network so far.
        evaluations: how many this batch takes.
    """

    images: Bytes
    rows: slice
    evaluation: int
    evaluations: int

    @property
    def done(self) -> bool:
        """Whether these are the finished images."""
        return self.evaluation == self.evaluations
