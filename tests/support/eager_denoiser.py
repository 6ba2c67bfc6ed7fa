"""The denoiser written out plainly, in the form and with the habits of the published code.

The truth for `Denoiser`, and what its speed is measured against: float32 and contiguous NCHW; each
block projects silu(emb) on its own; attention is an explicit softmax with the channels of a head
side by side, and q and k each scaled by d^(-1/4); time and paths are encoded in every call, paths
one sample after another and the second layer slot by slot. Norms and softmax are in float32, or in
float64 where the network is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from treediffusion.config import UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.nn.unet import Attention, ResBlock
from treediffusion.solvers import SolverTable


class EagerDenoiser(nn.Module):
    """Noised images, timesteps and paths in, noise out."""

    def __init__(self, channels: int, size: int, latent_size: int, config: UNetConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        inside = max(1 << (size - 1).bit_length(), 2 ** (len(widths) - 1))
        self.pad = (inside - size) // 2, inside - size - (inside - size) // 2
        embed_dim = 4 * config.channels
        self.waves = config.channels
        self.time = mlp(config.channels, embed_dim)
        self.embed = mlp(latent_size, embed_dim)
        self.node = mlp(1, embed_dim)

        def block(inputs: int, level: int) -> list[nn.Module]:
            width = widths[level]
            layers: list[nn.Module] = [EagerBlock(inputs, width, embed_dim, config.dropout)]
            if 2**level in config.attention or inside // 2**level in config.attention_sides:
                layers.append(EagerAttention(width, config.heads))
            return layers

        self.inputs = nn.ModuleList([Chain([nn.Conv2d(channels, widths[0], 3, padding=1)])])
        skips = [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.inputs.append(Chain(block(skips[-1], level)))
                skips.append(width)
            if level < len(widths) - 1:
                self.inputs.append(Chain([nn.Conv2d(width, width, 3, stride=2, padding=1)]))
                skips.append(width)
        low = widths[-1]
        self.middle = Chain(
            [
                EagerBlock(low, low, embed_dim, config.dropout),
                EagerAttention(low, config.heads),
                EagerBlock(low, low, embed_dim, config.dropout),
            ]
        )
        self.outputs = nn.ModuleList()
        below = low
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.blocks + 1):
                layers = block(below + skips.pop(), level)
                below = width
                if level > 0 and index == config.blocks:
                    layers += [nn.UpsamplingNearest2d(scale_factor=2)]
                    layers += [nn.Conv2d(width, width, 3, padding=1)]
                self.outputs.append(Chain(layers))
        self.norm = FloatNorm(widths[0])
        self.head = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, z_path: Tensor, nodes: Tensor) -> Tensor:
        """x: [B, C, H, W], t: [B], z_path: [B, P, D], nodes: [B, P], -1 absent -> [B, C, H, W]."""
        return self.body(x, self.time(self.sinusoid(t)) + self.encode(z_path, nodes))

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, C, H, W], emb: [B, E] -> [B, C, H, W]."""
        h = F.pad(x, self.pad * 2)
        skips = []
        for layers in self.inputs:
            h = layers(h, emb)
            skips.append(h)
        h = self.middle(h, emb)
        for layers in self.outputs:
            h = layers(torch.cat([h, skips.pop()], dim=1), emb)
        h = self.head(F.silu(self.norm(h)))
        before, side = self.pad[0], x.shape[-1]
        return h[:, :, before : before + side, before : before + side]

    def sinusoid(self, t: Tensor) -> Tensor:
        half = self.waves // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angle = t[:, None].float() * frequency[None]
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1).to(self.head.weight.dtype)

    def encode(self, z_path: Tensor, nodes: Tensor) -> Tensor:
        rows = []
        for z, ids in zip(z_path, nodes, strict=True):
            present = ids >= 0
            number = ids[present][:, None].to(z.dtype)
            rows.append((self.embed(z[present]) + self.node(number)).sum(dim=0))
        return torch.stack(rows)


class Chain(nn.ModuleList):
    """Layers in order; blocks also get the embedding."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, emb) if isinstance(layer, EagerBlock) else layer(h)
        return h


class EagerBlock(nn.Module):
    """GN, SiLU, conv; GN, scale and shift, SiLU, dropout, conv; plus a skip."""

    def __init__(self, inputs: int, width: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = FloatNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * width))
        self.norm2 = FloatNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class EagerAttention(nn.Module):
    """Channels of `qkv` are cut into heads first, and each head's into q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = FloatNorm(width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, *sides = x.shape
        x = x.reshape(batch, width, -1)
        qkv = self.qkv(self.norm(x)).reshape(batch * self.heads, 3 * width // self.heads, -1)
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(wide(weight), dim=-1).to(v.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, width, -1)
        return (x + self.out(h)).reshape(batch, width, *sides)


class FloatNorm(nn.GroupNorm):
    """Group norm of 32 groups, in float32 at least."""

    def __init__(self, width: int) -> None:
        super().__init__(32, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wide(x)).to(x.dtype)


def mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def eager_denoiser(ours: Denoiser, latent_size: int, config: UNetConfig) -> EagerDenoiser:
    """The plain network with the weights, dtype and mode of ours; its tensors are its own."""
    channels, size, _ = ours.unet.image_shape
    net = EagerDenoiser(channels, size, latent_size, config).to(ours.unet.head.weight.dtype)
    net.load_state_dict(eager_tensors(net, ours, dict(ours.named_parameters())))
    return net.train(ours.training)


def eager_tensors(
    net: EagerDenoiser, ours: Denoiser, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors like our parameters, by our names, in the plain network's names and cuts.

    Both have their modules in the order in which they run, so those of a kind match one by one.
    """
    found: dict[str, Tensor] = {}

    def move(theirs: str, name: str) -> None:
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in tensors:
                found[f"{theirs}.{kind}"] = tensors[f"{name}.{kind}"]

    for theirs, name in (("time", "time.{}"), ("embed", "path.embed_{}"), ("node", "path.node_{}")):
        first, second = ("first", "second") if theirs == "time" else ("in", "out")
        move(f"{theirs}.0", name.format(first))
        move(f"{theirs}.2", name.format(second))
    move("norm", "unet.norm")
    move("head", "unet.head")

    # Blocks, each with its rows of the one projection.
    blocks = _names(ours, ResBlock)
    for kind in ("weight", "bias"):
        rows = tensors[f"unet.project.{kind}"].split(ours.unet.slices)
        for theirs, row in zip(_names(net, EagerBlock), rows, strict=True):
            found[f"{theirs}.emb.1.{kind}"] = row
    for theirs, name in zip(_names(net, EagerBlock), blocks, strict=True):
        for part in ("norm1", "conv1", "norm2", "conv2", "skip"):
            move(f"{theirs}.{part}", f"{name}.{part}")

    for theirs, name in zip(_names(net, EagerAttention), _names(ours, Attention), strict=True):
        move(f"{theirs}.norm", f"{name}.norm")
        heads = ours.get_submodule(name).heads
        for part, kind in itertools.product(("qkv", "out"), ("weight", "bias")):
            value = tensors[f"{name}.{part}.{kind}"]
            if part == "qkv":
                value = value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
            found[f"{theirs}.{part}.{kind}"] = value[:, :, :, 0] if kind == "weight" else value

    # What is left are single convolutions: the stem, and those that shrink and enlarge.
    inside = ("unet.stem", "shrink", "grow")
    single = [name for name, _ in ours.named_modules() if name.endswith(inside)]
    alone = [
        f"{chain}.{place}"
        for chain, layers in net.named_modules()
        if isinstance(layers, Chain)
        for place, layer in enumerate(layers)
        if isinstance(layer, nn.Conv2d)
    ]
    single = [name for name in single if f"{name}.weight" in tensors]
    for theirs, name in zip(alone, single, strict=True):
        move(theirs, name)
    return found


def eager_sample(
    net: EagerDenoiser, z_path: Tensor, nodes: Tensor, x: Tensor, table: SolverTable
) -> Tensor:
    """DDIM without added noise: everything in each step, coefficients looked up in tensors."""
    coef = torch.from_numpy(table.network).to(x)
    for step, timestep in enumerate(table.timestep.tolist()):
        t = torch.full((len(x),), timestep, dtype=torch.int64)
        row = torch.full((len(x),), step, dtype=torch.int64)
        a, b, c, d, _ = coef[row][:, :, None, None, None].unbind(dim=1)
        eps = net(x, t, z_path, nodes)
        x0 = (a * x - b * eps).clamp(*table.clip_range)
        x = c * x0 + d * eps
    return x


def _names(net: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, kind)]
