"""A small atlas of bars in four places, made without a model."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treediffusion.explore import Atlas, Node, RealImages, Router, Sample, clusters_atlas
from treediffusion.topology import TreeTopology

LEAVES = ("r00", "r01", "r10", "r11")
NAMES = ("r", "r0", "r00", "r01", "r1", "r10", "r11")
"""All nodes in reading order."""


def bars(count: int = 400, *, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """[n, 1, 8, 8] upright bars in four places, and the place of each."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 40, (count, 1, 8, 8)).astype(np.uint8)
    place = np.arange(count) % 4
    for image, at in zip(images, place, strict=True):
        image[0, :, 2 * at : 2 * at + 2] = rng.integers(150, 255)
    return images, place.astype(np.int64)


@cache
def small_atlas() -> Atlas:
    """Four leaves in reading order of their places, with everything that a card can show."""
    tree = TreeTopology.of(NAMES)
    images, place = bars()
    real = RealImages(images, place, ("first", "second", "third", "fourth"))
    found = clusters_atlas(tree, place, real, title="bars")
    return Atlas(**(vars(found) | {"nodes": [_drawn(node) for node in found.nodes], "steps": 5}))


def page_values(page: str) -> Any:
    """The numbers in a page."""
    found = re.search(r'<script type="application/json" id="atlas">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def _drawn(node: Node) -> Node:
    """A card whose real images pass as new ones."""
    leaf = next(k for k, name in enumerate(LEAVES) if name.startswith(node.name))
    prob = [0.1] * 4
    prob[leaf] = 0.7
    samples = [Sample(tile, leaf, prob, tile) for tile in node.members]
    router = Router(0.5, 0.9, [0.45, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.45])
    inner = node.name not in LEAVES
    pairs = list(zip(node.members, node.members[1:], strict=False))[:6]
    more = {"samples": samples, "vae": node.mean, "router": router if inner else None}
    return Node(**(vars(node) | more | ({"pairs": pairs} if inner else {"roots": pairs})))
