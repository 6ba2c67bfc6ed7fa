"""Cases of the denoiser: ONNX Runtime against eager PyTorch, and work that leaves the loop.

The PyTorch side is the plain float32 network in its default layout. `plain_loop` is a generation
as the published code runs it, where every step encodes the paths and the timestep anew; unlike
that code it does so for the whole batch at once, and runs the tree once and not in every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cases.bundles import bundle_of
from cases.pair import THREADS, Pair, prepare
from cases.treevae import ten_leaves
from torch import Tensor
from treediffusion.bundle import Bundle
from treediffusion.config import Config, load_preset
from treediffusion.diffusion.model import TreeDiffusion, make_denoiser
from treediffusion.diffusion.sampler import sample
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.runtime import Engine
from treediffusion.runtime.backends import open_backend
from treediffusion.schedule import DDIMTable

STEPS = 50


@dataclass(frozen=True)
class Setting:
    """A model's settings and its grey images' side.

    Attributes:
        name: of its bundle.
        config: the settings.
        image_size: H and W.
    """

    name: str
    config: Config
    image_size: int


def tiny() -> Setting:
    """The preset of the small digits."""
    return Setting("tiny", load_preset("tiny"), image_size=8)


def mnist() -> Setting:
    """The published networks for MNIST."""
    return Setting("mnist", Config(), image_size=28)


def step(setting: Setting, batch: int) -> Pair:
    """One denoising step of a batch: the bundle's graph against eager PyTorch."""
    prepare()
    model = _model(setting)
    backend = open_backend("onnxruntime", Bundle.open(_bundle(setting)), threads=THREADS)
    table = _table(model)
    cond = torch.randn(batch, model.denoiser.unet.embed_dim)
    x = torch.randn(batch, *model.tree.image_shape)
    times = model.denoiser.time.table(table.timestep).detach()
    feeds = {
        "x": x.numpy(),
        "cond": cond.numpy(),
        "timesteps": table.timestep,
        "coef": table.coef.astype(np.float32),
        "step": np.zeros(batch, np.int64),
        "noise": np.zeros(x.shape, np.float32),
    }

    @torch.inference_mode()
    def eager() -> Tensor:
        eps: Tensor = model.denoiser.unet(x, times[0] + cond)
        return _update(x, eps, table, 0)

    return Pair(ours=lambda: backend.run("step", feeds), baseline=eager)


def generate(setting: Setting, num_images: int) -> Pair:
    """Whole generations, from the seed to bytes: the torch-free engine against the plain loop."""
    prepare()
    model = _model(setting)
    engine = Engine(_bundle(setting), threads=THREADS)
    return Pair(
        ours=lambda: engine.generate(num_images, num_inference_steps=STEPS),
        baseline=lambda: _plain_generate(model, num_images),
    )


def hoisting(setting: Setting, batch: int) -> Pair:
    """The sampler in PyTorch, which encodes path and timesteps once, against the plain loop."""
    prepare()
    model = _model(setting)
    table = _table(model)
    z_path, nodes = _paths(model, batch)
    x = torch.randn(batch, *model.tree.image_shape)

    @torch.inference_mode()
    def hoisted() -> Tensor:
        return sample(model.denoiser, model.denoiser.condition(z_path, nodes), x, table)

    return Pair(ours=hoisted, baseline=lambda: plain_loop(model, z_path, nodes, x, table))


def sheet(setting: Setting) -> Pair:
    """One root through all leaves: one call against one call per leaf."""
    prepare()
    engine = Engine(_bundle(setting), threads=THREADS)
    leaves = engine.topology.leaf_names
    return Pair(
        ours=lambda: engine.sheet(1, num_inference_steps=STEPS),
        baseline=lambda: [engine.generate(1, node=n, num_inference_steps=STEPS) for n in leaves],
    )


@torch.inference_mode()
def plain_loop(
    model: TreeDiffusion, z_path: Tensor, nodes: Tensor, x: Tensor, table: DDIMTable
) -> Tensor:
    """DDIM with everything inside the loop.

    Args:
        model: the networks.
        z_path: [B, P, D] float, flattened latents on each image's path.
        nodes: [B, P] int64, their rows in the tree; -1 for absent slots.
        x: [B, C, H, W] float, standard normal.
        table: the steps.

    Returns:
        [B, C, H, W] float.
    """
    for step, timestep in enumerate(table.timestep.tolist()):
        y = model.denoiser.condition(z_path, nodes)
        eps = model.denoiser(x, torch.full((len(x),), timestep), y)
        x = _update(x, eps, table, step)
    return x


@torch.inference_mode()
def _plain_generate(model: TreeDiffusion, num_images: int) -> Tensor:
    z_path, nodes = _paths(model, num_images)
    start = torch.randn(num_images, *model.tree.image_shape)
    x = plain_loop(model, z_path, nodes, start, _table(model))
    return ((x + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)


@torch.inference_mode()
def _paths(model: TreeDiffusion, batch: int) -> tuple[Tensor, Tensor]:
    """[B, P, D] latents and [B, P] rows on the paths to leaves that the tree chose."""
    tree = model.tree
    noise = torch.randn(batch, tree.topology.num_nodes, *tree.latent_shape)
    drawn = tree.generate(noise)
    leaf_prob = drawn.log_node_prob[:, tree.topology.leaves.tolist()].exp()
    leaf = torch.multinomial(leaf_prob, 1)[:, 0]
    nodes = torch.from_numpy(tree.topology.paths).long()[leaf]
    z_path = drawn.z.flatten(2)[torch.arange(batch)[:, None], nodes]
    return z_path, nodes


def _update(x: Tensor, eps: Tensor, table: DDIMTable, step: int) -> Tensor:
    a, b, c, d, _ = table.coef[step].tolist()
    x0 = (a * x - b * eps).clamp(*table.clip_range)
    x_next: Tensor = c * x0 + d * eps
    return x_next


def _table(model: TreeDiffusion) -> DDIMTable:
    steps = model.schedule.inference_steps(STEPS, spacing=model.config.sampling.spacing)
    return model.schedule.ddim_table(steps)


def _model(setting: Setting) -> TreeDiffusion:
    """Untrained networks for ten leaves, every weight set."""
    config, topology = setting.config, ten_leaves()
    tree = TreeVAE(config.tree, topology, image_channels=1, image_size=setting.image_size).eval()
    denoiser = make_denoiser(tree, config.diffusion).eval()
    with torch.no_grad():
        # Off zero, where some layers begin, but little: with steps of 0.02, 50 denoising steps
        # magnify float32's rounding to 4e-3, and the exporter rightly refuses the bundle.
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.005)
    share = [len(topology.leaves_below(name)) / topology.num_leaves for name in topology.names]
    return TreeDiffusion(config, tree, denoiser, np.array(share), data_fingerprint="0" * 64)


def _bundle(setting: Setting) -> Path:
    settings = f"{setting.config.model_dump_json()} {setting.image_size}"

    def make_model() -> TreeDiffusion:
        prepare()
        return _model(setting)

    return bundle_of(setting.name, settings, make_model)
