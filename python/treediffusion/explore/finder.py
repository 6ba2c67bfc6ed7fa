"""Where an image goes, without the model: a vote of the nearest of a few known images.

An image x [C, H, W] becomes the means over a grid of at most 8x8 fields, ``f = A x A'`` with A
[G, H] the share of each row that lies in each field, centred and scaled to length 1 over all C G G
numbers. The K nearest known images vote for their leaves by ``exp(-(d - d_1) / 0.05)``, d the
squared distance. The page computes the same in the browser.

This is an approximation, and `agreement` says how good: the share of other images whose winner is
the model's own most probable leaf. NumPy only.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID, NEIGHBOURS, WIDTH = 8, 7, 0.05
KNOWN_PER_LEAF, HELD_OUT = 60, 500

UInt8Array = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Finder:
    """Known images as features, and how well they answer.

    Attributes:
        grid: G, fields on a side.
        features: [n, C * G * G] uint8, means before they are centred.
        leaf: [n] ids.
        agreement: with the model, over images that are not among these; None if there are none.
        held_out: how many those are.
        generated: whether the known images are generated ones.
    """

    grid: int
    features: UInt8Array
    leaf: Ints
    agreement: float | None
    held_out: int
    generated: bool

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; bytes in base 64."""
        return {
            "grid": self.grid,
            "features": base64.b64encode(self.features.tobytes()).decode("ascii"),
            "leaf": self.leaf.tolist(),
            "neighbours": NEIGHBOURS,
            "width": WIDTH,
            "agreement": self.agreement,
            "heldOut": self.held_out,
            "generated": self.generated,
        }

    def leaf_probabilities(self, images: UInt8Array, leaves: int) -> Floats:
        """[n, L] the vote for images [n, C, H, W]."""
        return self._vote(_features(images, self.grid), leaves)

    def _vote(self, features: UInt8Array, leaves: int) -> Floats:
        known, asked = _normal(self.features), _normal(features)
        distance = 2.0 - 2.0 * asked @ known.T
        few = min(NEIGHBOURS, len(known))
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :few]
        apart = np.take_along_axis(distance, nearest, axis=1)
        weight = np.exp(-(apart - apart[:, :1]) / WIDTH)
        votes = np.zeros((len(asked), leaves))
        for k in range(few):
            votes[np.arange(len(asked)), self.leaf[nearest[:, k]]] += weight[:, k]
        shares: Floats = votes / votes.sum(axis=1, keepdims=True)
        return shares


def make_finder(images: UInt8Array, leaf: Ints, leaves: int, *, generated: bool) -> Finder:
    """Known images evenly spaced among each leaf's, the agreement over others.

    Args:
        images: [n, C, H, W].
        leaf: [n] ids, the most probable leaf of each.
        leaves: L.
        generated: whether they are generated.
    """
    grid = min(GRID, *images.shape[2:])
    known = np.zeros(len(images), bool)
    for number in range(leaves):
        known[spaced(np.flatnonzero(leaf == number), KNOWN_PER_LEAF)] = True
    other = spaced(np.flatnonzero(~known), HELD_OUT)
    features = _features(images[known], grid)
    finder = Finder(grid, features, leaf[known], None, 0, generated)
    if not len(other):
        return finder
    found = finder.leaf_probabilities(images[other], leaves).argmax(axis=1)
    agreement = round(float((found == leaf[other]).mean()), 4)
    return Finder(grid, features, leaf[known], agreement, len(other), generated)


def spaced(rows: Ints, most: int) -> Ints:
    """At most so many of these rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    kept: Ints = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return kept


def _features(images: UInt8Array, grid: int) -> UInt8Array:
    """[n, C * G * G] mean of each field, rounded to a byte."""
    rows, columns = (_fields(side, grid) for side in images.shape[2:])
    means = np.einsum("gh,nchw,kw->ncgk", rows, images.astype(np.float64), columns, optimize=True)
    rounded: UInt8Array = np.floor(means + 0.5).astype(np.uint8)
    return rounded.reshape(len(images), -1)


def _fields(side: int, grid: int) -> Floats:
    """[G, side] weight of each pixel in each field; a pixel on a border counts in both."""
    edges = np.arange(grid + 1) * side / grid
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weight: Floats = np.clip(overlap, 0.0, None) * grid / side
    return weight


def _normal(features: UInt8Array) -> Floats:
    """[n, D] centred, of length 1; an image of one colour becomes zeros."""
    centred: Floats = features.astype(np.float64) - features.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1.0)
