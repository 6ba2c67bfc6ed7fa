"""Cards: everything that a run's folder says and nothing else, valid where cards are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.models import tiny_config
from treediffusion.data import RECIPES
from treediffusion.errors import CheckpointError
from treediffusion.evaluate.card import (
    FILE,
    KEEP,
    TASK,
    data_name,
    measurements,
    model_card,
    write_card,
)
from treediffusion.topology import TreeTopology

FINGERPRINT = "0123456789abcdef"
QUALITY = {
    "images": 300,
    "test_images_were_trained_on": False,
    "frechet_in_classifier_features": {"generated": 37.8, "as_many_test_images": 9.5},
    "leaves": {"mean_entropy": 1.01, "mean_agreement": 0.71},
}
FID = {
    "fid_inception_10k_test_ddim96_ema0.9999": {
        "value": 1.77, "generated": 10_000, "real": 10_000, "split": "test", "protocol": "paper",
        "rounding": "rounded half up", "sampler": "ddim", "steps": 96,
    }
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with settings alone."""
    settings = json.loads(tiny_config().model_dump_json()) | {"data": "digits"}
    claim = {"config": settings, "data_fingerprint": FINGERPRINT, "image_shape": [1, 8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(claim), "utf-8")
    return tmp_path


def put(run: Path, name: str, value: Any) -> None:
    (run / name).write_text(json.dumps(value), "utf-8")


def finished(run: Path) -> Path:
    (run / "tree.json").write_text(TreeTopology.initial().grow("r0").to_json(), "utf-8")
    put(run, "training.json", {"tree": [], "diffusion": [{"step": 1200, "loss": 0.1}]})
    put(run, "metrics.json", {"images": 1797, "clustering": {"acc": 0.78, "nmi": 0.76}})
    put(run, "quality.json", QUALITY)
    put(run, "fid.json", FID)
    (run / "tree.png").write_bytes(b"")
    return run


def front(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    facts: dict[str, Any] = yaml.safe_load(text)
    return facts


def test_a_fresh_run_says_what_it_will_be_and_measures_nothing(run: Path) -> None:
    card = model_card(run)
    assert "not grown yet" in card
    assert "Nothing has been measured" in card
    assert "model-index" not in front(card)
    assert FINGERPRINT in card


def test_a_finished_run_says_its_data_terms_settings_and_numbers_with_protocols(run: Path) -> None:
    card = model_card(finished(run))
    recipe = RECIPES["digits"]
    for words in (
        "3 leaves", "1,200 steps", "![The tree](tree.png)", recipe.terms, recipe.page,
        recipe.citation, "1x8x8 pixels", "`tiny`",
        "| accuracy of the clusters | 0.78 | 1,797 images", "protocol paper",
        "10,000 generated against 10,000", "rounded half up", "This is no FID",
    ):  # fmt: skip
        assert words in card, words
    assert card.count("| FID | 1.77 |") == 1


def test_settings_that_are_not_the_presets_are_named(run: Path) -> None:
    card = model_card(run)
    assert "`tree.max_leaves = 8`" in card
    assert "`diffusion.timesteps = 200`" in card
    assert "`seed" not in card


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    library = pytest.importorskip("huggingface_hub")
    card = library.ModelCard(model_card(finished(run)), ignore_metadata_errors=False)
    assert (card.data.library_name, card.data.pipeline_tag) == ("treediffusion", TASK)
    assert card.data.license is None
    results = {result.metric_type: result for result in card.data.eval_results}
    fid = results["fid_inception_10k_test_ddim96_ema0.9999"]
    assert (fid.metric_value, fid.dataset_name, fid.dataset_split) == (1.77, "digits", "test")
    assert results["acc"].dataset_split == "train"
    again = library.ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()


def test_only_published_sets_lead_to_the_hubs_copy(run: Path) -> None:
    claim = json.loads((run / "config.json").read_text("utf-8"))
    for data, expected in (
        ("mnist", ["ylecun/mnist"]), ("mnist:/somewhere", ["ylecun/mnist"]),
        ("/private/mnist", None), ("digits", None),
    ):  # fmt: skip
        claim["config"]["data"] = data
        put(run, "config.json", claim)
        assert front(model_card(run)).get("datasets") == expected
        assert "private" not in model_card(run)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/home/me/cats", "cats"), ("cats/", "cats"), (r"C:\me\cats", "cats"),
        ("x/faces.npz", "faces.npz"), ("./mnist", "mnist"), (".", "own"),
    ],
)  # fmt: skip
def test_own_images_are_named_without_their_path(data: str, name: str) -> None:
    assert data_name(data) == (name, None)


def test_a_card_is_written_again_around_the_users_words(run: Path) -> None:
    path = write_card(run)
    assert path == run / FILE
    first = path.read_text("utf-8")
    assert first.rstrip().endswith(KEEP)
    path.write_text(first + "\nWhat I learnt.\n", "utf-8")
    write_card(finished(run))
    second = path.read_text("utf-8")
    assert second.endswith(f"{KEEP}\n\nWhat I learnt.\n")
    assert "protocol paper" in second
    write_card(run)
    assert path.read_text("utf-8") == second


def test_a_readme_of_another_hand_stays(run: Path) -> None:
    (run / FILE).write_text("# Mine\n", "utf-8")
    assert write_card(run) is None
    assert (run / FILE).read_text("utf-8") == "# Mine\n"


def test_a_bar_in_a_cell_does_not_begin_another(run: Path) -> None:
    claim = json.loads((run / "config.json").read_text("utf-8"))
    claim["config"]["data"] = "a|b"
    put(run, "config.json", claim)
    assert r"`a\|b`" in model_card(run)


def test_damaged_measurements_are_left_out(run: Path) -> None:
    for name in ("metrics.json", "quality.json", "fid.json"):
        (run / name).write_text("{", "utf-8")
    assert list(measurements(run)) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="settings of a run"):
        write_card(tmp_path)
    put(tmp_path, "config.json", {"config": {}})
    with pytest.raises(CheckpointError, match="settings of a run"):
        write_card(tmp_path)
    assert not (tmp_path / FILE).exists()
