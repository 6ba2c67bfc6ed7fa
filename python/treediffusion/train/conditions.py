"""What the denoiser is told of its training images by the frozen tree.

    leaf ~ p(l | x),  z ~ q(z | x) on the leaf's path,  and, where it is seen, TreeVAE's image

The tree's bottom-up maps and its routers' logits of an image never change, so they are computed
once, unless a GPU has no room for those of all images: they take a multiple of the images' bytes.
Latents and leaves are drawn afresh in every step. No decoder runs unless its images are seen. To
learn guidance, signals are left out, or cut, for some images. Nothing here waits for a value,
except where images come from the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import DiffusionConfig
from ..kernels.tree_route import tree_route
from ..nn.packed import packed
from ..nn.tree_vae import TreeVAE
from ..signals import leaf_slots
from .images import TrainingImages, has_room
from .measure import CHUNK


class Told(NamedTuple):
    """What is known of a batch.

    Attributes:
        z_path: [B, P, D] flattened latents of the signal's slots.
        nodes: [B, P] int64, their ids; -1 for slots that are absent or left out.
        reconstruction: [B, C, H, W] in 0..1; None where it is not seen.
    """

    z_path: Tensor
    nodes: Tensor
    reconstruction: Tensor | None


class Conditions:
    """Draws conditions of training images.

    Args:
        images: to train on.
        tree: the frozen tree, in eval mode, there.
        config: the stage's settings.
    """

    def __init__(self, images: TrainingImages, tree: TreeVAE, config: DiffusionConfig) -> None:
        self.tree, self.config, self._images = packed(tree), config, images
        slots = leaf_slots(tree.topology, config.signal)
        self._rows, self._ids = (torch.from_numpy(part).to(images.device) for part in slots)
        self._known = self._of_all()

    @torch.no_grad()
    def draw(self, index: Tensor) -> Told:
        """A leaf and latents for each image; index: [B] int64, their positions."""
        if self._known is None:
            features, logit = self._describe(self._images[index])
        else:
            features, logit = (part[index] for part in self._known)
        z = self.tree.infer(features=features).nodes.z
        _, leaf = tree_route(logit, torch.rand_like(logit), self.tree.nodes.routes)
        each = torch.arange(len(z), device=z.device)
        rows = self._rows[leaf]
        z_path = z.flatten(2)[each[:, None], rows.clamp(min=0)]
        seen = self.config.reconstruction != "none"
        reconstruction = self.tree.decode(z)[each, leaf].clamp(0.0, 1.0) if seen else None
        return Told(z_path, self._drop(self._ids[leaf]), reconstruction)

    @torch.no_grad()
    def _of_all(self) -> tuple[Tensor, Tensor] | None:
        """`_describe` of all images, or None where the device has no room for it."""
        images = self._images
        features, logit = self._describe(images[:1])
        if not has_room(images.device, len(images) * (features.nbytes + logit.nbytes)):
            return None
        features = features.new_empty(len(images), *features.shape[1:])
        logit = logit.new_empty(len(images), *logit.shape[1:])
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            features[part], logit[part] = self._describe(images[part])
        return features, logit

    def _describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is constant: [B, levels, C, R, R] bottom-up maps, and logits of the routers."""
        features = self.tree.bottom_up(images)
        return features, self.tree.nodes.route(features[:, None])

    def _drop(self, ids: Tensor) -> Tensor:
        """ids: [B, P]; some without any slot, some cut after a number that is drawn."""
        config, (batch, slots) = self.config, ids.shape
        if config.level_dropout:
            length = (ids >= 0).sum(dim=1)
            keep = (torch.rand(batch, device=ids.device) * length).long()  # 0 .. length - 1
            cut = torch.rand(batch, device=ids.device) < config.level_dropout
            beyond = torch.arange(slots, device=ids.device) >= keep[:, None]
            ids = ids.masked_fill(cut[:, None] & beyond, -1)
        if config.path_dropout:
            dropped = torch.rand(batch, device=ids.device) < config.path_dropout
            ids = ids.masked_fill(dropped[:, None], -1)
        return ids
