"""Published tables again: figures as printed, cells that survive a kill, verdicts, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_stage import small_config
from treediffusion.cli_judge import Reproduce
from treediffusion.config import Config, parse_config, preset_names
from treediffusion.errors import CheckpointError, ConfigError, DataError
from treediffusion.evaluate import (
    published,
    reproduce,
    reproduce_cells,
    reproduce_fid,
    reproduce_models,
)
from treediffusion.evaluate.published import Figure, published_rows, table_metrics, table_names
from treediffusion.evaluate.reproduce import Order, Outcome
from treediffusion.evaluate.reproduce_baseline import baseline
from treediffusion.evaluate.reproduce_tables import (
    CNN,
    MLP,
    SIGNALS,
    TABLES,
    TITLES,
    find_table,
    leaves_for,
    settings_for,
)
from treediffusion.evaluate.seeds import best_seed, over_seeds
from treediffusion.train.budget import OutOfTime, TrainingProgress

TREE: dict[str, Any] = {
    "latent_channels": 2, "latent_size": 1, "channels": 8, "levels": 3, "max_leaves": 3,
    "batch_size": 16, "learning_rate": 5e-3, "min_share": 0.0,
    "phases": {"initial": 2, "subtree": 1, "intermediate": 1, "final": 1},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "preset": "small",
    "tree": TREE,
    "diffusion": small_config(steps=4).model_dump(),
    "sampling": {"num_inference_steps": 3},
}
FLAT = ("ward", "k_means")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of seconds in the place of every preset's."""
    config = parse_config(SMALL, source="the test")
    monkeypatch.setattr(reproduce, "settings_for", lambda *_: config)
    monkeypatch.setattr(reproduce_models, "CLASSIFIER_EPOCHS", 1)
    return config


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three classes of 8x8 pixels, in a train and a test part."""
    numbers = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = numbers.permutation(np.arange(count) % 3)
        images = numbers.integers(0, 30, (count, 1, 8, 8)).astype(np.uint8)
        for label, image in zip(labels, images, strict=True):
            image[0, 3 * label : 3 * label + 2] += 200
        return images, labels

    train, test = part(48), part(30)
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, train_images=train[0], train_labels=train[1], test_images=test[0],
             test_labels=test[1])  # fmt: skip
    return str(path)


def order(out: Path, data: str, table: str = "treevae-table1", **given: Any) -> Order:
    common: dict[str, Any] = {"seeds": 1, "images": 6, "samples": 2, "leaves": 4, "quiet": True}
    return Order(table, "bars", data=data, out=out, **(common | given))


def cells(out: Path) -> dict[str, dict[str, float]]:
    found = sorted((out / "cells").glob("*.json"))
    return {path.name: json.loads(path.read_text("utf-8"))["scores"] for path in found}


class Short(TrainingProgress):
    """Time for so many steps, the last of which is interrupted as a kill would do."""

    steps, killed = 5, False

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords | {"quiet": True, "minutes": None})
        self.made = 0

    def advance(self, amount: float, description: str) -> None:
        super().advance(amount, description)
        self.made += amount > 0
        if self.made >= self.steps:
            raise KeyboardInterrupt if self.killed else OutOfTime(description, 0.5, None)


# Figures


def test_the_ward_row_of_mnist_as_printed() -> None:
    row = published_rows("treevae-table1", "mnist")["ward"]
    printed = {"dendrogram_purity": 63.7, "leaf_purity": 78.6, "acc": 69.5, "nmi": 71.1}
    assert {metric: figure.value for metric, figure in row.items()} == printed
    assert {figure.low for figure in row.values()} == {value - 2 for value in printed.values()}


def test_a_band_is_two_deviations_or_the_tolerance() -> None:
    row = published_rows("treevae-table1", "mnist")["treevae"]
    assert (row["acc"].low, row["acc"].high) == pytest.approx((90.2 - 15, 90.2 + 15))
    assert (row["leaf_purity"].low, row["leaf_purity"].high) == pytest.approx((92.2, 99.8))
    elbo = published_rows("treevae-table2", "mnist")["vae"]["elbo"]
    assert (elbo.low, elbo.high) == pytest.approx((-104.6 * 1.02, -104.6 * 0.98))


def test_a_metric_that_a_row_has_not_is_absent() -> None:
    assert set(published_rows("table1", "celeba64")["treevae"]) == {
        "fid_reconstruction", "fid_generation"
    }  # fmt: skip
    assert published_rows("treevae-table1", "a data set of one's own") == {}


def test_of_data_that_no_paper_has_the_figures_are_our_own() -> None:
    row = published_rows("table1", "digits")["treevae"]
    assert set(row) == {"acc", "nmi"}
    assert row["acc"].source == published.OURS
    assert (row["acc"].low, row["acc"].high) == pytest.approx((75 - 3 * 7.4, 75 + 3 * 7.4))


@pytest.mark.parametrize("table", table_names())
def test_every_published_row_belongs_to_its_table(table: str) -> None:
    known = published._document()["tables"][table]
    for dataset, rows in known["rows"].items():
        assert dataset in TABLES[table].presets
        assert set(rows) <= set(TABLES[table].methods)
        for values in rows.values():
            assert len(values) == len(known["metrics"])
    assert set(known["tolerance"]) == set(table_metrics(table))


def test_tables_and_figures_name_the_same_things() -> None:
    assert list(TABLES) == table_names()
    assert set((CNN | MLP).values()) <= set(preset_names())
    assert {method for table in TABLES.values() for method in table.methods} <= set(TITLES)


def test_every_denoiser_of_the_ablation_is_another() -> None:
    told = {tuple(sorted(settings.items())) for settings in SIGNALS.values()}
    assert len(told) == len(SIGNALS) == 7


@pytest.mark.parametrize(("found", "verdict"), [(7.9, "below"), (8, "inside"), (12.5, "above")])
def test_verdicts(found: float, verdict: str) -> None:
    assert Figure(10, None, 8, 12, "a table").verdict(found) == verdict


def test_protocol_numbers() -> None:
    assert leaves_for("mnist", 10) == 20
    assert leaves_for("newsgroups20", 20) == 30
    assert leaves_for("mine", 25) == 25
    assert settings_for(TABLES["table1"], "digits", None).tree.restarts == 1
    assert settings_for(TABLES["table1"], "mine", "mnist-quick").preset == "mnist-quick"


# Seeds


def test_a_spread_is_numpys() -> None:
    values = [0.2, 0.5, 0.9, 0.4]
    found = over_seeds([{"acc": value} for value in values])["acc"]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.count, found.low, found.high) == (4, 0.2, 0.9)


def test_one_seed_has_no_deviation_and_missing_scores_do_not_count() -> None:
    found = over_seeds([{"acc": 0.5, "nmi": None}, {"nmi": 0.25}])
    assert found["acc"].count == found["nmi"].count == 1
    assert found["acc"].deviation is None
    assert found["nmi"].mean == 0.25


def test_the_best_seed_is_chosen_without_labels() -> None:
    assert best_seed([{"acc": 1, "elbo": -9}, {"acc": 0, "elbo": -5}, {"elbo": -5}]) == 1
    assert best_seed([{"acc": 1}]) is None


def test_scores_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match="acc"):
        over_seeds([{"acc": float("nan")}])
    with pytest.raises(DataError, match="seeds"):
        over_seeds([])


# Cells


@pytest.mark.usefixtures("small")
def test_a_table_of_flat_methods(tmp_path: Path, pack: str) -> None:
    outcome = reproduce.reproduce(order(tmp_path, pack, methods=FLAT, seeds=2))
    ward, means = outcome.lines
    assert ward.scores["acc"].mean == ward.scores["dendrogram_purity"].mean == 1
    assert "dendrogram_purity" not in means.scores
    assert ward.seeds == means.seeds == (0, 1)
    assert outcome.outside == []
    text = (outcome.folder / "result.md").read_text("utf-8")
    assert "| Ward, ours; no published value | 2 | 100.0 ± 0.0 |" in text
    assert "2 of 7 rows. No figure is known to compare with" in text
    for part in ("## Protocol", "part test, images 30", "## Hardware", "threads", "minutes"):
        assert part in text
    document = json.loads((outcome.folder / "result.json").read_text("utf-8"))
    assert document["rows"][0]["published_as_printed"] == "no published value"
    assert document["complete"] is True


@pytest.mark.usefixtures("small")
def test_finished_cells_are_read_and_more_seeds_added(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce.reproduce(order(tmp_path, pack, methods=FLAT))
    before = cells(tmp_path)
    computed: list[int] = []
    real = reproduce.compute_cell

    def count(bench: Any, method: str, seed: int, scores: Any) -> dict[str, Any]:
        computed.append(seed)
        return real(bench, method, seed, scores)

    monkeypatch.setattr(reproduce, "compute_cell", count)
    reproduce.reproduce(order(tmp_path, pack, methods=FLAT, seeds=3))
    assert computed == [1, 1, 2, 2]
    assert before.items() <= cells(tmp_path).items()


@pytest.mark.parametrize("killed", [False, True], ids=["out of time", "killed"])
def test_a_stopped_table_ends_with_the_same_cells(
    killed: bool, tmp_path: Path, pack: str, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a model: what was trained is not trained again, or otherwise."""
    methods = ("treevae", "vae_ward", "deepect", "ward")
    straight = order(tmp_path / "straight", pack, methods=methods)
    reproduce.reproduce(straight)
    monkeypatch.setattr(reproduce, "TrainingProgress", Short)
    monkeypatch.setattr(Short, "killed", killed)
    # A kill leaves what the last checkpoint has; without one, a call would never get anywhere.
    monkeypatch.setattr("treediffusion.train.checkpoint.INTERVAL_S", -1.0)
    monkeypatch.setattr(Short, "steps", 5)
    stopped = order(tmp_path / "stopped", pack, methods=methods)
    stops = 0
    outcome: Outcome | None = None
    while outcome is None or outcome.stopped:
        stops += 1
        assert stops < 60
        try:
            outcome = reproduce.reproduce(stopped)
        except KeyboardInterrupt:
            outcome = None
    assert stops > 3
    assert cells(stopped.out) == cells(straight.out)


@pytest.mark.usefixtures("small")
def test_a_part_says_that_it_is_one(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "TrainingProgress", Short)
    outcome = reproduce.reproduce(order(tmp_path, pack, methods=("ward", "vae_ward"), seeds=2))
    assert outcome.stopped is not None
    assert [len(line.seeds) for line in outcome.lines] == [1, 0]
    text = (outcome.folder / "result.md").read_text("utf-8")
    assert "**PARTIAL: 1 of 4 cells.**" in text
    assert "| VAE + Ward, ours; no published value | none yet |" in text
    assert json.loads((outcome.folder / "result.json").read_text("utf-8"))["complete"] is False


@pytest.mark.usefixtures("small")
def test_other_settings_never_show_these_cells(tmp_path: Path, pack: str) -> None:
    for leaves in (4, 5):
        reproduce.reproduce(order(tmp_path, pack, methods=("ward",), leaves=leaves))
    assert len(cells(tmp_path)) == 2


@pytest.mark.usefixtures("small")
def test_a_cell_that_is_damaged_is_an_error(tmp_path: Path, pack: str) -> None:
    reproduce.reproduce(order(tmp_path, pack, methods=("ward",)))
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text('{"scores": {"acc": "good"}}', "utf-8")
    with pytest.raises(CheckpointError, match="remove the file"):
        reproduce.reproduce(order(tmp_path, pack, methods=("ward",)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("table1", {"treevae": {"acc", "nmi", "frechet_generation", "frechet_reconstruction"},
                    "ddim": {"frechet_generation"}}),
        ("table2", {"treediffusion": {"mean_entropy", "classifier_accuracy"}}),
        ("table3", {"path_reconstruction": {"frechet_generation", "frechet_reconstruction"}}),
        ("treevae-table2", {"vae": {"elbo", "log_likelihood", "published_log_likelihood"},
                            "treevae": {"elbo", "reconstruction"}}),
    ],
)  # fmt: skip
def test_every_kind_of_table(
    table: str, names: dict[str, set[str]], tmp_path: Path, pack: str
) -> None:
    outcome = reproduce.reproduce(order(tmp_path, pack, table, methods=tuple(names)))
    for line in outcome.lines:
        assert names[line.method] <= set(line.scores), line.method
    text = (outcome.folder / "result.md").read_text("utf-8")
    assert all(TITLES[name] in text for name in names)
    drawn = {name for name in outcome.lines[0].scores if f"]({name}.png)" in text}
    assert drawn == {path.stem for path in outcome.folder.glob("*.svg")}
    assert not any("likelihood" in name or name.endswith("floor") for name in drawn)
    # What only one row has compares nothing.
    assert bool(drawn) == (len(outcome.lines) > 1)
    for name in drawn:
        assert Image.open(outcome.folder / f"{name}.png").size[0] >= 800


@pytest.mark.usefixtures("small")
def test_tables_share_their_models(tmp_path: Path, pack: str) -> None:
    reproduce.reproduce(order(tmp_path, pack, "treevae-table2", methods=("treevae",)))
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/*.safetensors")}
    reproduce.reproduce(order(tmp_path, pack, "table1", methods=("treevae",)))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/tree.safetensors")}
    assert after == models


# Exit codes


def run(out: Path, pack: str, **given: Any) -> int:
    return Reproduce("treevae-table1", "bars", data=pack, seeds=1, methods=("ward",), out=out,
                     leaves=4, **given).run()  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("value", "code"), [(99.0, 0), (90.0, 3), (101.9, 0), (110.0, 3)])
def test_exit_code_3_outside_the_band(
    value: float, code: int, tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Ward is exact here, 100 %; the band is 2 points to either side."""
    figure = Figure(value, None, value - 2, value + 2, "a table")
    monkeypatch.setattr(reproduce, "published_rows", lambda *_: {"ward": {"acc": figure}})
    assert run(tmp_path, pack) == code
    said = capsys.readouterr().out
    assert ("Outside the band: ward acc" in said) == (code == 3)
    assert re.search(r"Ward, ACC %: [\d.]+ to [\d.]+ \((inside|above|below); a table\)", said)


@pytest.mark.usefixtures("small")
def test_a_part_is_not_judged(tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two seeds one is there, and it lies outside: nothing is said of it yet."""
    figure = Figure(10, None, 8, 12, "a table")
    monkeypatch.setattr(reproduce, "published_rows", lambda *_: {"vae_ward": {"acc": figure}})
    reproduce.reproduce(order(tmp_path, pack, methods=("vae_ward",)))
    monkeypatch.setattr(reproduce, "TrainingProgress", Short)
    outcome = reproduce.reproduce(order(tmp_path, pack, methods=("vae_ward",), seeds=2))
    assert outcome.lines[0].seeds == (0,)
    assert outcome.outside == []


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_table("table9"), "one of table1"),
        (lambda: published_rows("table9", "mnist"), "one of table1"),
        (lambda: settings_for(TABLES["table1"], "mine", None), "name a --preset"),
        (lambda: settings_for(TABLES["table1"], "mnist", "nope"), "preset"),
    ],
)
def test_names_that_are_not_there(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ("wards",)}, "rows of treevae-table1"),
        ({"seeds": 0}, "--seeds"),
        ({"images": 1}, "--images"),
        ({"samples": 0}, "--samples"),
        ({"leaves": 31, "methods": ("ward",)}, "leaves"),
    ],
)
def test_orders_that_cannot_be(
    given: dict[str, Any], message: str, tmp_path: Path, pack: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reproduce.reproduce(order(tmp_path, pack, **given))


@pytest.mark.usefixtures("small")
def test_clusters_are_compared_with_labels_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, images=np.zeros((20, 1, 8, 8), np.uint8))
    with pytest.raises(DataError, match="without labels"):
        reproduce.reproduce(order(tmp_path, str(path), methods=("ward",)))


# One baseline


def test_a_baseline_over_seeds(tmp_path: Path, pack: str) -> None:
    told = baseline("k_means", pack, preset="tiny", seeds=2, out=tmp_path, leaves=4, quiet=True)
    assert "k_means on bars.npz, 2 of 2 seeds" in told
    assert re.search(r"ACC %\s+100\.0 ± 0\.0", told)
    found = json.loads((tmp_path / "bars.npz-k_means.json").read_text("utf-8"))
    assert found["complete"] is True
    assert found["scores"]["acc"]["count"] == 2


def test_a_baseline_of_ones_own_pictures_of_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test part that is bad is an error: the training images never stand in for it."""
    for number in range(24):
        part, kind = ("train", "test")[number % 2], ("left", "right")[number // 2 % 2]
        folder = tmp_path / "photos" / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10 + number % 3, 12), 200 * (kind == "left"), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "photos" / "test" / "left" / "bad.png").write_bytes(b"damaged")
    given: dict[str, Any] = {"preset": "tiny", "seeds": 1, "out": tmp_path, "leaves": 2}
    data = str(tmp_path / "photos")
    with pytest.raises(DataError, match="--image-size"):
        baseline("ward", data, quiet=True, **given)
    with pytest.raises(DataError, match=r"bad\.png"):
        baseline("ward", data, quiet=True, image_size=8, **given)
    said = baseline("ward", data, quiet=True, image_size=8, skip_corrupt=True, **given)
    assert "ACC %                100.0" in said
    assert "1 of 13 pictures left out" in capsys.readouterr().err


def test_a_baseline_that_there_is_not(tmp_path: Path, pack: str) -> None:
    with pytest.raises(ConfigError, match="one of ward"):
        baseline("wards", pack, preset="tiny", seeds=1, out=tmp_path)
    with pytest.raises(ConfigError, match="--seeds"):
        baseline("ward", pack, preset="tiny", seeds=0, out=tmp_path)


# Distances


@pytest.mark.usefixtures("small")
def test_fid_is_measured_where_its_weights_are_and_is_another_cell(
    tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Means:
        """Features that need no weights: mean and deviation of an image."""

        name, key, width, device = "inception", "means", 2, torch.device("cpu")

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def extract(self, pixels: torch.Tensor) -> torch.Tensor:
            flat = pixels.flatten(1).float()
            return torch.stack([flat.mean(1), flat.std(1)], dim=1)

    given = order(tmp_path, pack, "table1", methods=("treevae",))
    first = reproduce.reproduce(given).lines[0]
    assert not any(name.startswith("fid") for name in first.scores)
    monkeypatch.setattr(reproduce_fid, "Inception", Means)
    monkeypatch.setattr(reproduce_fid, "weights_at_hand", lambda: tmp_path)
    monkeypatch.setattr(reproduce_cells, "weights_at_hand", lambda: tmp_path)
    second = reproduce.reproduce(given).lines[0]
    assert {"fid_generation", "fid_reconstruction", "fid_floor"} <= set(second.scores)
    assert second.scores["frechet_generation"] == first.scores["frechet_generation"]
    assert len(cells(tmp_path)) == 2


@pytest.mark.usefixtures("small")
def test_without_labels_and_weights_there_is_no_distance(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (20, 1, 8, 8), np.uint8))
    with pytest.raises(DataError, match="features to measure"):
        reproduce.reproduce(order(tmp_path, str(path), "table1", methods=("treevae",)))
