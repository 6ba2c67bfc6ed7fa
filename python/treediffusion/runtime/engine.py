"""The user's face of a bundle: images of a node, leaf sheets, assignments, reconstructions.

Image i of seed s is one image: alone, in any batch, at any `batch_size`, bit for bit on one machine
and ONNX Runtime; see `backends` for what that costs. Arrays in, arrays out; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import ConfigError, ShapeError, TopologyError
from ..topology import TreeTopology
from .backends import open_backend
from .batches import collect, cut, integer
from .pixels import to_uint8, to_unit
from .plan import Plan, SamplingOptions, make_plan
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
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Draws images.

        Args:
            num_images: n.
            node: only leaves below it, with latents that lead there; 'r' is the whole tree.
            seed: of everything random.
            offset: index of the first image, so that a long run can be cut into calls.
            batch_size: images held at once; it changes memory, never an image.
            progress: advanced by 1 per image.
            **sampling: see `SamplingOptions`.

        Raises:
            ConfigError: a number out of its range.
            TopologyError: no node has this name.
        """
        self._row(node)
        plan = self._plan(sampling)

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._prior(seed, images, node)
            leaf = route(self.topology, p_left, seed=seed, images=images, node=node)
            x = self._sampler.draw(z, leaf, plan, seed=seed, images=images)
            return self._bytes(x), leaf, leaf_probabilities(self.topology, p_left)

        batches = cut(num_images, seed, offset, batch_size)
        pixels, leaf, leaf_prob = collect(one, batches, progress)
        return Generation(pixels, leaf, leaf_prob, self.topology.leaf_names, int(seed), int(offset))

    def sheet(
        self,
        num_images: int = 1,
        *,
        seed: int = 0,
        offset: int = 0,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Sheet:
        """Draws every leaf's image of the same root and the same noise.

        Row i has the latents of the image i that `generate` draws of the whole tree, and for that
        image's leaf it is that image. In the other leaves it is what would have been, had every
        router turned another way, however improbable. The arguments are those of `generate`.
        """
        plan = self._plan(sampling)

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._sampler.prior(seed, images)
            pixels = self._all_leaves(z, plan, seed=seed, images=images)
            return pixels, leaf_probabilities(self.topology, p_left)

        batches = cut(num_images, seed, offset, batch_size)
        return Sheet(*collect(one, batches, progress))

    def decode_prior(
        self, num_images: int = 1, *, seed: int = 0, offset: int = 0, batch_size: int = BATCH_SIZE
    ) -> Sheet:
        """TreeVAE's own images of the latents that `sheet` has for the same seed."""

        def one(images: range) -> tuple[Any, ...]:
            z, p_left = self._sampler.prior(seed, images)
            decoded = self._sampler.call("decode", {"z": z})["images"]
            return to_uint8(decoded, UNIT), leaf_probabilities(self.topology, p_left)

        return Sheet(*collect(one, cut(num_images, seed, offset, batch_size), None))

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

        (leaf_prob,) = collect(one, cut(len(images), 0, 0, batch_size), None)
        return np.asarray(leaf_prob)

    def reconstruct(
        self,
        images: Bytes,
        *,
        leaf: LeafChoice = "sampled",
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Draws images from the latents of given ones.

        Args:
            images: [n, C, H, W] uint8; the position of an image is its index.
            leaf: draw each image's leaf, or take its most probable one.
            seed: of everything random.
            batch_size: as for `generate`.
            progress: advanced by 1 per image.
            **sampling: see `SamplingOptions`.

        Raises:
            ShapeError: another type or shape.
            ConfigError: a number out of its range, or another choice of leaf.
        """
        self._check_images(images)
        if leaf not in get_args(LeafChoice):
            raise ConfigError("leaf", got=repr(leaf), expected="'sampled' or 'most_probable'")
        plan = self._plan(sampling)
        tree = self.topology

        def one(rows: range) -> tuple[Any, ...]:
            z, leaf_prob = self._posterior(images, seed, rows)
            if leaf == "sampled":
                p_left = turn_probabilities(tree, leaf_prob)
                chosen = route(tree, p_left, seed=seed, images=rows)
            else:
                chosen = leaf_prob.argmax(axis=1)
            x = self._sampler.draw(z, chosen, plan, seed=seed, images=rows)
            return self._bytes(x), chosen, leaf_prob

        batches = cut(len(images), seed, 0, batch_size)
        pixels, chosen, leaf_prob = collect(one, batches, progress)
        return Generation(pixels, chosen, leaf_prob, tree.leaf_names, int(seed), 0)

    def reconstruct_sheet(
        self,
        images: Bytes,
        *,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Sheet:
        """Draws every leaf's image from the latents of given ones.

        For an image's own leaf it is what `reconstruct` draws; in the others, what the image would
        be there. Arguments and errors are those of `reconstruct`.
        """
        self._check_images(images)
        plan = self._plan(sampling)

        def one(rows: range) -> tuple[Any, ...]:
            z, leaf_prob = self._posterior(images, seed, rows)
            return self._all_leaves(z, plan, seed=seed, images=rows), leaf_prob

        batches = cut(len(images), seed, 0, batch_size)
        return Sheet(*collect(one, batches, progress))

    def interpolate(
        self,
        start: str,
        end: str,
        *,
        frames: int = 8,
        num_images: int = 1,
        seed: int = 0,
        offset: int = 0,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Bytes:
        """Draws images on the way from one leaf to another.

        Latents and noise stay; the condition moves in a line. What both paths share, down to the
        leaves' lowest common ancestor, is in every frame; what lies below it on one side fades
        out while the other side fades in. The first and the last frame are the sheet's images.

        Args:
            start: name of the first frame's leaf.
            end: name of the last frame's.
            frames: F, at least 2.
            num_images: n, each with latents and noise of its own.
            seed: as for `generate`.
            offset: as for `generate`.
            batch_size: as for `generate`.
            progress: advanced by 1 per image.
            **sampling: see `SamplingOptions`.

        Returns:
            [n, F, C, H, W] uint8.

        Raises:
            TopologyError: no leaf has such a name.
            ConfigError: a number out of its range.
        """
        ends = [self._leaf(start), self._leaf(end)]
        share = np.linspace(0.0, 1.0, integer("frames", frames, 2))
        plan = self._plan(sampling)

        def one(images: range) -> tuple[Any, ...]:
            z, _ = self._sampler.prior(seed, images)
            first, last = (self._sampler.signals(z, np.full(len(z), leaf), plan) for leaf in ends)
            moved = [first.towards(last, part) for part in share]
            drawn = [
                self._bytes(self._sampler.denoise(told, plan, seed=seed, images=images))
                for told in moved
            ]
            return (np.stack(drawn, axis=1),)

        (pixels,) = collect(one, cut(num_images, seed, offset, batch_size), progress)
        return pixels

    def _posterior(self, images: Bytes, seed: int, rows: range) -> tuple[Floats, Floats]:
        noise = self._sampler.latent_noise(seed, rows)
        feeds = {"images": to_unit(images[rows.start : rows.stop]), "noise": noise}
        found = self._sampler.call("posterior", feeds)
        return found["z"], found["leaf_prob"]

    def _all_leaves(self, z: Floats, plan: Plan, *, seed: int, images: range) -> Bytes:
        """[B, L, C, H, W]: the same latents and noise in every leaf."""
        leaves = self.topology.num_leaves
        row = np.repeat(np.arange(len(z)), leaves)
        leaf = np.tile(np.arange(leaves, dtype=np.int64), len(z))
        x = self._sampler.draw(z[row], leaf, plan, seed=seed, images=[images[i] for i in row])
        return self._bytes(x).reshape(len(z), leaves, *self.image_shape)

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

    def _leaf(self, name: object) -> int:
        if name not in self.topology.leaf_names:
            names = ", ".join(self.topology.leaf_names)
            raise TopologyError("leaf", got=repr(name), expected=f"one of {names}")
        return self.topology.leaf_names.index(name)

    def _plan(self, given: SamplingOptions) -> Plan:
        told = {name: value for name, value in given.items() if value is not None}
        wanted = replace(self._bundle.sampling, **told)  # type: ignore[arg-type]
        return make_plan(self._bundle, wanted)

    def _check_images(self, images: object) -> None:
        expected = f"uint8 [n, {', '.join(map(str, self.image_shape))}], n at least 1"
        if not isinstance(images, np.ndarray):
            raise ShapeError("images", got=type(images).__name__, expected=expected)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            got = f"{images.dtype} {list(images.shape)}"
            raise ShapeError("images", got=got, expected=expected)
