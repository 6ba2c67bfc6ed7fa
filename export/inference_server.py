"""A bundle as a model repository of NVIDIA Triton Inference Server.

    REPOSITORY/treediffusion/config.pbtxt     inputs, outputs, batching
    REPOSITORY/treediffusion/1/model.py       its Python back end's class, a few lines
    REPOSITORY/treediffusion/1/bundle/        the bundle

The server is a program of its own, and has nothing to do with the language of the kernels. What
model.py does is in `inference_model`, which the server's Python finds in the installed package.
Files only: nothing of the server is needed to write them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..bundle import MANIFEST, Bundle
from ..files import replace_directory

MODEL = "treediffusion"
"""Its name in requests, and so the folder's."""
MODEL_PY = '''\
"""Images of a tree's nodes, for the Python back end of NVIDIA Triton Inference Server."""

from pathlib import Path

import triton_python_backend_utils as pb_utils
from treediffusion.export.inference_model import InferenceModel


class TritonPythonModel:
    """What the server looks for; one for each instance, in a process of its own."""

    def initialize(self, args):
        """Loads the bundle beside this file."""
        self.model = InferenceModel(Path(__file__).with_name("bundle"), pb_utils)

    def execute(self, requests):
        """Answers the requests of one call, which share the network's."""
        return self.model.answer(requests)

    def finalize(self):
        """Gives the memory back."""
        self.model.close()
'''
INPUTS = (
    ("NODE", "TYPE_STRING", False),
    ("SEED", "TYPE_UINT64", False),
    ("OFFSET", "TYPE_UINT64", True),
    ("NUM_INFERENCE_STEPS", "TYPE_INT32", True),
)
"""Name, type, whether it may be left out; one number or string for each image."""


def repository_beside(bundle: Path) -> Path:
    """The model repository that belongs to a bundle's folder."""
    bundle = bundle.absolute()  # which has a name even where '.' was given
    return bundle.with_name(f"{bundle.name}-triton-repo")


def write_model_repository(bundle: Path, repository: Path) -> Path:
    """Writes the model into a repository, which may hold others.

    Args:
        bundle: the folder of an exported bundle; it is copied.
        repository: a folder; an older model of ours in it is replaced.

    Returns:
        The model's folder in it.

    Raises:
        BundleError: not a bundle.
        CheckpointError: the folder cannot be written, or holds another model of this name.
    """
    opened = Bundle.open(bundle, verify=False)
    config = "\n".join(_config(opened)) + "\n"
    with replace_directory(repository / MODEL, marker=f"1/bundle/{MANIFEST}") as folder:
        (folder / "config.pbtxt").write_text(config, "utf-8", newline="\n")
        shutil.copytree(bundle, folder / "1" / "bundle")
        (folder / "1" / "model.py").write_text(MODEL_PY, "utf-8", newline="\n")
    return repository / MODEL


def _config(bundle: Bundle) -> Iterator[str]:
    """Lines of the server's ModelConfig in protobuf's text format."""
    largest = max(size for each in bundle.sets.values() for size in each.batches)
    yield f'name: "{MODEL}"'
    yield 'backend: "python"'
    # Rows of all requests of a call: as many as a call of the network was exported for.
    yield f"max_batch_size: {largest}"
    yield "dynamic_batching { }"
    # The engine itself chooses where it runs.
    yield "instance_group { kind: KIND_MODEL count: 1 }"
    for name, kind, optional in INPUTS:
        yield from _tensor("input", name, kind, [1], *["optional: true"] * optional)
    yield from _tensor("output", "IMAGE", "TYPE_UINT8", bundle.image_shape)
    yield from _tensor("output", "LEAF", "TYPE_STRING", [1])
    yield from _tensor("output", "LEAF_PROB", "TYPE_FP32", [1])


def _tensor(field: str, name: str, kind: str, dims: Sequence[int], *more: str) -> Iterator[str]:
    sizes = ", ".join(map(str, dims))
    facts = (f'name: "{name}"', f"data_type: {kind}", f"dims: [ {sizes} ]", *more)
    yield f"{field} {{ {' '.join(facts)} }}"
