"""Requests and answers; what OpenAPI shows.

Unknown fields are mistakes, and so are other types: `"3"` is no number, `true` is not 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..solvers import Solver

MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""JSON has one kind of numbers: 2.0 is 2. Last in an annotation, or OpenAPI loses the bounds."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE]
Scale = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Base64 = Annotated[str, Field(max_length=2**24)]


class Model(BaseModel):
    """Of all requests and answers."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Drawing(Model):
    """How images are drawn; what is left out is the bundle's own."""

    num_inference_steps: Annotated[int, Field(ge=1, le=1000), WHOLE] | None = None
    """Denoising steps."""
    solver: Solver | None = None
    """The sampler; heun evaluates the network twice in each step."""
    eta: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Of ddim: 0 is deterministic, 1 as much noise as DDPM."""
    guidance_scale: Scale | Annotated[list[Scale], Field(min_length=1, max_length=16)] | None = None
    """How much further than its leaf an image goes: one number, or one for each depth."""
    timeout: Annotated[float, Field(gt=0.0, le=3600.0)] | None = None
    """Seconds, waiting included, after which the answer is 504; at most the server's own."""


class Many(Drawing):
    """Images that are named by seeds."""

    n: Annotated[int, Field(ge=1, le=4096), WHOLE] = 1
    """How many."""
    seed: Seed | None = None
    """Of all of them, which are its images 0 to n - 1; left out, the server draws one."""
    offset: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] = 0
    """Index of the first image of the seed."""


class GenerateRequest(Many):
    """Images of a node."""

    node: Annotated[str, Field(pattern=r"^r[01]*$", max_length=64)] = "r"
    """Only leaves below it; 'r' is the whole tree."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=4096)] | None = None
    """One for each image, in place of `seed`."""
    stream: bool = False
    """Server-sent events: `preview`, `image`, `done`, `error`."""
    preview_every: Annotated[int, Field(ge=0, le=1000), WHOLE] = 5
    """Of a stream: evaluations between two previews of an image; 0 for none."""


class SheetRequest(Many):
    """The same latents and noise in every leaf."""


class InterpolateRequest(Many):
    """The way from one leaf to another."""

    start: Annotated[str, Field(max_length=64)]
    """Name of the first frame's leaf."""
    end: Annotated[str, Field(max_length=64)]
    """Name of the last frame's."""
    frames: Annotated[int, Field(ge=2, le=64), WHOLE] = 8
    """Images on the way, both ends included."""


class AssignRequest(Model):
    """Where images go."""

    images: Annotated[list[Base64], Field(min_length=1, max_length=256)]
    """PNG, JPEG or WebP files in base64; the middle square is scaled to the model's size."""


class ReconstructRequest(Drawing):
    """An image, drawn again."""

    image: Base64
    """A file as of `assign`."""
    leaf: Annotated[str, Field(max_length=64)] = "most_probable"
    """'most_probable', 'sampled', 'sibling' (the most probable leaf below the other child of that
    leaf's parent), 'all', or a leaf's name."""
    seed: Seed | None = None
    """Of latents and noise; left out, the server draws one."""


class Image(Model):
    """An image and where it comes from."""

    index: int
    """Its place in the answer."""
    image: str
    """A PNG in base64."""
    leaf: str
    """Name of its leaf, which is its path from the root: 0 is left, 1 right."""
    leaf_prob: float
    """Probability of that leaf given the image's latents."""
    path: list[str]
    """Names of the nodes from the root to the leaf."""
    seed: int
    """With `offset`, what the image is drawn again by."""
    offset: int
    """Index of the image among those of its seed."""


class Timings(Model):
    """Seconds."""

    queue_s: float
    """Until the first step."""
    run_s: float
    """From there to the last."""


class Images(Model):
    """Images, in order."""

    id: str
    """Of the request, as in the answer's header."""
    data: list[Image]
    """[n], or [n x leaves], or [n x frames]."""
    timings: Timings
    """Where the time went."""


class Assigned(Model):
    """Leaf probabilities."""

    leaf_names: list[str]
    """[L]"""
    leaf_prob: list[list[float]]
    """[n, L], rows sum to 1."""


class Node(Model):
    """A node."""

    name: str
    """Its path: 'r', 'r0', 'r01'."""
    share: float
    """Of the training images that reach it."""
    children: list[Node]
    """None, one or two."""


class Tree(Model):
    """The tree, and what can be asked of it."""

    leaf_names: list[str]
    """[L] from left to right."""
    image_shape: list[int]
    """Channels, height, width."""
    root: Node
    """The tree."""
    num_inference_steps: int
    """Unless a request says otherwise."""
    solver: str
    """Likewise."""
    backend: str
    """What runs the networks."""


class Fault(Model):
    """What was wrong."""

    type: Literal[
        "invalid_request", "unauthorized", "too_large", "busy", "timeout", "unavailable", "internal"
    ]
    """Kind."""
    message: str
    """What was given, what was expected, what to do."""
    name: str | None = None
    """The field at fault."""


class ErrorAnswer(Model):
    """Every answer that is not 2xx."""

    error: Fault
    """What was wrong."""
