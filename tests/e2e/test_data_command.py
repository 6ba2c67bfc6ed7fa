"""`treediffusion data` as a user types it, and training on a user's own pictures of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import SETTINGS
from treediffusion.cli import COMMANDS, main
from treediffusion.cli_data import Data
from treediffusion.config import parse_config
from treediffusion.data import RECIPES


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEDIFFUSION_CACHE", str(tmp_path / "packed"))
    monkeypatch.setenv("TREEDIFFUSION_DATA", str(tmp_path / "originals"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(COMMANDS, "data", Data)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 oblong pictures of two classes, and one that is damaged."""
    random = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "photos" / ("left", "right")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((12 + number % 3, 20), np.uint8)
        place = 4 + 8 * (number % 2)
        pixels[:, place : place + 4] = random.integers(150, 255)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (tmp_path / "photos" / "left" / "bad.png").write_bytes(b"damaged")
    return tmp_path / "photos"


def test_without_a_name_all_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    for recipe in RECIPES.values():
        assert recipe.name in said
    assert "162,770" in said


def test_a_set_is_described_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "look" / "sheet.png"
    assert main(["data", "digits", "--sheet", str(sheet)]) == 0
    said = capsys.readouterr()
    for part in ("1,797", "8x8", "Alpaydin", "CC BY 4.0", "10: 0 (178)", str(sheet)):
        assert part in said.out
    assert said.err == ""
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 9 - 1, 8 * 9 - 1)


def test_unusable_files_are_listed_and_the_code_says_so(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", str(photos)]) == 1
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert any(line.startswith("unusable: ") and "bad.png" in line for line in lines)
    assert any(line.startswith("note: ") and "--image-size" in line for line in lines)
    assert "20x12 (8)" in said
    assert main(["data", str(photos), "--skip-corrupt", "--image-size", "8"]) == 0
    assert "8x8" in capsys.readouterr().out


MISTAKES = {
    "no such path": (["absent"], "absent"),
    "misspelt name": (["fashion-mnist"], "did you mean 'fashion_mnist'?"),
    "no such part": (["photos", "--split", "test"], "'test'"),
    "no originals": (["cubicc:photos"], "CUB_200_2011.tgz"),
    "no size": (["photos", "--image-size", "x"], "--image-size"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(
    case: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    monkeypatch.chdir(photos.parent)
    arguments, named = MISTAKES[case]
    assert main(["data", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert named in said.err


def test_training_on_pictures_of_any_size_says_what_it_needs_until_it_has_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yaml"
    config = parse_config(SETTINGS | {"data": str(photos)}, source="the test")
    settings.write_text(config.model_dump_json())
    command = ["train", "--config", str(settings), "--out", str(tmp_path / "run")]
    command += ["--stage", "tree"]
    assert main(command) == 2
    assert "--image-size" in capsys.readouterr().err
    command += ["--image-size", "8"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "bad.png" in said
    assert "--skip-corrupt" in said
    assert main([*command, "--skip-corrupt"]) == 0
    assert "1 of 25 pictures left out" in capsys.readouterr().err
