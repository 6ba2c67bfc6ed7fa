"""A look at the denoiser while it trains: a few images of each leaf, in few steps of DDIM.

Latents come from the tree's prior, as they do when images are generated. The numbers are the same
in every picture, so that two pictures differ by what was learnt in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import DiffusionConfig, SamplingConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.draws import Draws, latent_noise
from ..diffusion.model import make_table
from ..diffusion.sampler import sample
from ..nn.packed import packed
from ..nn.prepared import prepared
from ..nn.tree_vae import TreeVAE
from ..runtime.pixels import to_uint8
from ..signals import leaf_slots
from .figures import leaf_gallery, save

STEPS, LEAF_IMAGES, SEED = 20, 8, 0
FILE = "preview-images.png"

Draw = Callable[[TreeVAE, DiffusionConfig, Sequence[float], int, Denoiser], None]
"""Shown a tree, the settings of its denoiser, the share of images that reach each node, the step of
the training, and the averaged denoiser."""


def diffusion_preview(out: Path) -> Draw:
    """What to pass to training as `draw`; it writes `preview-images.png` into a folder.

    Images that are neither grey nor coloured are not drawn.
    """

    def draw(
        tree: TreeVAE,
        config: DiffusionConfig,
        share: Sequence[float],
        step: int,
        denoiser: Denoiser,
    ) -> None:
        if tree.image_shape[0] not in (1, 3):
            return
        figure = leaf_gallery(
            leaf_images(tree, denoiser, config),
            tree.topology,
            np.asarray(share),
            title=f"Drawn in {STEPS} steps after step {step} of {config.steps}",
        )
        save(figure, out / FILE)

    return draw


@torch.inference_mode()
def leaf_images(tree: TreeVAE, denoiser: Denoiser, config: DiffusionConfig) -> NDArray[np.uint8]:
    """[L, k, C, H, W] images of each leaf.

    Args:
        tree: in evaluation mode.
        denoiser: in evaluation mode, on the tree's device.
        config: its settings.
    """
    device = next(denoiser.parameters()).device
    topology = tree.topology
    count = topology.num_leaves * LEAF_IMAGES
    # The runtime's numbers: every device draws the same, and no generator is disturbed.
    images = range(count)
    noise = latent_noise(SEED, images, topology.num_nodes, tree.latent_shape, device=device)
    draws = Draws(SEED, images, tree.image_shape, device=device)
    leaf = torch.arange(count, device=device) // LEAF_IMAGES

    z = packed(tree).generate(noise).z
    slots = leaf_slots(topology, config.signal)
    rows, ids = (torch.from_numpy(part).to(device)[leaf] for part in slots)
    each = torch.arange(count, device=device)
    y = denoiser.condition(z.flatten(2)[each[:, None], rows.clamp(min=0)], ids)
    low, high = (0.0, 1.0) if config.pixel_range == "0..1" else (-1.0, 1.0)
    seen = None
    if config.reconstruction != "none":
        seen = tree.decode(z)[each, leaf].clamp(0.0, 1.0) * (high - low) + low

    table = make_table(config, SamplingConfig(num_inference_steps=STEPS))
    x = sample(prepared(denoiser), y, draws.start(), table, reconstruction=seen)
    pixels = to_uint8(x.float().cpu().numpy(), (low, high))
    return pixels.reshape(topology.num_leaves, LEAF_IMAGES, *tree.image_shape)
