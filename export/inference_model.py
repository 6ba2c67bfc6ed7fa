"""What a bundle answers in NVIDIA Triton Inference Server, through the server's Python back end.

    NODE, SEED, OFFSET?, NUM_INFERENCE_STEPS?  [n, 1]
        -> IMAGE [n, C, H, W], LEAF and LEAF_PROB [n, 1]

A row is an image of its own: any node, seed and number of steps. The rows of all requests of a call
are drawn together, step by step, as those of `treediffusion serve` are; each has the bytes that
`Engine.generate` draws for it alone. Written into repositories by `inference_server`; needs no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TreeDiffusionError
from ..runtime import Engine, Generation
from ..runtime.batches import Names
from ..runtime.checks import check_node


@dataclass(frozen=True)
class Row:
    """An image that is asked for; without a number of steps, by the bundle's own."""

    node: str
    seed: int
    offset: int
    steps: int | None


@dataclass(frozen=True)
class Drawn:
    """The image, [C, H, W] uint8, and where it comes from."""

    image: Any
    leaf: str
    leaf_prob: float


class InferenceModel:
    """An engine that speaks in the server's tensors.

    Args:
        bundle: the folder.
        utils: the server's module `triton_python_backend_utils`, which is only there.

    Raises:
        BundleError: not a bundle, or one that is damaged or of a newer version.
        BackendUnavailableError: no back end can run here.
    """

    def __init__(self, bundle: Path, utils: Any) -> None:
        self._engine, self._utils = Engine.load(bundle), utils
        self._engine.warmup()

    def close(self) -> None:
        """Gives the engine's memory back."""
        self._engine.close()

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """An `InferenceResponse` for each `InferenceRequest` of a call.

        A request with a value that cannot be used gets an error, and the others their images. A
        fault of the back end is raised: the server then answers all requests of the call with it.
        """
        read = [self._read(request) for request in requests]
        rows = [row for asked in read if not isinstance(asked, TreeDiffusionError) for row in asked]
        drawn = self._draw(rows)
        return [
            self._refused(asked)
            if isinstance(asked, TreeDiffusionError)
            else self._given([next(drawn) for _ in asked])
            for asked in read
        ]

    def _read(self, request: Any) -> list[Row] | TreeDiffusionError:
        """A request's rows, or what is wrong with it."""
        seeds = self._column(request, "SEED", [])
        rows = [
            Row(name.decode("utf-8", "replace"), *numbers)
            for name, *numbers in zip(
                self._column(request, "NODE", []),
                seeds,
                self._column(request, "OFFSET", [0] * len(seeds)),
                self._column(request, "NUM_INFERENCE_STEPS", [None] * len(seeds)),
                strict=True,  # the server has seen to it
            )
        ]
        try:
            for node, steps in {(row.node, row.steps) for row in rows}:
                check_node(self._engine.topology, node)
                self._engine.plan(num_inference_steps=steps)
        except TreeDiffusionError as fault:
            return fault
        return rows

    def _column(self, request: Any, name: str, absent: list[Any]) -> list[Any]:
        """Plain values of an input, [n, 1]; `absent` where the request leaves it out."""
        tensor = self._utils.get_input_tensor_by_name(request, name)
        found: list[Any] = absent if tensor is None else tensor.as_numpy().ravel().tolist()
        return found

    def _draw(self, rows: Sequence[Row]) -> Iterator[Drawn]:
        """The images of all rows, in order; those that begin alike begin in one batch."""
        places: dict[tuple[str, int | None], list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault((row.node, row.steps), []).append(place)
        tasks = []
        for (node, steps), own in places.items():
            names = Names([rows[i].seed for i in own], [rows[i].offset for i in own])
            plan = self._engine.plan(num_inference_steps=steps)
            tasks.append(self._engine.tasks.generate(names, plan, node=node))
        while running := [task for task in tasks if not task.drawing.done]:
            self._engine.tasks.advance(running)
        found: dict[int, Drawn] = {}
        for own, task in zip(places.values(), tasks, strict=True):
            found.update(zip(own, _images(task.result()), strict=True))
        yield from (found[place] for place in range(len(rows)))

    def _given(self, drawn: Sequence[Drawn]) -> Any:
        tensor = self._utils.Tensor
        leaves = np.array([[each.leaf] for each in drawn], np.object_)
        probabilities = np.array([[each.leaf_prob] for each in drawn], np.float32)
        return self._utils.InferenceResponse(
            output_tensors=[
                tensor("IMAGE", np.stack([each.image for each in drawn])),
                tensor("LEAF", leaves),
                tensor("LEAF_PROB", probabilities),
            ]
        )

    def _refused(self, fault: TreeDiffusionError) -> Any:
        error = self._utils.TritonError
        return self._utils.InferenceResponse(
            output_tensors=[], error=error(str(fault), error.INVALID_ARG)
        )


def _images(drawn: Generation) -> Iterator[Drawn]:
    for image, leaf, prob in zip(drawn.images, drawn.leaf, drawn.leaf_prob, strict=True):
        yield Drawn(image, drawn.leaf_names[leaf], float(prob[leaf]))
