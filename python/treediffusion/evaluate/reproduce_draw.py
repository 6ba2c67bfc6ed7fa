"""Images drawn for a table: by a tree's decoders, or by a denoiser along the tree's paths.

    generated       z from the tree's prior, leaf by the generative routers
    reconstructed   z from the posterior of an image, leaf by the inference routers

As published, the tree takes the most probable leaf and the denoiser draws one. Both start from
numbers of a generator on the CPU, so that every device draws the same. This is PyTorch with the
trained weights, for evaluation; what serves images is `runtime`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import DiffusionConfig, SamplingConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.model import make_table
from ..diffusion.sampler import sample
from ..nn.node_stack import TreePass
from ..nn.prepared import prepared
from ..nn.tree_vae import TreeVAE
from ..progress import Progress
from ..runtime.pixels import to_uint8
from ..signals import leaf_slots

CHUNK = 100
"""Images that are drawn at once."""

UInt8Array = NDArray[np.uint8]


@torch.inference_mode()
def draw_by_tree(
    tree: TreeVAE, count: int, *, seed: int, images: Tensor | None = None
) -> UInt8Array:
    """[count, C, H, W] images of the most probable leaf's decoder.

    Args:
        tree: in eval mode.
        count: of images.
        seed: of all latents.
        images: [n, C, H, W] float in 0..1, on its device, to reconstruct the first of; None to
            generate.
    """
    drawn = []
    for found in _passes(tree, count, seed, images):
        leaf = found.log_node_prob[:, tree.topology.leaves.tolist()].argmax(1)
        each = torch.arange(len(leaf), device=leaf.device)
        drawn.append(tree.decode(found.z)[each, leaf].float().cpu())
    return to_uint8(torch.cat(drawn).numpy(), (0.0, 1.0))


@torch.inference_mode()
def draw_by_denoiser(
    tree: TreeVAE,
    denoiser: Denoiser,
    config: DiffusionConfig,
    sampling: SamplingConfig,
    count: int,
    *,
    seed: int,
    images: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[UInt8Array, NDArray[np.int64]]:
    """Images of leaves that are drawn, too.

    Args:
        tree: that the denoiser belongs to, in eval mode.
        denoiser: in eval mode, on the tree's device.
        config: its settings.
        sampling: the solver.
        count: of images.
        seed: of latents, leaves and noise.
        images: as for `draw_by_tree`.
        progress: told of every chunk, at no cost.

    Returns:
        [count, C, H, W] uint8, and [count] int64 leaves.
    """
    table = make_table(config, sampling)
    low, high = (0.0, 1.0) if config.pixel_range == "0..1" else (-1.0, 1.0)
    slots = [torch.from_numpy(part) for part in leaf_slots(tree.topology, config.signal)]
    network, numbers = prepared(denoiser), torch.Generator().manual_seed(seed + 1)
    drawn, leaves = [], []
    for found in _passes(tree, count, seed, images):
        z = found.z
        prob = found.log_node_prob[:, tree.topology.leaves.tolist()].exp().cpu()
        leaf = torch.multinomial(prob, 1, generator=numbers)[:, 0]
        rows, ids = (part[leaf].to(z.device) for part in slots)
        each = torch.arange(len(z), device=z.device)
        y = denoiser.condition(z.flatten(2)[each[:, None], rows.clamp(min=0)], ids)
        seen = None
        if config.reconstruction != "none":
            decoded = tree.decode(z)[each, leaf.to(z.device)].clamp(0.0, 1.0)
            seen = decoded * (high - low) + low

        def noise(_: int, like: Tensor = z) -> Tensor:
            return torch.randn(len(like), *tree.image_shape, generator=numbers).to(like)

        x = sample(network, y, noise(0, z), table, reconstruction=seen, noise=noise)
        drawn.append(to_uint8(x.float().cpu().numpy(), (low, high)))
        leaves.append(leaf.numpy())
        if progress is not None:
            progress.advance(0, f"drawing, image {sum(map(len, leaves))}/{count}")
    return np.concatenate(drawn), np.concatenate(leaves)


def _passes(tree: TreeVAE, count: int, seed: int, images: Tensor | None) -> Iterator[TreePass]:
    """Chunks of samples of all nodes."""
    numbers = torch.Generator().manual_seed(seed)
    shape = (tree.topology.num_nodes, *tree.latent_shape)
    some = next(tree.parameters())
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        noise = torch.randn(size, *shape, generator=numbers).to(some)
        if images is None:
            yield tree.generate(noise)
        else:
            yield tree.infer(images[start : start + size], noise=noise).nodes
