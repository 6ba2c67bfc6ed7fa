"""The one schema of every setting, and the presets that fill it.

A preset is a YAML file in ``presets/``; a run stores the resolved configuration, and so do its
checkpoints and bundles. Objects are frozen, and unknown keys are refused, so that a misspelt
setting never trains for hours unnoticed. The command line is generated from the same classes.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ConfigError
from .signals import Reconstruction, Signal
from .solvers import Prediction, Solver
from .spacing import Spacing

Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A group of settings: frozen, validated when built, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ContrastiveConfig(Section):
    """Prior knowledge from pairs of views (TreeVAE 2.6): what does not change the cluster."""

    weight: NonNegative = 0.0
    """Weight of the router and embedding terms; 0 trains on one view of each image."""
    temperature: Positive = 0.5
    """Temperature of the embedding term; the router term has 1, as published."""


class TreePhases(Section):
    """Epochs of each phase. An epoch of a subtree covers its leaf's images only."""

    initial: Epochs = 150
    """Root with two leaves."""
    subtree: Epochs = 150
    """Each new pair of leaves, the rest frozen."""
    intermediate: Epochs = 80
    """Whole tree, after every few splits."""
    final: Epochs = 200
    """Whole tree, after pruning."""
    intermediate_every: Count = 3
    """Splits between two intermediate phases."""


class TreeConfig(Section):
    """TreeVAE: network, objective and growth."""

    codec: Literal["cnn1", "cnn2", "mlp", "mlp_cnn1", "mlp_cnn2", "mlp_omniglot"] = "cnn1"
    """Encoder and decoders. cnn1: chains of convolutions; cnn2: residual blocks. The others are
    those of TreeVAE's MLP form, whose latents and bottom-up values are vectors."""
    latent_channels: Count = 16
    """C_z, channels of each node's latent map."""
    latent_size: Count = 2
    """R, side of every latent and bottom-up map; 1 in the MLP form. `codec_sizes` overrides it."""
    channels: Count = 32
    """C_b, channels of the bottom-up maps."""
    encoder_channels: Count | None = None
    """Width of the encoder's own output, where the MLP form has another one there."""
    levels: Annotated[int, Field(ge=2, le=64)] = 7
    """Bottom-up levels; a leaf can be at most levels - 1 below the root."""
    residual: bool = False
    """Each bottom-up block adds its input to its output."""
    activation: Literal["silu", "relu", "leaky_relu"] = "silu"
    """After every normalisation; leaky_relu has the slope 0.3."""
    resize: Literal["learned", "fixed"] = "learned"
    """How cnn2 changes the side of a map. learned: strided and transposed convolutions. fixed:
    average pooling and bilinear interpolation."""
    spectral_norm: bool = False
    """Divides the weights of the encoder and of each bottom-up block's first two convolutions by
    their largest singular value."""
    codec_sizes: tuple[Count, ...] | None = None
    """Sides of cnn1's maps, image first, latent side last; the decoder mirrors them.
    Left out: four sizes on a line from the image to `latent_size`, as published."""
    codec_channels: tuple[Count, ...] | None = None
    """Channels of cnn1's inner maps. Left out: on a line from the image to `channels`."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Bernoulli: sigmoid and cross entropy. Gaussian: squared error."""
    max_leaves: Annotated[int, Field(ge=2)] = 10
    """Growth ends at this many leaves that hold at least `min_share` of the images."""
    criterion: Literal["samples", "reconstruction", "elbo"] = "samples"
    """Which leaf is split next: the one with most images, with the largest summed reconstruction
    error, or with the largest summed negative ELBO."""
    at_full_depth: Literal["next", "stop"] = "next"
    """When the leaf to split is as deep as `levels` allows: take the next one, or end growth, as
    the published code does."""
    min_share: Fraction = 0.01
    """A leaf with a smaller share of the images does not count, and is pruned."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images in a step, before they are doubled into views."""
    learning_rate: Positive = 1e-3
    """Adam."""
    learning_rate_schedule: Literal["step", "cosine"] = "step"
    """step: a tenth every 100 epochs, as published. cosine: to zero within each phase."""
    final_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the learning rate in the final phase. Below 1, leaves survive it that would not."""
    weight_decay: NonNegative = 1e-5
    """L2, inside Adam."""
    kl_start: Fraction = 0.0
    """Weight of the KL terms in the first epoch of a phase."""
    kl_step: NonNegative = 0.001
    """What each epoch adds to it, up to 1. The final phase reaches 1 at the latest at its end."""
    kl_limit: Fraction = 1.0
    """Largest weight the KL terms reach. Below 1 the leaves keep more of what they found."""
    phases: TreePhases = TreePhases()
    """Epochs of each phase."""
    restarts: Count = 1
    """Trees to train side by side, from different seeds; one of them is kept."""
    keep: Literal["elbo", "agreement"] = "elbo"
    """Which one. elbo: the best. agreement: the one whose clusters the others confirm most, by
    mean NMI; two confirm each other alike, so of fewer than three the best ELBO is kept."""
    augmentation: Literal["none", "shifts", "strokes", "colour", "faces"] = "none"
    """How views of an image are made. shifts: moved by a pixel. strokes: Omniglot's small affine
    maps. colour: crops, mirror images, colours and greys of CIFAR and CUBICC. faces: CelebA's."""
    contrastive: ContrastiveConfig = ContrastiveConfig()
    """Two views of each image, and what they must agree on."""
    compile: bool = False
    """Compile each phase's loss with torch.compile. That takes minutes for each, and pays only in
    long phases of small networks; convolutions are as fast without."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_leaves > 2 ** (self.levels - 1):
            raise ValueError(
                f"max_leaves {self.max_leaves} do not fit {self.levels} levels; "
                f"at most {2 ** (self.levels - 1)}"
            )
        if self.codec_channels is not None and (
            self.codec_sizes is None or len(self.codec_channels) != len(self.codec_sizes) - 2
        ):
            raise ValueError("codec_channels needs codec_sizes, and has one entry per inner size")
        if self.codec_sizes is not None and self.codec != "cnn1":
            raise ValueError(f"codec_sizes belong to cnn1, not to {self.codec}")
        if self.contrastive.weight and self.augmentation == "none":
            raise ValueError("a contrastive weight needs an augmentation that makes the views")
        if self.encoder_channels is not None and not self.is_mlp:
            raise ValueError(f"encoder_channels belong to the MLP form, not to {self.codec}")
        if self.is_mlp and self.latent_size != 1:
            raise ValueError(f"{self.codec} has vectors: latent_size must be 1")
        return self

    @property
    def is_mlp(self) -> bool:
        """Whether this is the MLP form, whose maps are vectors."""
        return self.codec.startswith("mlp")


class UNetConfig(Section):
    """The denoiser's network."""

    channels: Annotated[int, Field(ge=32, multiple_of=32)] = 64
    """Width of the first level; group norms have 32 groups."""
    multipliers: tuple[Count, ...] = (1, 2, 2, 2)
    """Width of each level, in units of `channels`; each level halves the side."""
    blocks: Annotated[int, Field(ge=1, le=64)] = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    heads: Count = 8
    """Attention heads."""
    attention: tuple[Count, ...] = ()
    """Down-sampling factors at which blocks attend, besides the middle.
    The published 16 is beyond the last level: none."""
    attention_sides: tuple[Count, ...] = ()
    """Sides of maps, in pixels, at which blocks attend as well, as the papers' text can be read."""
    dropout: Fraction = 0.1
    """Inside residual blocks."""


class DiffusionConfig(Section):
    """TreeDiffusion's second stage."""

    unet: UNetConfig = UNetConfig()
    """The network."""
    signal: Signal = "path"
    """What of the tree is added to the time embedding: latents and ids of all nodes on the path,
    or the leaf's id, its latent, or both."""
    reconstruction: Reconstruction = "none"
    """TreeVAE's image of the leaf: unused, further input channels (the published form1), or the
    mean that noise is added to (form2)."""
    path_dropout: Fraction = 0.0
    """Share of the images trained without any signal, for classifier-free guidance."""
    level_dropout: Fraction = 0.0
    """Share of the images whose path is cut at a random depth, for guidance by depth."""
    schedule: Literal["linear", "edm"] = "linear"
    """Noise levels: betas on a line, as published, or those of EDM (Karras et al. 2022)."""
    prediction: Prediction = "eps"
    """The network's output: the noise, or v, which with `edm` is EDM's preconditioning."""
    timesteps: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """T, length of the noise schedule."""
    beta_start: Positive = 1e-4
    """Variance added by the first step; linear schedules alone."""
    beta_end: Positive = 0.02
    """Variance added by the last step; in between, a line."""
    sigma_data: Positive = 0.5
    """Standard deviation of the pixels that EDM's levels assume."""
    pixel_range: Literal["0..1", "-1..1"] = "-1..1"
    """Pixels as the network sees them; the published code trains on 0..1."""
    augmentation: Literal["none", "edm"] = "none"
    """EDM's flips, moves and turns, which the network is told of, so that it does not draw them."""
    shuffle: bool = True
    """A new order in every epoch; the published code sees the same batches again and again, and
    never the images of the last, smaller one."""
    steps: Count = 200_000
    """Optimiser steps."""
    batch_size: Count = 256
    """Images in a step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic in training; weights are float32 always."""
    learning_rate: Positive = 2e-4
    """Adam."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, as published, or cosine to zero."""
    warmup: Annotated[int, Field(ge=0)] = 5000
    """Steps over which the learning rate rises to its value."""
    clip: Positive = 1.0
    """Largest norm of a step's gradient."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    """Decay of the averaged weights, which are the ones that generate."""
    ema_also: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...] = ()
    """Further decays to keep averages of, one of which can be chosen after training."""
    loss: Literal["l2", "l1"] = "l2"
    """Of the predicted noise, or v."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.schedule == "edm" and self.prediction != "v":
            raise ValueError("prediction v with schedule edm, whose preconditioning it is")
        if self.level_dropout and self.signal != "path":
            raise ValueError("level_dropout 0 for a signal that has no levels")
        if self.path_dropout and self.signal == "none":
            raise ValueError("path_dropout 0 without a signal")
        if self.augmentation != "none" and self.reconstruction != "none":
            raise ValueError("augmentation none with a reconstruction, which stays where it is")
        return self


class SamplingConfig(Section):
    """How images are drawn, unless a call says otherwise."""

    solver: Solver = "ddim"
    """The sampler; of DDPM with the larger variance, beta, or the posterior's."""
    num_inference_steps: Count = 50
    """Denoising steps asked for; the spacing may merge some."""
    spacing: Spacing = "quadratic"
    """Where the steps lie; quadratic as published, from t = 0.8 T down."""
    eta: Fraction = 0.0
    """0: DDIM, deterministic given the start. 1: as much noise as DDPM."""
    guidance_scale: float | tuple[float, ...] = 1.0
    """How much further than its condition an image goes: 1 is no guidance. One number for each
    depth weighs what the path adds there."""


class Config(Section):
    """Everything a run depends on, besides the images themselves."""

    preset: str = ""
    """The preset these settings began as; empty for none."""
    data: str = "digits"
    """A data set's name, such as `cifar10`, or a folder, zip or CSV list of pictures, an .npy or
    .npz file, or idx files. `treediffusion data` lists the names, and shows what is in a set."""
    image_size: Count | None = None
    """Side to scale images to: the middle square of pictures, or what a named set cuts out. Left
    out, images stay as they are, or are as the named set has them."""
    skip_corrupt: bool = False
    """Leave out files that cannot be used; otherwise they are an error that names them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random in training."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves the choice to PyTorch. Equal results need equal numbers."""
    tree: TreeConfig = TreeConfig()
    """First stage."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Second stage."""
    sampling: SamplingConfig = SamplingConfig()
    """Generation."""


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files(__package__) / "presets"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_preset(name: str) -> Config:
    """A shipped preset.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in preset_names():
        raise ConfigError("preset", got=repr(name), expected=f"one of {', '.join(preset_names())}")
    return parse_config(_preset_settings(name), source=f"preset {name}")


def _preset_settings(name: str) -> dict[str, Any]:
    """Plain values of a shipped preset, which may lie on top of another that it names."""
    text = (resources.files(__package__) / "presets" / f"{name}.yaml").read_text("utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    below = _preset_settings(settings["preset"]) if "preset" in settings else {}
    return merge_settings(below, settings) | {"preset": name}


def load_config(path: Path) -> Config:
    """A configuration from a YAML or JSON file, which may start from a preset by naming it.

    Raises:
        ConfigError: not readable, or not of the schema.
    """
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(str(path), got=str(fault), expected="a readable YAML file") from fault
    if not isinstance(settings, dict):
        raise ConfigError(str(path), got=type(settings).__name__, expected="settings by name")
    base: dict[str, Any] = {}
    if settings.get("preset"):
        base = load_preset(settings["preset"]).model_dump()
    return parse_config(merge_settings(base, settings), source=str(path))


def parse_config(settings: dict[str, Any], *, source: str) -> Config:
    """A configuration from plain values.

    Raises:
        ConfigError: the first thing that does not fit the schema, with its place.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            place or "settings",
            got=repr(first["input"]),
            expected=first["msg"].removeprefix("Value error, "),
            hint=f"correct it in {source}",
        ) from fault


def merge_settings(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = merge_settings(below, value) if both else value  # type: ignore[arg-type]
    return merged
