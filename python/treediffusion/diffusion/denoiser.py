"""The conditioned denoiser: ``eps(x_t, t, y) = UNet(x_t, time(t) + y)``, y the encoded path.

Condition and noise prediction are separate calls, because y belongs to an image while eps is asked
for at every step. The three parts stay visible as attributes, for callers that hoist more.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..config import UNetConfig
from ..nn.path_encoder import PathEncoder
from ..nn.unet import TimeEmbedding, UNet


class Denoiser(nn.Module):
    """Predicts the noise in an image, given the timestep and the path of its leaf.

    Attributes:
        unet: the network.
        time: embedding of timesteps.
        path: embedding of paths.
    """

    def __init__(
        self, image_channels: int, image_size: int, latent_size: int, config: UNetConfig
    ) -> None:
        """Builds the parts.

        Args:
            image_channels: C.
            image_size: H and W.
            latent_size: D, numbers in a node's flattened latent.
            config: settings of the network.
        """
        super().__init__()
        self.unet = UNet(image_channels, image_size, config)
        self.time = TimeEmbedding(config.channels)
        self.path = PathEncoder(latent_size, self.unet.embed_dim)

    def condition(self, z_path: Tensor, nodes: Tensor) -> Tensor:
        """The condition of each image.

        Args:
            z_path: [B, P, D] float, flattened latents on the path to the image's leaf.
            nodes: [B, P] int64, their rows in the tree; -1 for absent slots.

        Returns:
            [B, E] float.
        """
        out: Tensor = self.path(z_path, nodes)
        return out

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The predicted noise.

        Args:
            x_t: [B, C, H, W] float, noised images.
            t: [B] int64, timesteps.
            y: [B, E] float, conditions.

        Returns:
            [B, C, H, W] float.
        """
        out: Tensor = self.unet(x_t, self.time(t) + y)
        return out
