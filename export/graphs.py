"""The six graphs of a bundle, as PyTorch modules with named inputs and outputs.

    assign      images             -> leaf_prob
    path        noise              -> z, p_left
    posterior   images, noise      -> z, leaf_prob
    condition   z_path, nodes      -> cond
    step        x, cond, timesteps, coef, step, noise -> x_next, x0; what else the denoiser sees
    decode      z                  -> images

A step is ``x0 = clip(a x - b F), x_next = c x0 + d F + sigma noise`` with F from the U-Net.
The embedding of every timestep is a constant of the graph, and each image has a step of its own,
so that images at different steps can share a call. Float32 in and out. No file is written here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..bundle import CLIP_RANGE, PIXEL_RANGES, TensorSpec, graph_tensors
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import TreeDiffusion
from ..nn.gaussians import sample
from ..nn.tree_vae import TreeVAE
from ..signals import reads_latents
from .fold import fold


class Assign(nn.Module):
    """Leaf probabilities by the inference routers."""

    def __init__(self, tree: TreeVAE) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, C, H, W] in 0..1 -> [B, L]."""
        return self.tree.assign(images).exp()


class Path(nn.Module):
    """A prior sample of every node, and the turns it makes likely."""

    def __init__(self, tree: TreeVAE) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """noise: [B, N, Z, R, R] -> z of the same shape and p_left [B, I]."""
        nodes = self.tree.generate(noise)
        return nodes.z, nodes.prior_logit.sigmoid()


class Posterior(nn.Module):
    """A posterior sample of every node, and leaf probabilities by the inference routers."""

    def __init__(self, tree: TreeVAE) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """images: [B, C, H, W], noise: [B, N, Z, R, R] -> z [B, N, Z, R, R], leaf_prob [B, L]."""
        features = self.tree.bottom_up(images)
        root_z = sample(self.tree.root_posterior(features), noise[:, 0])
        nodes = self.tree.nodes(root_z[:, None], features[:, None], noise=noise[:, 1:])
        return nodes.z, nodes.log_node_prob[:, self.tree.nodes.leaf_rows].exp()


class Condition(nn.Module):
    """The denoiser's condition of each image."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.path = denoiser.path

    def forward(self, z_path: Tensor, nodes: Tensor) -> Tensor:
        """z_path: [B, P, Z R R], nodes: [B, P] int64, -1 where absent -> [B, E]."""
        cond: Tensor = self.path(z_path, nodes)
        return cond


class ConditionOfIds(Condition):
    """The same of a signal without latents."""

    def forward(self, nodes: Tensor) -> Tensor:  # type: ignore[override]
        """nodes: [B, P] int64, -1 where absent -> [B, E]."""
        return super().forward(torch.zeros(*nodes.shape, 1), nodes)


class Step(nn.Module):
    """The U-Net with the sampler's update around it."""

    time_table: Tensor

    def __init__(self, denoiser: Denoiser, timesteps: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        with torch.no_grad():
            table = denoiser.time.table(range(timesteps))
        self.register_buffer("time_table", table)

    def forward(
        self,
        x: Tensor,
        cond: Tensor,
        timesteps: Tensor,
        coef: Tensor,
        step: Tensor,
        noise: Tensor,
        reconstruction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of every image.

        Args:
            x: [B, C, H, W] float.
            cond: [B, E] float.
            timesteps: [S] int64.
            coef: [S, 5] float, `SolverTable.network`.
            step: [B] int64, the row of both tables each image is at.
            noise: [B, C, H, W] float, standard normal; multiplied by 0 where sigma is 0.
            reconstruction: [B, C, H, W] float in the network's pixel range, if it is seen.

        Returns:
            [B, C, H, W] float, the next x; and the same of the estimate of x0, as a preview.
        """
        time = self.time_table[timesteps[step]]
        found = self.denoiser.predict(x, time, cond, reconstruction)
        a, b, c, d, sigma = coef[step][:, :, None, None, None].unbind(dim=1)
        x0 = (a * x - b * found).clamp(*CLIP_RANGE)
        x_next: Tensor = c * x0 + d * found + sigma * noise
        return x_next, x0


class Decode(nn.Module):
    """TreeVAE's own image of each leaf."""

    def __init__(self, tree: TreeVAE) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, z: Tensor) -> Tensor:
        """z: [B, N, Z, R, R] -> [B, L, C, H, W] in 0..1."""
        return self.tree.decode(z).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Graph:
    """A module to export.

    Attributes:
        module: on the CPU, float32, in eval mode.
        inputs: its arguments in order.
        outputs: its results in order.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @torch.no_grad()  # not inference mode: constants cached on the way must serve training, too
    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Results by name, for arguments by name."""
        results = self.module(*(feeds[spec.name] for spec in self.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        return dict(zip((spec.name for spec in self.outputs), results, strict=True))


def on_cpu(model: TreeDiffusion) -> TreeDiffusion:
    """A copy of a model on the CPU, in float32 and in eval mode."""
    tree = copy.deepcopy(model.tree).cpu().float().eval()
    denoiser = copy.deepcopy(model.denoiser).cpu().float().eval()
    return replace(model, tree=tree, denoiser=denoiser)


def make_graphs(model: TreeDiffusion) -> dict[str, Graph]:
    """The graphs by role, of a model that is `on_cpu`."""
    tree, denoiser, told = fold(model.tree), model.denoiser, model.told
    modules: dict[str, nn.Module] = {
        "assign": Assign(tree),
        "path": Path(tree),
        "posterior": Posterior(tree),
        "condition": (Condition if reads_latents(told.signal) else ConditionOfIds)(denoiser),
        "step": Step(denoiser, model.schedule.timesteps),
        "decode": Decode(tree),
    }
    tensors = graph_tensors(
        tree.topology,
        tree.image_shape,
        tree.latent_shape,
        condition_width=denoiser.unet.embed_dim,
        timesteps=model.schedule.timesteps,
        pixel_range=PIXEL_RANGES[model.config.diffusion.pixel_range],
        told=told,
    )
    return {role: Graph(module, *tensors[role]) for role, module in modules.items()}
