"""What each published table is made of: methods, the preset of each data set, the protocol.

A protocol is what a row states beside its numbers. Where the papers leave something open, the
choice is here, and `docs/differences.md` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import Config, load_preset, merge_settings, parse_config
from ..errors import ConfigError
from .published import table_names

Scores = Literal["clusters", "likelihood", "images", "entropy"]

CNN = {
    "mnist": "paper-mnist",
    "fashion_mnist": "paper-fashion",
    "cifar10": "paper-cifar10",
    "cubicc": "paper-cubicc",
    "celeba64": "paper-celeba",
}
MLP = {
    "mnist": "treevae-mnist",
    "fashion_mnist": "treevae-fashion",
    "newsgroups20": "treevae-newsgroups20",
    "omniglot5": "treevae-omniglot5",
    "omniglot": "treevae-omniglot5",
    "cifar10": "treevae-cifar10",
    "cifar100": "treevae-cifar100",
}
SMALL = {"digits": "tiny"}
LEAVES = {"newsgroups20": 30, "cifar100": 30}
"""Leaves at which dendrogram and leaf purity are measured; 20 for all others."""

SIGNALS: dict[str, dict[str, str]] = {
    "treediffusion": {"signal": "path", "reconstruction": "none"},
    "treevae_diffusion": {"signal": "none", "reconstruction": "concat"},
    "leaf_id_reconstruction": {"signal": "leaf_id", "reconstruction": "concat"},
    "leaf_latent_reconstruction": {"signal": "leaf_embedding", "reconstruction": "concat"},
    "leaf_both_reconstruction": {"signal": "leaf_id_embedding", "reconstruction": "concat"},
    "leaf_both": {"signal": "leaf_id_embedding", "reconstruction": "none"},
    "path_reconstruction": {"signal": "path", "reconstruction": "concat"},
}
"""Conditioned denoisers, by what they are told."""

TITLES = {
    "treevae": "TreeVAE",
    "treediffusion": "TreeDiffusion (path)",
    "treevae_diffusion": "TreeVAE + Diffusion (reconstruction)",
    "leaf_id_reconstruction": "reconstruction + leaf id",
    "leaf_latent_reconstruction": "reconstruction + leaf latent",
    "leaf_both_reconstruction": "reconstruction + leaf id + latent",
    "leaf_both": "leaf id + latent",
    "path_reconstruction": "reconstruction + path",
    "ddim": "DDIM, unconditional",
    "vae": "VAE",
    "ladder_vae": "LadderVAE",
    "vae_ward": "VAE + Ward",
    "ladder_ward": "LadderVAE + Ward",
    "deepect": "DeepECT",
    "l2h": "VAE + Gaussian mixture + L2H",
    "ward": "Ward",
    "k_means": "k-means",
}
"""What a row is called."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        scores: what is measured.
        presets: the preset of each data set.
        methods: its rows, top to bottom.
        protocol: how it is measured, in sentences.
    """

    scores: Scores
    presets: dict[str, str]
    methods: tuple[str, ...]
    protocol: tuple[str, ...]


_IMAGES = (
    "generated: paths from the tree's prior, leaf drawn (of TreeVAE's own decoders the most "
    "probable one); reconstructed: posterior samples of test images",
    "distances are between images as bytes and the test part",
    "the published ones are FID; where no Inception weights are at hand, ours are Frechet "
    "distances in the features of our own classifier, which do not compare with them",
)
_CLUSTERS = (
    "clusters of the test part, without augmentation; the models learn from the training part, "
    "Ward and k-means see the test part alone",
    "accuracy and NMI with as many clusters as classes",
    "dendrogram and leaf purity with more leaves",
)
TABLES = {
    "table1": Table("images", CNN | SMALL, ("treevae", "treediffusion", "ddim"), _IMAGES),
    "table2": Table(
        "entropy", CNN | SMALL, ("treevae_diffusion", "treediffusion"),
        ("entropy in nats of the classes that our own classifier sees in a leaf's images, mean "
         "over leaves; the published base and threshold are unknown",),
    ),
    "table3": Table("images", CNN | SMALL, (*SIGNALS, "ddim"), _IMAGES),
    "treevae-table1": Table(
        "clusters", MLP | SMALL,
        ("treevae", "ladder_ward", "vae_ward", "deepect", "ward", "k_means", "l2h"), _CLUSTERS,
    ),
    "treevae-table2": Table(
        "likelihood", MLP | SMALL, ("treevae", "vae", "ladder_vae"),
        ("nats per test image; published_log_likelihood is the published estimate, which is no "
         "bound, log_likelihood is importance weighted",),
    ),
}  # fmt: skip
"""The tables by name."""


def find_table(name: str) -> Table:
    """A table.

    Raises:
        ConfigError: no such table.
    """
    if name not in TABLES:
        raise ConfigError("table", got=repr(name), expected=f"one of {', '.join(table_names())}")
    return TABLES[name]


def settings_for(table: Table, dataset: str, preset: str | None) -> Config:
    """The settings of a table's models: the published preset's, or those of another.

    One tree for each seed: of several restarts a table would keep the best.

    Raises:
        ConfigError: no preset is known for the data set, or none of this name.
    """
    if preset is None and dataset not in table.presets:
        raise ConfigError(
            "--dataset",
            got=repr(dataset),
            expected=f"one of {', '.join(table.presets)}",
            hint="or name a --preset, which other data need",
        )
    settings = load_preset(preset or table.presets[dataset]).model_dump()
    changed: dict[str, Any] = {"tree": {"restarts": 1}}
    return parse_config(merge_settings(settings, changed), source="--preset")


def leaves_for(dataset: str, k: int) -> int:
    """Leaves at which purity is measured."""
    return max(k, LEAVES.get(dataset, 20))
