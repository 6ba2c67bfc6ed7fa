"""One denoising step of one image by the published networks: eager, and as one CUDA graph.

A step is the network's evaluation and the sampler's update. The published form, which the tests
hold our network against, encodes path and time in every step; ours has them from before. Needs the
package's own dependencies, as it reads a preset.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from interleave import Side
from support.eager_denoiser import FloatNorm, eager_denoiser
from torch import Tensor
from treediffusion.config import DiffusionConfig, load_preset
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.kernels.choice import Choice, use_kernels
from treediffusion.kernels.ddim_update import ddim_update

SHAPES = {"paper-cifar10": (3, 32, 1024), "paper-mnist": (1, 28, 64)}
"""Channels and side of images, and numbers of a node's latent."""
SLOTS = 5
TOY = {"channels": 32, "multipliers": [1], "blocks": 1, "heads": 4}


def steps(preset: str, dtype: torch.dtype, device: torch.device, *, toy: bool) -> dict[str, Side]:
    """Ways to make a step, by name.

    Args:
        preset: whose network.
        dtype: of weights and maps.
        device: where.
        toy: a network of one level instead, to see that it runs.

    Returns:
        "published", "reference" and "kernels", all with the same weights.
    """
    torch.manual_seed(0)
    channels, side, latent = (1, 4, 4) if toy else SHAPES[preset]
    config = load_preset(preset).diffusion
    if toy:
        config = DiffusionConfig.model_validate({"unet": TOY})
    net = Denoiser(channels, side, latent, config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.005)  # the last layers begin as 0
    net = net.to(device, dtype)
    plain = eager_denoiser(net, latent, config.unet).to(device)
    for module in plain.modules():
        if isinstance(module, FloatNorm):
            module.float()
    sinusoid = plain.sinusoid

    def waves(t: Tensor) -> Tensor:
        with device:  # where it makes its frequencies
            return sinusoid(t)

    plain.sinusoid = waves  # type: ignore[method-assign]
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, side, side, device=device)
    z_path = torch.randn(1, SLOTS, latent, device=device, dtype=dtype)
    nodes = torch.arange(SLOTS, device=device)[None]
    t, row = torch.full((1,), 500, device=device), torch.rand(5, device=device)
    with torch.inference_mode():
        cond, time = net.condition(z_path, nodes), net.time(t)[0]
    update = partial(ddim_update, row=row, clip_range=(-1.0, 1.0))

    def published() -> Tensor:
        with use_kernels("reference"):
            return update(x, plain(x.to(dtype), t, z_path, nodes))

    def ours(choice: Choice) -> Tensor:
        with use_kernels(choice):
            return update(x, net.predict(x.to(dtype), time, cond))

    forms: dict[str, Callable[[], Tensor]] = {
        "published": published,
        "reference": partial(ours, "reference"),
        "kernels": partial(ours, "triton"),
    }
    return {name: torch.inference_mode()(form) for name, form in forms.items()}
