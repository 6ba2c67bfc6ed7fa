"""The conditioned denoiser: ``F(x_t, t, y) = UNet(x_t, time(t) + y)``, y the encoded signal.

Condition and prediction are separate calls, because y belongs to an image while F is asked for at
every step. A model that refines TreeVAE's image sees it, too: as further channels (the published
form1), or added to x_t, so that noise is around it (form2). The parts stay visible as attributes,
for callers that hoist more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import DiffusionConfig
from ..nn.path_encoder import PathEncoder
from ..nn.unet import TimeEmbedding, UNet
from ..signals import reads_ids, reads_latents
from .augment import LABELS


class Denoiser(nn.Module):
    """Predicts the noise in an image, or v, given the timestep and the signal of its leaf.

    Attributes:
        unet: the network.
        time: embedding of timesteps.
        path: embedding of signals.
        told: embedding of how an image was augmented; None where images are not.
        reconstruction: how TreeVAE's image is seen.
    """

    def __init__(
        self, image_channels: int, image_size: int, latent_size: int, config: DiffusionConfig
    ) -> None:
        """Builds the parts.

        Args:
            image_channels: C.
            image_size: H and W.
            latent_size: D, numbers in a node's flattened latent.
            config: settings of the stage.
        """
        super().__init__()
        self.reconstruction = config.reconstruction
        seen = image_channels * (2 if config.reconstruction == "concat" else 1)
        self.unet = UNet(
            seen,
            image_size,
            config.unet,
            out_channels=image_channels,
            # As published: without a signal the time embedding is added.
            scale_shift=config.signal != "none",
        )
        self.time = TimeEmbedding(config.unet.channels)
        self.path = PathEncoder(
            latent_size,
            self.unet.embed_dim,
            latents=reads_latents(config.signal),
            ids=reads_ids(config.signal),
        )
        augmented = config.augmentation != "none"
        self.told = nn.Linear(LABELS, self.unet.embed_dim, bias=False) if augmented else None

    def condition(self, z_path: Tensor, nodes: Tensor, labels: Tensor | None = None) -> Tensor:
        """The condition of each image.

        Args:
            z_path: [B, P, D] float, flattened latents of the signal's slots.
            nodes: [B, P] int64, their ids; -1 for absent slots.
            labels: [B, 9] float, how the images were augmented; None for images as they are.

        Returns:
            [B, E] float.
        """
        y: Tensor = self.path(z_path, nodes)
        return y if labels is None or self.told is None else y + self.told(labels)

    def forward(
        self, x_t: Tensor, t: Tensor, y: Tensor, reconstruction: Tensor | None = None
    ) -> Tensor:
        """The prediction.

        Args:
            x_t: [B, C, H, W] float, noised images; without the reconstruction in any form.
            t: [B] int64 or float, timesteps.
            y: [B, E] float, conditions.
            reconstruction: [B, C, H, W] float, TreeVAE's images in the network's pixel range, for
                a model that sees them.

        Returns:
            [B, C, H, W] float.
        """
        return self.predict(x_t, self.time(t), y, reconstruction)

    def predict(
        self,
        x_t: Tensor,
        time: Tensor,
        y: Tensor | None = None,
        reconstruction: Tensor | None = None,
    ) -> Tensor:
        """The same from embedded timesteps; `time` and `y` as in `UNet.forward`."""
        assert (reconstruction is None) == (self.reconstruction == "none")
        if reconstruction is not None:
            x_t = (
                torch.cat([x_t, reconstruction], dim=1)
                if self.reconstruction == "concat"
                else x_t + reconstruction
            )
        out: Tensor = self.unet(x_t, time, y)
        return out
