"""The user's face of a bundle: images of a node, leaf sheets, assignments, reconstructions.

Image i of seed s is one image: alone, in any batch, at any `batch_size`, bit for bit on one machine
and ONNX Runtime; see `backends` for what that costs. Arrays in, arrays out; no torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import ConfigError, ShapeError, TopologyError
from ..noise import WORD_RANGE
from ..schedule import DDIMTable, Spacing
from ..topology import TreeTopology
from .backends import open_backend
from .pixels import to_uint8, to_unit
from .routing import leaf_probabilities, route, turn_probabilities
from .sampling import Sampler

if TYPE_CHECKING:
    from ..progress import Progress

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
LeafChoice = Literal["sampled", "most_probable"]
BATCH_SIZE = 32
UNIT = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Generation:
    """Generated images and where they come from.

    Attributes:
        images: [n, C, H, W] uint8.
        leaf: [n] int64, id of each image's leaf.
        leaf_prob: [n, L] float32, probability of each leaf given the image's latents, whatever
            node was asked for; after `reconstruct`, given the image that was reconstructed.
        leaf_names: [L] what the ids mean.
        seed: of all images.
        offset: index of the first image.
    """

    images: Bytes
    leaf: NDArray[np.int64]
    leaf_prob: Floats
    leaf_names: tuple[str, ...]
    seed: int
    offset: int


class Sheet(NamedTuple):
    """The same latents through every leaf.

    Attributes:
        images: [n, L, C, H, W] uint8.
        leaf_prob: [n, L] float32.
    """

    images: Bytes
    leaf_prob: Floats


class Engine:
    """A bundle, ready to run. Safe to call from many threads; a context manager.

    Args:
        bundle: the folder.
        backend: what runs the graphs.
        threads: of the back end; None leaves the choice to it.
        verify: compare every file with its hash first.

    Raises:
        BundleError: not a bundle, or one that is damaged or of a newer version.
        BackendUnavailableError: no such back end, or it cannot run here.
        DependencyError: the back end's package is not installed.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str = "onnxruntime",
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self._bundle = Bundle.open(bundle, verify=verify)
        self._backend = open_backend(backend, self._bundle, threads=threads)
        self._sampler = Sampler(self._bundle, self._backend)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the back end's memory back."""
        self._backend.close()

    @property
    def topology(self) -> TreeTopology:
        """The tree."""
        return self._bundle.topology

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._bundle.image_shape

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def node_share(self) -> NDArray[np.float64]:
        """[N] share of the training images that reach each node."""
        return self._bundle.node_share

    def generate(
        self,
        num_images: int = 1,
        *,
        node: str = "r",
        seed: int = 0,
        offset: int = 0,
        num_inference_steps: int | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> Generation:
        """Draws images.

        Args:
            num_images: n.
            node: only leaves below it, with latents that lead there; 'r' is the whole tree.
            seed: of everything random.
            offset: index of the first image, so that a long run can be cut into calls.
            num_inference_steps: denoising steps; the bundle's own number if None.
            spacing: where they lie; the bundle's own if None.
            eta: 0 is DDIM, 1 as much noise as DDPM; the bundle's own if None.
            batch_size: images held at once; it changes memory, never an image.
            progress: advanced by 1 per image.

        Raises:
            ConfigError: a number out of its range.
            TopologyError: no node has this name.
        """
        self._row(node)
        table = self._table(num_inference_steps, spacing, eta)

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._prior(seed, images, node)
            leaf = route(self.topology, p_left, seed=seed, images=images, node=node)
            cond = self._sampler.condition(z, leaf)
            x = self._sampler.denoise(cond, table, seed=seed, images=images)
            return self._bytes(x), leaf, leaf_probabilities(self.topology, p_left)

        batches = _batches(num_images, seed, offset, batch_size)
        pixels, leaf, leaf_prob = _collect(one, batches, progress)
        return Generation(pixels, leaf, leaf_prob, self.topology.leaf_names, int(seed), int(offset))

    def sheet(
        self,
        num_images: int = 1,
        *,
        seed: int = 0,
        offset: int = 0,
        num_inference_steps: int | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> Sheet:
        """Draws every leaf's image of the same root and the same noise.

        Row i has the latents of the image i that `generate` draws of the whole tree, and for that
        image's leaf it is that image. In the other leaves it is what would have been, had every
        router turned another way, however improbable. The arguments are those of `generate`.
        """
        table = self._table(num_inference_steps, spacing, eta)
        leaves = self.topology.num_leaves

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._sampler.prior(seed, images)
            row = np.repeat(np.arange(len(images)), leaves)
            leaf = np.tile(np.arange(leaves, dtype=np.int64), len(images))
            cond = self._sampler.condition(z[row], leaf)
            x = self._sampler.denoise(cond, table, seed=seed, images=[images[i] for i in row])
            pixels = self._bytes(x).reshape(len(images), leaves, *self.image_shape)
            return pixels, leaf_probabilities(self.topology, p_left)

        batches = _batches(num_images, seed, offset, batch_size)
        return Sheet(*_collect(one, batches, progress))

    def decode_prior(
        self, num_images: int = 1, *, seed: int = 0, offset: int = 0, batch_size: int = BATCH_SIZE
    ) -> Sheet:
        """TreeVAE's own images of the latents that `sheet` has for the same seed."""

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._sampler.prior(seed, images)
            decoded = self._sampler.call("decode", {"z": z})["images"]
            return to_uint8(decoded, UNIT), leaf_probabilities(self.topology, p_left)

        return Sheet(*_collect(one, _batches(num_images, seed, offset, batch_size), None))

    def assign(self, images: Bytes, *, batch_size: int = BATCH_SIZE) -> Floats:
        """The probability of each leaf given an image.

        Args:
            images: [n, C, H, W] uint8.
            batch_size: images held as floats at once.

        Returns:
            [n, L] float32; a row sums to 1.

        Raises:
            ShapeError: another type or shape.
        """
        self._check_images(images)

        def one(rows: range) -> tuple[Any, ...]:
            unit = to_unit(images[rows.start : rows.stop])
            return (self._sampler.call("assign", {"images": unit})["leaf_prob"],)

        (leaf_prob,) = _collect(one, _batches(len(images), 0, 0, batch_size), None)
        return np.asarray(leaf_prob)

    def reconstruct(
        self,
        images: Bytes,
        *,
        leaf: LeafChoice = "sampled",
        seed: int = 0,
        num_inference_steps: int | None = None,
        spacing: Spacing | None = None,
        eta: float | None = None,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> Generation:
        """Draws images from the latents of given ones.

        Args:
            images: [n, C, H, W] uint8; the position of an image is its index.
            leaf: draw each image's leaf, or take its most probable one.
            seed: of everything random.
            num_inference_steps: as for `generate`.
            spacing: as for `generate`.
            eta: as for `generate`.
            batch_size: as for `generate`.
            progress: advanced by 1 per image.

        Raises:
            ShapeError: another type or shape.
            ConfigError: a number out of its range, or another choice of leaf.
        """
        self._check_images(images)
        if leaf not in get_args(LeafChoice):
            raise ConfigError("leaf", got=repr(leaf), expected="'sampled' or 'most_probable'")
        table = self._table(num_inference_steps, spacing, eta)
        tree = self.topology

        def one(rows: range) -> tuple[Any, ...]:
            noise = self._sampler.latent_noise(seed, rows)
            feeds = {"images": to_unit(images[rows.start : rows.stop]), "noise": noise}
            found = self._sampler.call("posterior", feeds)
            leaf_prob = found["leaf_prob"]
            if leaf == "sampled":
                p_left = turn_probabilities(tree, leaf_prob)
                chosen = route(tree, p_left, seed=seed, images=rows)
            else:
                chosen = leaf_prob.argmax(axis=1)
            cond = self._sampler.condition(found["z"], chosen)
            x = self._sampler.denoise(cond, table, seed=seed, images=rows)
            return self._bytes(x), chosen, leaf_prob

        batches = _batches(len(images), seed, 0, batch_size)
        pixels, chosen, leaf_prob = _collect(one, batches, progress)
        return Generation(pixels, chosen, leaf_prob, tree.leaf_names, int(seed), 0)

    def _prior(self, seed: int, images: range, node: str) -> tuple[Floats, Floats]:
        if node == self.topology.names[TreeTopology.ROOT]:
            return self._sampler.prior(seed, images)
        return self._sampler.prior_through(node, seed, images)

    def _bytes(self, x: Floats) -> Bytes:
        return to_uint8(x, self._bundle.pixel_range)

    def _row(self, node: object) -> int:
        if not isinstance(node, str):
            raise TopologyError("node", got=repr(node), expected="a name, such as 'r' or 'r01'")
        return self.topology.row(node)

    def _table(
        self, num_inference_steps: int | None, spacing: Spacing | None, eta: float | None
    ) -> DDIMTable:
        own = self._bundle.sampling
        steps = self._bundle.schedule.inference_steps(
            own.num_inference_steps if num_inference_steps is None else num_inference_steps,
            spacing=own.spacing if spacing is None else spacing,
        )
        eta = own.eta if eta is None else eta
        if isinstance(eta, bool) or not isinstance(eta, int | float):
            raise ConfigError("eta", got=repr(eta), expected="0 (DDIM) to 1 (DDPM)")
        return self._bundle.schedule.ddim_table(steps, eta=eta)

    def _check_images(self, images: object) -> None:
        expected = f"uint8 [n, {', '.join(map(str, self.image_shape))}], n at least 1"
        if not isinstance(images, np.ndarray):
            raise ShapeError("images", got=type(images).__name__, expected=expected)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            got = f"{images.dtype} {list(images.shape)}"
            raise ShapeError("images", got=got, expected=expected)


def _collect(
    one: Callable[[range], tuple[Any, ...]], batches: Iterator[range], progress: Progress | None
) -> tuple[NDArray[Any], ...]:
    """Results of every batch, joined."""
    parts = []
    for images in batches:
        parts.append(one(images))
        if progress is not None:
            progress.advance(len(images), "images")
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _batches(total: int, seed: int, offset: int, size: int) -> Iterator[range]:
    """Checks a call's numbers, then cuts its image indices into batches."""
    total, size = _integer("num_images", total, 1), _integer("batch_size", size, 1)
    _integer("seed", seed, 0)
    first = _integer("offset", offset, 0)
    if first + total > WORD_RANGE:
        raise ConfigError("offset", got=offset, expected=f"at most 2^64 - {total}")
    last = first + total
    return (range(start, min(start + size, last)) for start in range(first, last, size))


def _integer(name: str, value: object, least: int) -> int:
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number < WORD_RANGE:
        raise ConfigError(name, got=repr(value), expected=f"an integer from {least}, below 2^64")
    return number
