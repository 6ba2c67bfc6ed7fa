"""The user's face of a bundle: images of a node, leaf sheets, assignments, reconstructions.

Image i of seed s is one image: alone, in any batch, at any `batch_size`, bit for bit on one machine
and back end; see `backends` for what that costs. Arrays in, arrays out; no torch, no global state,
no threads of its own. A call holds `batch_size` images at once, whatever it is asked for.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import (
    BackendUnavailableError,
    DependencyError,
)
from ..topology import TreeTopology
from .backends import Backend, BackendOptions, open_any, open_backend
from .batches import Names, cut, integer, name_images
from .checks import check_choice, check_images, check_leaf, check_node
from .control import CallOptions, Control
from .pixels import to_uint8, to_unit
from .plan import Plan, SamplingOptions, make_plan
from .results import Bytes, Floats, Generation, Preview, Sheet
from .routing import leaf_probabilities
from .sampling import Sampler
from .tasks import Task, Tasks

UNIT = (0.0, 1.0)

Result = TypeVar("Result")


class Engine:
    """A bundle, ready to run. Safe to call from many threads; a context manager.

    Args:
        bundle: what to run.
        backend: what runs its graphs; the engine closes it.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle, self._backend = bundle, backend
        self._sampler = Sampler(bundle, backend)
        self.tasks = Tasks(self._sampler)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        backend: str = "auto",
        allow_fallback: bool = False,
        verify: bool = True,
        **options: Unpack[BackendOptions],
    ) -> Self:
        """A bundle and a back end.

        Args:
            bundle: the folder.
            backend: what runs the graphs, one of `BACKENDS`; 'auto' takes the fastest that can.
            allow_fallback: where the one that was named cannot, take another, with a warning.
            verify: compare every file with its hash first.
            **options: see `BackendOptions`.

        Raises:
            BundleError: not a bundle, or one that is damaged or of a newer version.
            BackendUnavailableError: no such back end, or it cannot run here.
            DependencyError: the back end's package is not installed.
            ConfigError: an option out of its range, or one that this back end does not have.
        """
        opened = Bundle.open(bundle, verify=verify)
        if backend == "auto":
            return cls(opened, open_any(opened, **options))
        try:
            return cls(opened, open_backend(backend, opened, **options))
        except (BackendUnavailableError, DependencyError) as fault:
            if not allow_fallback:
                raise
            engine = cls(opened, open_any(opened))
            used = engine.info()["backend"]
            warnings.warn(f"{used} runs in place of {backend} ({fault})", stacklevel=2)
            return engine

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

    @property
    def bucket(self) -> int:
        """Rows of a call of the network, at most."""
        return self._backend.sizes[-1]

    def info(self) -> dict[str, str | int]:
        """What really runs: back end, version, device, precision, rows of a call."""
        return self._backend.describe()

    def plan(self, **sampling: Unpack[SamplingOptions]) -> Plan:
        """How a call with these options draws its images, for `tasks`.

        Raises:
            ConfigError: an option out of its range.
        """
        told = {name: value for name, value in sampling.items() if value is not None}
        return make_plan(self._bundle, replace(self._bundle.sampling, **told))  # type: ignore[arg-type]

    def warmup(self) -> None:
        """Runs every graph in calls of every size, so that the first is as fast as the next."""
        images = np.zeros((1, *self.image_shape), np.uint8)
        self.assign(images)
        self.decode_prior(1)
        self.reconstruct(images, num_inference_steps=1)
        for size in self._backend.sizes:
            self.generate(size, num_inference_steps=1)

    def generate(
        self,
        num_images: int = 1,
        *,
        node: str = "r",
        seed: int = 0,
        **options: Unpack[CallOptions],
    ) -> Generation:
        """Draws images.

        Args:
            num_images: n.
            node: only leaves below it, with latents that lead there; 'r' is the whole tree.
            seed: of everything random.
            **options: see `CallOptions`.

        Raises:
            ConfigError: a number out of its range.
            TopologyError: no node has this name.
            CallCancelledError: the call was cancelled.
            CallTimeoutError: its time was over.
        """
        check_node(self.topology, node)
        plan, control, names = self._read(num_images, seed, options)

        def task(rows: slice, batch: Names) -> Task[Generation]:
            return self.tasks.generate(batch, plan, node=node)

        return Generation.joined(self._finished(task, names, control))

    def generate_leaves(
        self, num_images: int = 1, *, seed: int = 0, **options: Unpack[CallOptions]
    ) -> Sheet:
        """Draws every leaf's image of the same root and the same noise.

        Row i has the latents of the image i that `generate` draws of the whole tree, and for that
        image's leaf it is that image. In the other leaves it is what would have been, had every
        router turned another way, however improbable. Arguments and errors are those of
        `generate`.
        """
        plan, control, names = self._read(num_images, seed, options)

        def task(rows: slice, batch: Names) -> Task[Sheet]:
            return self.tasks.generate_leaves(batch, plan)

        return Sheet.joined(self._finished(task, names, control))

    def decode_prior(
        self, num_images: int = 1, *, seed: int = 0, **options: Unpack[CallOptions]
    ) -> Sheet:
        """TreeVAE's own images of the latents that `generate_leaves` has for the same seed."""
        _, control, names = self._read(num_images, seed, options)
        parts = []
        for _, batch in cut(names, control.batch_size):
            z, p_left = self._sampler.prior(batch)
            decoded = self._sampler.call("decode", {"z": z})["images"]
            parts.append(Sheet(to_uint8(decoded, UNIT), leaf_probabilities(self.topology, p_left)))
        return Sheet.joined(parts)

    def assign(self, images: Bytes) -> Floats:
        """The probability of each leaf given an image.

        Args:
            images: [n, C, H, W] uint8.

        Returns:
            [n, L] float32; a row sums to 1.

        Raises:
            ShapeError: another type or shape.
        """
        check_images(images, self.image_shape)
        parts = [
            self._sampler.call("assign", {"images": to_unit(images[rows])})["leaf_prob"]
            for rows, _ in cut(name_images(len(images)), Control.batch_size)
        ]
        return np.concatenate(parts)

    def reconstruct(
        self,
        images: Bytes,
        *,
        leaf: str = "sampled",
        seed: int = 0,
        **options: Unpack[CallOptions],
    ) -> Generation:
        """Draws images from the latents of given ones.

        Args:
            images: [n, C, H, W] uint8; the position of an image is its index.
            leaf: 'sampled' draws each image's leaf, 'most_probable' takes the likeliest; or the
                name of the leaf that all of them are redrawn in.
            seed: of everything random.
            **options: see `CallOptions`.

        Raises:
            ShapeError: another type or shape.
            ConfigError: a number out of its range, or another choice of leaf.
            CallCancelledError: the call was cancelled.
            CallTimeoutError: its time was over.
        """
        check_images(images, self.image_shape)
        check_choice(self.topology, leaf)
        plan, control, names = self._read(len(images), seed, options)

        def task(rows: slice, batch: Names) -> Task[Generation]:
            return self.tasks.reconstruct(images[rows], batch, plan, leaf=leaf)

        return Generation.joined(self._finished(task, names, control))

    def reconstruct_leaves(
        self, images: Bytes, *, seed: int = 0, **options: Unpack[CallOptions]
    ) -> Sheet:
        """Draws every leaf's image from the latents of given ones.

        For an image's own leaf it is what `reconstruct` draws; in the others, what the image would
        be there. Arguments and errors are those of `reconstruct`.
        """
        check_images(images, self.image_shape)
        plan, control, names = self._read(len(images), seed, options)

        def task(rows: slice, batch: Names) -> Task[Sheet]:
            return self.tasks.reconstruct_leaves(images[rows], batch, plan)

        return Sheet.joined(self._finished(task, names, control))

    def interpolate(
        self,
        start: str,
        end: str,
        *,
        frames: int = 8,
        num_images: int = 1,
        seed: int = 0,
        **options: Unpack[CallOptions],
    ) -> Bytes:
        """Draws images on the way from one leaf to another.

        Latents and noise stay; the condition moves in a line. What both paths share, down to the
        leaves' lowest common ancestor, is in every frame; what lies below it on one side fades
        out while the other side fades in. The first and the last frame are those of
        `generate_leaves`.

        Args:
            start: name of the first frame's leaf.
            end: name of the last frame's.
            frames: F, at least 2.
            num_images: n, each with latents and noise of its own.
            seed: of everything random.
            **options: see `CallOptions`.

        Returns:
            [n, F, C, H, W] uint8.

        Raises:
            TopologyError: no leaf has such a name.
            ConfigError: a number out of its range.
            CallCancelledError: the call was cancelled.
            CallTimeoutError: its time was over.
        """
        check_leaf(self.topology, start)
        check_leaf(self.topology, end)
        count = integer("frames", frames, 2)
        plan, control, names = self._read(num_images, seed, options)

        def task(rows: slice, batch: Names) -> Task[Bytes]:
            return self.tasks.interpolate(batch, plan, start=start, end=end, frames=count)

        return np.concatenate(self._finished(task, names, control))

    def stream(
        self,
        num_images: int = 1,
        *,
        node: str = "r",
        seed: int = 0,
        **options: Unpack[CallOptions],
    ) -> Iterator[Preview | Generation]:
        """`generate`, watched: a preview after each evaluation, and at last the images.

        All images are drawn side by side, whatever the `batch_size`. Closing the iterator ends
        the call.
        """
        check_node(self.topology, node)
        plan, control, names = self._read(num_images, seed, options)
        task = self.tasks.generate(names, plan, node=node)
        for _ in self._evaluations(task, control):
            yield task.preview(slice(0, len(names)))
        yield task.result()

    async def astream(
        self, num_images: int = 1, **arguments: Any
    ) -> AsyncIterator[Preview | Generation]:
        """`stream` for an event loop: evaluations run in a thread, one after the other.

        Cancelling it, or leaving the loop that reads it, ends the call at its next evaluation.
        """
        import asyncio  # here and below: it is an eighth of importing the runtime

        events = self.stream(num_images, **arguments)
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event

    async def agenerate(self, num_images: int = 1, **arguments: Any) -> Generation:
        """`generate` for an event loop, in a thread; cancelling it ends the call, too."""
        import asyncio

        cancel = arguments.setdefault("cancel", threading.Event())
        try:
            return await asyncio.to_thread(self.generate, num_images, **arguments)
        except asyncio.CancelledError:
            cancel.set()
            raise

    def _finished(
        self, make: Callable[[slice, Names], Task[Result]], names: Names, control: Control
    ) -> list[Result]:
        """Every batch's result."""
        results = []
        for rows, batch in cut(names, control.batch_size):
            control.check()
            task = make(rows, batch)
            if control.watched or not self._sampler.finish(task.drawing):
                for _ in self._evaluations(task, control):
                    if control.callback is not None:
                        control.callback(task.preview(rows))
            results.append(task.result())
            if control.progress is not None:
                control.progress.advance(len(batch), "images")
        return results

    def _evaluations(self, task: Task[Any], control: Control) -> Iterator[None]:
        """Runs a task, stopping after each evaluation of the network."""
        while not task.drawing.done:
            control.check()
            self.tasks.advance([task])
            yield

    def _read(
        self, num_images: int, seed: int, options: CallOptions
    ) -> tuple[Plan, Control, Names]:
        """A call's numbers and options, checked."""
        told = {name: value for name, value in options.items() if value is not None}
        running = {each.name for each in fields(Control)} - {"started"}
        control = Control(**{name: told.pop(name) for name in running & set(told)})  # type: ignore[arg-type]
        names = name_images(num_images, seed, seeds=control.seeds, offset=control.offset)
        return self.plan(**told), control, names  # type: ignore[arg-type]
