"""The commands that judge: images before a classifier, baselines, published tables again.

Parsing and mistakes are the business of `cli`; a figure outside its band is exit code 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .cli_draw import AsFlags, Drawing

if TYPE_CHECKING:
    from .data import ImageSet
    from .evaluate.fid_inception import Inception
    from .runtime import Engine

EXIT_CHECK = 3


@dataclass
class Evaluate:
    """Let a classifier judge a bundle's images: classes by leaf, entropy, diversity, distance."""

    bundle: Path
    """An exported bundle."""
    data: str
    """Labelled images: the classifier learns from the training part, and the generated images are
    compared with the test part."""
    out: Path = Path("quality")
    """Folder for quality.json, classes.png and the classifier, which is read again if it fits."""
    num_images: int = 1000
    """Images to draw, and to compare with as many."""
    epochs: int = 10
    """Of the classifier."""
    architecture: Literal["resnet18", "resnet50"] = "resnet18"
    """Of the classifier: with a stem for small images, or with the published layers and stem."""
    train_classifier: bool = True
    """Train it where the folder has none; told not to, the folder has to have it."""
    seed: int = 0
    """Of the images and of the classifier."""
    protocol: Literal["paper", "standard"] | None = None
    """Also FID, KID, precision and recall, of as many images and against the part that the papers
    have (10,000, test) or the field (50,000, training)."""
    inception: Path | None = None
    """The weights of torch-fidelity's Inception, for --protocol."""
    drawing: AsFlags = field(default_factory=Drawing)

    def run(self) -> int:
        """Judges, and prints the scores."""
        from .data import load_like
        from .evaluate.card import write_card
        from .evaluate.judge import judge
        from .runtime import Engine

        if not self.train_classifier:
            self._require_classifier()
        # Before minutes of judging: its weights may not be at hand.
        extractor = None if self.protocol is None else self._inception()
        with Engine.load(self.bundle) as engine:
            settings = engine.manifest["config"]
            parts = [load_like(settings, self.data, split=split) for split in ("train", "test")]
            found = judge(
                engine, parts[0], parts[1], self.out, num_images=self.num_images,
                seed=self.seed, epochs=self.epochs, architecture=self.architecture,
                sampling=self.drawing.options,
            ).scores  # fmt: skip
            if extractor is not None:
                self._measure(engine, parts, extractor)
        if (self.out / "config.json").is_file():
            write_card(self.out)
        distance, leaves = found["frechet_in_classifier_features"], found["leaves"]
        rows = {
            "classifier's accuracy on the test part": found["classifier"]["test_accuracy"],
            "distance in its features (no FID)": distance["generated"],
            "the same of as many test images": distance["as_many_test_images"],
            "mean entropy of a leaf, nats": leaves["mean_entropy"],
            "entropy of all leaves together": leaves["pooled_entropy"],
            "diversity in a leaf (real images: 1)": leaves["mean_diversity"],
            "images that return to their leaf": leaves["mean_agreement"],
        }
        for name, value in rows.items():
            print(f"{name:40} " + ("unknown" if value is None else f"{value:.3f}"))
        if leaves["collapsed"]:
            names = ", ".join(found["leaf_names"][leaf] for leaf in leaves["collapsed"])
            print(f"leaves that draw hardly more than one image: {names}")
        print(f"quality.json and classes.png in {self.out}")
        return 0

    def _require_classifier(self) -> None:
        from .errors import CheckpointError
        from .evaluate.judge import CLASSIFIER

        if not (self.out / CLASSIFIER).is_file():
            raise CheckpointError(
                str(self.out / CLASSIFIER), got="no such file",
                expected="a classifier that is trained",
                hint="leave --no-train-classifier out, or name its folder with --out",
            )  # fmt: skip

    def _inception(self) -> Inception:
        from .evaluate.fid_inception import Inception

        return Inception(self.inception)

    def _measure(self, engine: Engine, parts: list[ImageSet], extractor: Inception) -> None:
        """Prints FID and its kin, under their keys."""
        from .evaluate.fid import PROTOCOLS, measure_bundle

        assert self.protocol is not None
        protocol = PROTOCOLS[self.protocol]
        found = measure_bundle(
            engine, parts[protocol.split == "test"], extractor, self.out,
            images=protocol.images, split=protocol.split, seed=self.seed,
            sampling=self.drawing.options,
        )  # fmt: skip
        for key, facts in found.items():
            print(f"{key:60} {facts['value']:.4f}")


@dataclass
class Baseline:
    """Train a baseline and score its clusters, likelihood or images; repeat it over seeds.

    Ward and k-means cluster pixels. VAE and LadderVAE have the encoder, decoder and budget of the
    preset's tree; vae_ward, ladder_ward and l2h cluster their latents. DeepECT grows a tree of
    centres. ddim is the preset's denoiser without a condition. Repeating the command continues.
    """

    name: Annotated[
        Literal[
            "ward", "k_means", "vae", "ladder_vae", "vae_ward", "ladder_ward", "deepect", "l2h",
            "ddim",
        ],
        tyro.conf.Positional,
    ]  # fmt: skip
    """Which one."""
    dataset: str
    """A named data set, or a path as for `train --data`."""
    preset: str = "tiny"
    """Whose encoder, denoiser and epochs."""
    seeds: int = 1
    """How many; the first is 0."""
    out: Path = Path("runs/baselines")
    """Folder of models and scores."""
    leaves: int | None = None
    """At which purity is measured; 20, or 30 for newsgroups20 and cifar100, if left out."""
    images: int = 1000
    """Drawn and compared, by ddim."""
    samples: int = 100
    """Of each image's likelihood, by vae and ladder_vae."""
    image_size: int | None = None
    """The side to scale images to; as they are, or as the data set says, if left out."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be used, and say so."""
    max_minutes: float | None = None
    """Stop after so many minutes, with exit code 0; the same command continues."""

    def run(self) -> int:
        """Computes what is missing, and prints the scores."""
        from .evaluate.reproduce_baseline import baseline

        print(baseline(
            self.name, self.dataset, preset=self.preset, seeds=self.seeds, out=self.out,
            leaves=self.leaves, images=self.images, samples=self.samples, minutes=self.max_minutes,
            image_size=self.image_size, skip_corrupt=self.skip_corrupt,
        ))  # fmt: skip
        return 0


@dataclass
class Reproduce:
    """Compute a published table again, and set it beside the paper's; exit code 3 outside the band.

    Writes result.md and result.json. Repeating the command continues; a call that runs out of time
    writes what there is, and says that it is a part.
    """

    table: Annotated[
        Literal["table1", "table2", "table3", "treevae-table1", "treevae-table2"],
        tyro.conf.Positional,
    ]
    """Of TreeDiffusion, or of TreeVAE."""
    dataset: str
    """Which rows: mnist, fashion_mnist, cifar10, .. as far as the table has them; or digits."""
    data: str | None = None
    """Where the images are, as for `train --data`; the name of the data set if left out."""
    preset: str | None = None
    """Of the models; the published recipe if left out."""
    seeds: int = 3
    """How many; the papers have 10."""
    methods: tuple[str, ...] = ()
    """Rows to compute; all if left out."""
    out: Path = Path("runs/reproduce")
    """Folder of everything; models are shared by the tables in it."""
    images: int | None = None
    """Drawn and compared; 10,000 or what there is to compare with if left out."""
    samples: int = 1000
    """Of each image's likelihood."""
    leaves: int | None = None
    """At which purity is measured; the published number if left out."""
    image_size: int | None = None
    """The side to scale images to; as they are, or as the data set says, if left out."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be used, and say so."""
    max_minutes: float | None = None
    """Stop after so many minutes; the same command continues."""

    def run(self) -> int:
        """Computes what is missing, and says where the table is."""
        from .evaluate.reproduce import Order, reproduce

        outcome = reproduce(Order(
            self.table, self.dataset, data=self.data, preset=self.preset, seeds=self.seeds,
            out=self.out, methods=self.methods, minutes=self.max_minutes, images=self.images,
            samples=self.samples, leaves=self.leaves, image_size=self.image_size,
            skip_corrupt=self.skip_corrupt,
        ))  # fmt: skip
        print((outcome.folder / "result.md").read_text("utf-8"))
        print(f"result.md and result.json in {outcome.folder}")
        return EXIT_CHECK if outcome.outside else 0
