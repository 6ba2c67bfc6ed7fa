"""The commands as a user types them: the whole way once, and every mistake's one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import bars_config
from treediffusion.bundle import Bundle
from treediffusion.cli import COMMANDS, export_main, main
from treediffusion.data import load_images
from treediffusion.topology import TreeTopology


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    path = folder / "settings.yaml"
    path.write_text(bars_config(folder).model_dump_json())
    return path


@pytest.fixture(scope="module")
def run(settings: Path) -> Path:
    out = settings.parent / "run"
    assert main(["train", "--config", str(settings), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    out = run / "bundle"
    assert export_main(["--checkpoint", str(run), "--out", str(out)]) == 0
    return out


def test_images_of_one_leaf_repeat_by_seed_and_number(bundle: Path, tmp_path: Path) -> None:
    leaf = TreeTopology.from_json((bundle / "tree.json").read_text()).leaf_names[0]
    common = ["generate", "--bundle", str(bundle), "--leaf", leaf, "--seed", "3"]
    steps = ["--num-inference-steps", "5"]
    assert main([*common, *steps, "--num-images", "4", "--out", str(tmp_path / "four")]) == 0
    assert (
        main([*common, *steps, "--num-images", "1", "--offset", "2", "--out", str(tmp_path)]) == 0
    )
    name = f"seed3-00002-{leaf}.png"
    one, among = (np.asarray(Image.open(p / name)) for p in (tmp_path, tmp_path / "four"))
    assert one.shape == (8, 8)
    assert np.array_equal(one, among)
    assert len(list((tmp_path / "four").glob("seed3-*.png"))) == 4


def test_tree_is_printed_drawn_and_measured(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.load(bundle.parents[1] / "bars.npy"), np.arange(160) % 4
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels, allow_pickle=False)
    drawn = ["--data", str(tmp_path / "labelled.npz"), "--out", str(tmp_path / "look")]
    assert main(["tree", "--bundle", str(bundle), *drawn]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("r ")
    assert "acc" in printed
    metrics = json.loads((tmp_path / "look" / "metrics.json").read_text())
    assert 0.25 <= metrics["clustering"]["acc"] <= 1
    assert sum(metrics["leaves"].values()) == pytest.approx(1, abs=1e-3)
    for name in ("tree", "sheet", "gallery", "samples"):
        width, height = Image.open(tmp_path / "look" / f"{name}.png").size
        assert min(width, height) > 100


def test_the_tree_first_and_the_rest_later_in_calls_of_limited_time(
    settings: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels with gaps are measured; no call fails; the end is that of one call."""
    labels = np.array([3, 40, 41, 7])[np.arange(160) % 4]
    images = np.load(settings.parent / "bars.npy")
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels, allow_pickle=False)
    out = tmp_path / "run"
    command = ["train", "--config", str(settings), "--data", str(tmp_path / "labelled.npz")]
    command += ["--out", str(out)]

    assert main([*command, "--stage", "diffusion"]) == 2
    assert "no tree" in capsys.readouterr().err
    assert not out.exists()

    assert main([*command, "--stage", "tree", "--max-minutes", "1e-9"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(
        r".*: time is up, \d+ % done \(tree of 2 leaves, initial 1/8\), about \d+:\d+ left; "
        r"the same command continues\n",
        said.out,
    )
    assert main([*command, "--stage", "tree"]) == 0
    said = capsys.readouterr()
    assert "leaves, trained" in said.out
    assert "after initial: 2 leaves with" in said.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0.25 <= metrics["clustering"]["acc"] <= 1
    assert min(Image.open(out / "preview.png").size) > 100
    tree = (out / "tree.json").read_text()
    assert tree == (run / "tree.json").read_text()
    assert not (out / "diffusion.safetensors").exists()
    assert main(["export", "--checkpoint", str(out), "--out", str(tmp_path / "b")]) == 2
    assert "step 0" in capsys.readouterr().err

    assert main([*command, "--stage", "diffusion", "--max-minutes", "1e-9"]) == 0
    assert "diffusion, step 1/30" in capsys.readouterr().out
    assert main([*command, "--stage", "diffusion"]) == 0
    assert "next: treediffusion-export" in capsys.readouterr().out
    assert (out / "tree.json").read_text() == tree
    histories = [json.loads((folder / "training.json").read_text()) for folder in (out, run)]
    assert histories[0] == histories[1]


MISTAKES = {
    "no such command": (["foo"], "demo, data, train, generate"),
    "unknown option": (["train", "--tree.max-leave", "3"], "--tree.max-leave"),
    "not a number": (["train", "--tree.max-leaves", "x"], "invalid literal"),
    "out of range": (["train", "--tree.max-leaves", "70"], "at most 32"),
    "unknown preset": (["train", "--preset", "x"], "tiny"),
    "no such settings": (["train", "--config", "absent.yaml"], "absent.yaml"),
    "no such images": (["train", "--data", "absent"], "absent"),
    "missing option": (["generate"], "--bundle"),
    "no such bundle": (["generate", "--bundle", "absent"], "absent"),
    "no such stage": (["train", "--stage", "leaves"], "leaves"),
    "no trees": (["train", "--seeds", "0"], "tree.restarts"),
    "no time": (["train", "--max-minutes", "0"], "more than 0"),
    "no such run": (["export", "--checkpoint", "absent", "--out", "b"], "absent"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, named = MISTAKES[case]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert named in said.err
    assert "expected" in said.err


@pytest.mark.parametrize("option", ["--node", "--leaf"])
def test_a_node_that_is_not_in_the_tree(
    option: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--bundle", str(bundle), option, "r0101010", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "r0101010" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("leaf", "columns"), [("most_probable", 2), ("all", None)])
def test_images_are_drawn_again_beside_what_was_given(
    leaf: str, columns: int | None, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each image, the given one first and as it is."""
    out = tmp_path / "again.png"
    command = ["reconstruct", "--bundle", str(bundle), "--data", "digits", "--num-images", "2"]
    assert main([*command, "--leaf", leaf, "--num-inference-steps", "2", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    leaves = Bundle.open(bundle).topology.num_leaves
    assert sheet.shape == (2 * 9 - 1, (columns or 1 + leaves) * 9 - 1)
    assert np.array_equal(sheet[:8, :8], load_images("digits").images[0, 0])
    assert str(out) in capsys.readouterr().out


def test_the_way_between_two_leaves(bundle: Path, tmp_path: Path) -> None:
    names = Bundle.open(bundle).topology.leaf_names
    out = tmp_path / "way.png"
    command = ["interpolate", "--bundle", str(bundle), "--start", names[0], "--frames", "3"]
    more = ["--num-images", "2", "--solver", "heun", "--num-inference-steps", "2"]
    assert main([*command, "--end", names[-1], *more, "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 9 - 1, 2 * 9 - 1)
    assert main([*command, "--end", "r", "--out", str(out)]) == 2


def test_no_images_to_draw_again_is_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reconstruct", "--bundle", str(bundle), "--data", "digits", "--num-images", "-1"]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 2
    assert "--num-images: got -1, expected at least 1" in capsys.readouterr().err


def test_the_package_is_a_command() -> None:
    """As torchrun starts it."""
    command = [sys.executable, "-m", "treediffusion", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: treediffusion COMMAND")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_there_and_quick(command: str) -> None:
    """Half a second of processor time: no torch, no matplotlib."""
    code = (
        "import sys, time; from treediffusion.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "print('processor', time.process_time())"
    )
    arguments = [command, "--help"] if command else ["--help"]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - start < 10
    assert "usage" in done.stdout
    assert float(done.stdout.split()[-1]) < 1.0  # 0.3 on a quiet core


def test_vectors_are_not_drawn_and_that_is_said_at_once(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the tree's hours; the tree alone can be trained."""
    np.save(tmp_path / "words.npy", np.random.default_rng(0).random((40, 12), np.float32))
    command = ["train", "--config", str(settings), "--data", str(tmp_path / "words.npy")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "vectors of 12 numbers" in said
    assert "--stage tree" in said


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """As `treediffusion evaluate --help | head -1`."""
    command = [sys.executable, "-m", "treediffusion", "evaluate", "--help"]
    ended = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ended.stdout is not None
    assert ended.stderr is not None
    ended.stdout.close()
    said = ended.stderr.read()
    assert (ended.wait(60), said) == (141, "")
