"""A tiny model with every weight set: untrained, but not the zero function an untrained one is."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from treediffusion.config import Config, parse_config
from treediffusion.diffusion.model import TreeDiffusion, make_denoiser
from treediffusion.export import export_bundle, to_onnx
from treediffusion.export.graphs import Graph
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology

# r0 lost its right child, so its left one is its only; leaves lie at two depths.
IRREGULAR = TreeTopology.of(["r", "r0", "r1", "r00", "r000", "r001"])


def tiny_config(*, channels: int = 1, **diffusion: Any) -> Config:
    """Settings of a network that runs in milliseconds; `diffusion` changes the second stage's."""
    return parse_config(
        {
            "preset": "tiny",
            "data": f"digits-{channels}",
            "tree": {"latent_channels": 4, "channels": 8, "levels": 4, "max_leaves": 8},
            "diffusion": {
                "unet": {
                    "channels": 32,
                    "multipliers": [1, 2],
                    "blocks": 1,
                    "heads": 4,
                    "attention": [2],
                },
                "timesteps": 200,
                "beta_end": 0.04,
                **diffusion,
            },
            "sampling": {"num_inference_steps": 6},
        },
        source="tests",
    )


def tiny_model(
    topology: TreeTopology = IRREGULAR,
    *,
    image_channels: int = 1,
    image_size: int = 8,
    seed: int = 0,
    **diffusion: Any,
) -> TreeDiffusion:
    """A model on a tree, by default one with nodes that have a single child."""
    config = tiny_config(channels=image_channels, **diffusion)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tree = TreeVAE(config.tree, topology, image_channels=image_channels, image_size=image_size)
        _perturb(tree, std=0.25)
        denoiser = make_denoiser(tree, config.diffusion)
        _perturb(denoiser, std=0.05)
    return TreeDiffusion(
        config=config,
        tree=tree.eval(),
        denoiser=denoiser.eval(),
        node_share=_node_share(topology),
        data_fingerprint="0" * 64,
    )


@cache
def tiny_bundle(**diffusion: Any) -> Path:
    """The bundle of `tiny_model()`, exported once in a run of the tests; not to be changed."""
    folder = Path(tempfile.mkdtemp(prefix="treediffusion-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with patch.object(to_onnx, "to_onnx", _remembered):
        return export_bundle(tiny_model(**diffusion), folder / "bundle")


_OF_TREE: dict[tuple[str, int], bytes] = {}
_to_onnx = to_onnx.to_onnx


def _remembered(graph: Graph, *, opset: int) -> bytes:
    """Graphs of the tree are exported once: every tiny model has the same tree.

    An export that came out wrong would not pass the bundle's own proof.
    """
    kind = type(graph.module).__name__
    if kind not in {"Assign", "Path", "Posterior", "Decode"}:
        return _to_onnx(graph, opset=opset)
    if (kind, opset) not in _OF_TREE:
        _OF_TREE[kind, opset] = _to_onnx(graph, opset=opset)
    return _OF_TREE[kind, opset]


def _perturb(module: nn.Module, *, std: float) -> None:
    """Moves weights off zero, and running statistics off 0 and 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


def _node_share(topology: TreeTopology) -> np.ndarray:
    """Every leaf the same share, and each inner node what its leaves have."""
    below = [len(topology.leaves_below(name)) for name in topology.names]
    return np.array(below, np.float64) / topology.num_leaves
