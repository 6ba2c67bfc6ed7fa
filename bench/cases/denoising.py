"""Cases of the denoiser: ONNX Runtime against eager PyTorch, ours against the published form.

In `step` the PyTorch side is the U-Net in the published form, which is given the embedding; in
`generate` and `hoisting` it is our own float32 network as it was trained.
`plain_loop` encodes the paths and the timestep anew in every step, as the published code does, but
for the whole batch at once, and runs the tree once and not in every step.

In `eager_step`, `eager_generation` and `training` the other side is `EagerDenoiser`, the network
in the published form, in float32 whatever our side's precision: the published code has no other.
The tree, which that code runs whole in every step of training, is on neither side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases.bundles import bundle_of
from cases.pair import Pair, prepare, threads
from cases.treevae import ten_leaves
from support.eager_denoiser import EagerDenoiser, eager_denoiser, eager_sample
from torch import Tensor
from torch.optim import Optimizer
from treediffusion.bundle import Bundle
from treediffusion.config import Config, load_preset
from treediffusion.diffusion.model import TreeDiffusion, make_denoiser
from treediffusion.diffusion.sampler import sample
from treediffusion.nn.ema import Ema
from treediffusion.nn.enlarge import Enlarge
from treediffusion.nn.prepared import prepared
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.runtime import Engine
from treediffusion.runtime.backends import open_backend
from treediffusion.runtime.batches import name_images
from treediffusion.runtime.plan import make_plan
from treediffusion.runtime.sampling import Sampler
from treediffusion.solvers import SolverTable, solver_table
from treediffusion.train.diffusion_stage import training_layout
from treediffusion.train.optimizer import make_adam

STEPS, FEW = 50, 10
DDIM: dict[str, Any] = {"solver": "ddim", "num_inference_steps": STEPS, "guidance_scale": 1.0}


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


def step(setting: Setting, batch: int, backend: str = "onnxruntime", **options: Any) -> Pair:
    """One denoising step of a batch: the bundle's graph against eager PyTorch."""
    prepare()
    model = _model(setting)
    plain = _plain(model)
    sampler = _sampler(setting, backend, **options)
    table = _table(model)
    cond = torch.randn(batch, model.denoiser.unet.embed_dim)
    x = torch.randn(batch, *model.tree.image_shape)
    times = model.denoiser.time.table(table.timestep).detach()
    feeds = {
        "x": x.numpy(),
        "cond": cond.numpy(),
        "timesteps": np.repeat(table.timestep[:1], batch),
        "coef": np.repeat(table.network[:1].astype(np.float32), batch, axis=0),
        "step": np.zeros(batch, np.int64),
        "noise": np.zeros(x.shape, np.float32),
    }

    @torch.inference_mode()
    def eager() -> Tensor:
        eps = plain.body(x, times[0] + cond)
        return _update(x, eps, table, 0)

    return Pair(ours=lambda: sampler.call("step", feeds), baseline=eager)


def loop(setting: Setting) -> Pair:
    """50 steps of one image with all that the sampler does between them, against bare calls."""
    prepare()
    sampler = _sampler(setting, "onnxruntime")
    plan, names = (
        make_plan(sampler.bundle, replace(sampler.bundle.sampling, **DDIM)),
        name_images(1),
    )
    z, _ = sampler.prior(names)
    signals = sampler.signals(z, np.zeros(1, np.int64), plan)
    asked = dict(sampler.begin(signals, plan, names).ask()) | {"step": np.zeros(1, np.int64)}

    def ours() -> None:
        drawing = sampler.begin(signals, plan, names)
        while not drawing.done:
            sampler.advance([drawing])

    return Pair(
        ours=ours,
        baseline=lambda: [sampler.backend.run("step", asked) for _ in range(STEPS)],
    )


def generate(setting: Setting, num_images: int) -> Pair:
    """Whole generations, from the seed to bytes: the torch-free engine against the plain loop."""
    prepare()
    model = _model(setting)
    engine = Engine.load(_bundle(setting), threads=threads())
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


def sheet(setting: Setting, backend: str = "onnxruntime", **options: Any) -> Pair:
    """One root through all leaves, against as many single images; ten steps each."""
    prepare()
    engine = Engine.load(_bundle(setting), backend=backend, threads=threads(), **options)
    leaves = range(engine.topology.num_leaves)
    return Pair(
        ours=lambda: engine.generate_leaves(1, num_inference_steps=FEW),
        baseline=lambda: [engine.generate(1, seed=k, num_inference_steps=FEW) for k in leaves],
    )


def eager_step(setting: Setting, batch: int, dtype: torch.dtype = torch.float32) -> Pair:
    """One evaluation of the network inside a generation: what ours repeats, against all of it."""
    prepare()
    model = _model(setting)
    plain = _plain(model)
    z_path, nodes = _paths(model, batch)
    x, t = torch.randn(batch, *model.tree.image_shape), torch.full((batch,), 500)
    net = prepared(model.denoiser.to(dtype))
    with torch.inference_mode():
        emb = net.time(t) + net.condition(z_path.to(dtype), nodes)
    return Pair(
        ours=torch.inference_mode()(lambda: net.predict(x.to(dtype), emb).to(x.dtype)),
        baseline=torch.inference_mode()(lambda: plain(x, t, z_path, nodes)),
    )


def eager_generation(setting: Setting, batch: int, dtype: torch.dtype = torch.float32) -> Pair:
    """50 steps, from paths and noise to images; ours with the preparation of the network."""
    prepare()
    model = _model(setting)
    plain, table = _plain(model), _table(model)
    z_path, nodes = _paths(model, batch)
    x = torch.randn(batch, *model.tree.image_shape)
    net = model.denoiser.to(dtype)

    @torch.inference_mode()
    def ours() -> Tensor:
        return sample(prepared(net), net.condition(z_path.to(dtype), nodes), x, table)

    return Pair(
        ours=ours,
        baseline=torch.inference_mode()(lambda: eager_sample(plain, z_path, nodes, x, table)),
    )


def training(setting: Setting, batch: int, dtype: torch.dtype = torch.float32) -> Pair:
    """A step of the denoiser's training: paths to loss, gradients, clipping, Adam, average."""
    prepare()
    model = _model(setting)
    ours, plain = model.denoiser.train(), _plain(model).train()
    precision = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    config = model.config.diffusion.model_copy(update={"precision": precision})
    ours.to(memory_format=training_layout(torch.device("cpu"), config))
    z_path, nodes = _paths(model, batch)
    z_path = z_path.clone()  # out of inference mode
    x, eps = torch.randn(2, batch, *model.tree.image_shape)
    t = torch.randint(config.timesteps, (batch,))

    def our_pass() -> Tensor:
        y = ours.condition(z_path, nodes)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found: Tensor = ours(x, t, y)
        return found.float()

    ema = Ema(ours, config.ema)
    shadow = [parameter.detach().clone() for parameter in plain.parameters()]

    def average() -> None:
        with torch.no_grad():
            for kept, weight in zip(shadow, plain.parameters(), strict=True):
                kept.mul_(config.ema).add_(weight, alpha=1.0 - config.ema)

    rate = config.learning_rate
    return Pair(
        ours=_trains(our_pass, eps, make_adam(ours.parameters(), rate), ema.update, config.clip),
        baseline=_trains(
            lambda: plain(x, t, z_path, nodes),
            eps,
            torch.optim.Adam(plain.parameters(), rate),
            average,
            config.clip,
        ),
    )


def enlarging() -> Pair:
    """A map of 16x16 enlarged and convolved, and its gradients: 16 images of 128 channels."""
    prepare()
    ours = Enlarge(128, 128, 3, padding=1)
    x = torch.randn(16, 128, 16, 16, requires_grad=True)
    of_y = torch.randn(16, 128, 32, 32)

    def plain() -> None:
        enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest")
        torch.autograd.backward(F.conv2d(enlarged, ours.weight, ours.bias, padding=1), of_y)

    return Pair(ours=lambda: torch.autograd.backward(ours(x), of_y), baseline=plain)


def _trains(
    predict: Callable[[], Tensor],
    target: Tensor,
    optimizer: Optimizer,
    average: Callable[[], None],
    clip: float,
) -> Callable[[], None]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.mse_loss(predict(), target))
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        average()

    return step


def _plain(model: TreeDiffusion) -> EagerDenoiser:
    """The published form of a model's float32 denoiser."""
    latent_size = int(np.prod(model.tree.latent_shape))
    return eager_denoiser(model.denoiser, latent_size, model.config.diffusion.unet)


@torch.inference_mode()
def plain_loop(
    model: TreeDiffusion, z_path: Tensor, nodes: Tensor, x: Tensor, table: SolverTable
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


def _update(x: Tensor, eps: Tensor, table: SolverTable, step: int) -> Tensor:
    a, b, c, d, _ = table.network[step].tolist()
    x0 = (a * x - b * eps).clamp(*table.clip_range)
    x_next: Tensor = c * x0 + d * eps
    return x_next


def _sampler(setting: Setting, backend: str, **options: Any) -> Sampler:
    bundle = Bundle.open(_bundle(setting))
    return Sampler(bundle, open_backend(backend, bundle, threads=threads(), **options))


def _table(model: TreeDiffusion) -> SolverTable:
    schedule = model.schedule
    steps = schedule.inference_steps(STEPS, spacing=model.config.sampling.spacing)
    return solver_table("ddim", steps, schedule.alpha[steps], schedule.sigma[steps])


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
