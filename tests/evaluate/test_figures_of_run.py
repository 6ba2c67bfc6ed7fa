"""The command that draws a run: what the folder allows is drawn, and the rest has a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.models import IRREGULAR, tiny_bundle, tiny_model
from treediffusion.cli_figures import Figures
from treediffusion.errors import CheckpointError, DataError, ShapeError
from treediffusion.evaluate.figures import of_run, run_content
from treediffusion.evaluate.figures.of_run import FIGURES, Wanted, draw_run
from treediffusion.train import checkpoint
from treediffusion.train.run import CONFIG, HISTORY, TREE

NEEDS_A_BUNDLE = {"sheet", "gallery", "samples", "reconstructions"}
GIVEN = {"attributes", "words", "generated-classes"}
PHASE = {
    "phase": "initial", "leaf": None, "leaves": 2, "reconstruction": 9.0, "kl_root": 1.0,
    "kl_nodes": 2.0, "kl_decisions": 0.1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished tree of the digits, with what training leaves behind, and no bundle."""
    model = tiny_model()
    settings = json.loads(model.config.model_dump_json()) | {"data": "digits"}
    claim = {"config": settings, "data_fingerprint": "0", "image_shape": [1, 8, 8]}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(claim), "utf-8")
    history = {"tree": [PHASE], "diffusion": [{"step": 10, "loss": 0.5}]}
    (folder / HISTORY).write_text(json.dumps(history), "utf-8")
    tensors = {f"model.tree.{name}": each for name, each in model.tree.state_dict().items()}
    state = {"topology": list(IRREGULAR.names), "phase": {"kind": "done"}}
    checkpoint.save(folder / TREE, tensors, state)
    return folder


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_run, "ROOTS", 1)
    monkeypatch.setattr(of_run, "SAMPLES", 3)
    monkeypatch.setattr(of_run, "REBUILT", 3)
    monkeypatch.setattr(run_content, "GALLERY", 4)
    monkeypatch.setattr(run_content, "MOST_IMAGES", 60)


def test_without_a_bundle_the_tree_is_drawn_with_real_images_and_the_rest_says_why(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Figures(run, out=tmp_path / "out").run() == 0
    said = capsys.readouterr().out
    names = {file.stem for file in (tmp_path / "out").iterdir()}
    assert names == set(FIGURES) - NEEDS_A_BUNDLE - GIVEN
    for name in names:
        assert (tmp_path / "out" / f"{name}.svg").is_file()
        assert Image.open(tmp_path / "out" / f"{name}.png").size[0] >= 800
    for name in NEEDS_A_BUNDLE | GIVEN:
        (line,) = (line for line in said.splitlines() if line.split()[0] == name)
        assert "left out: " in line
    assert f"treediffusion-export --checkpoint {run} --out {run / 'bundle'}" in said
    assert "the run is of images, not of texts" in said


def test_the_card_shows_the_figures_of_the_runs_own_folder(run: Path) -> None:
    (run / "tree.json").write_text(IRREGULAR.to_json(), "utf-8")
    assert Figures(run).run() == 0
    assert "![The tree](figures/tree.png)" in (run / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_with_a_bundle_a_judge_and_attributes_everything_but_words_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    (run / "bundle").symlink_to(tiny_bundle())
    quality = {
        "leaf_names": list(IRREGULAR.leaf_names),
        "classes": list(range(10)),
        "leaves": {"histogram": np.eye(IRREGULAR.num_leaves, 10, dtype=int).tolist()},
    }
    (run / "quality.json").write_text(json.dumps(quality), "utf-8")
    attributes = tmp_path / "attributes.npz"
    np.savez(attributes, attributes=np.ones((1797, 2)), attribute_names=np.array(["one", "two"]))
    first = draw_run(Wanted(run, attributes=attributes), tmp_path / "a", quiet=True)
    assert set(first.left_out) == {"words"}
    assert set(first.files) == set(FIGURES) - {"words"}
    again = draw_run(Wanted(run, attributes=attributes), tmp_path / "b", quiet=True)
    for name, files in first.files.items():
        for one, other in zip(files, again.files[name], strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name
    quality["leaf_names"] = ["r0", "r1"]
    (run / "quality.json").write_text(json.dumps(quality), "utf-8")
    other_tree = draw_run(Wanted(run), tmp_path / "c", quiet=True).left_out["generated-classes"]
    assert "of another tree" in other_tree


def test_vectors_have_words_and_no_pictures(run: Path, tmp_path: Path) -> None:
    """A run of vectors: the same tree, fed with images that are told to be none."""
    content = run_content.RunContent(Wanted(run))
    content.image_shape = (2000, 1, 1)
    with pytest.raises(run_content.LeftOut, match="vectors, not of images"):
        _ = content.pixels
    content.image_shape = (1, 8, 8)
    assert content.pixels.shape[1:] == (1, 8, 8)
    content.wanted.words = tmp_path / "words.txt"
    content.wanted.words.write_text("\n".join(f"word{k}" for k in range(64)), "utf-8")
    with pytest.raises(run_content.LeftOut, match="of images, not of texts"):
        FIGURES["words"](content)
    content.__dict__["leaf"] = np.arange(1797) % IRREGULAR.num_leaves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_content.RunContent, "has_images", False)
        figure = FIGURES["words"](content)
        content.wanted.words.write_text("too\nfew", "utf-8")
        with pytest.raises(ShapeError, match="words: got 2 names, expected 64"):
            FIGURES["words"](content)
        content.wanted.words.unlink()
        with pytest.raises(DataError, match=r"words\.txt"):
            FIGURES["words"](content)
    assert any("word" in text.get_text() for text in figure.axes[0].texts)


def test_a_tree_that_still_grows_leaves_the_history_alone(run: Path, tmp_path: Path) -> None:
    tensors, state = checkpoint.load(run / TREE)
    checkpoint.save(run / TREE, tensors, state | {"phase": {"kind": "subtree"}})
    drawn = draw_run(Wanted(run), tmp_path / "out", quiet=True)
    assert set(drawn.files) == {"history"}
    assert "not finished" in drawn.left_out["tree"]
    (run / HISTORY).unlink()
    assert Figures(run, out=tmp_path / "none").run() == 1


def test_images_of_another_shape_or_out_of_reach_are_a_reason(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((9, 9, 9), np.uint8))
    drawn = draw_run(Wanted(run, data=str(tmp_path / "large.npy")), tmp_path / "out", quiet=True)
    assert "where the run has [1, 8, 8]" in drawn.left_out["tree"]
    drawn = draw_run(Wanted(run, data="nowhere"), tmp_path / "out", quiet=True)
    assert "name them with --data" in drawn.left_out["classes"]


def test_what_is_wrong_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="settings of a run"):
        draw_run(Wanted(tmp_path), tmp_path / "out")
    file = tmp_path / "attributes.npz"
    np.savez(file, attributes=np.ones((5, 2)), attribute_names=np.array(["one", "two"]))
    with pytest.raises(DataError, match="got 5 rows, expected 1797"):
        draw_run(Wanted(run, attributes=file), tmp_path / "out", quiet=True)
    np.savez(file, attributes=np.ones((1797, 2)))
    with pytest.raises(DataError, match="attribute_names"):
        draw_run(Wanted(run, attributes=file), tmp_path / "out", quiet=True)
