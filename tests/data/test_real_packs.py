"""The recipes on real data: packs are put back into the original layouts, and read from there.

    TREEDIFFUSION_TEST_PACKS=FOLDER pytest -s tests/data/test_real_packs.py

FOLDER holds `SHA256SUMS` and the packs that `bench/packs.py` describes, with `mnist` and
`fashion-mnist` as the original files, and `omniglot-small` as the authors' zips. What a pack is not
as published (see there), its test says. Minutes, and 2 GB of temporary files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.upstream import write_birds, write_celeba, write_cifar, write_omniglot
from treediffusion.data import RECIPES, ImageSet, load, to_float
from treediffusion.data.birds import FOLDER, GROUPS
from treediffusion.data.cache import WORTHWHILE
from treediffusion.data.cifar import HUNDRED, TEN

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import packs

GIVEN = os.environ.get("TREEDIFFUSION_TEST_PACKS", "")
PACKS = Path(GIVEN)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GIVEN, reason="TREEDIFFUSION_TEST_PACKS names no folder of packs"),
]


@pytest.fixture
def place(tmp_path: Path) -> Any:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def both(source: str, **options: Any) -> tuple[ImageSet, ImageSet]:
    """Both parts, which are as the recipe says; read again, out of the cache."""
    found = load(source, **options), load(source, split="test", **options)
    for one, split in zip(found, ("train", "test"), strict=True):
        recipe = RECIPES[one.name]
        assert len(one.images) == recipe.counts[split == "test"]
        assert one.images.shape[1:] == (recipe.channels, recipe.size, recipe.size)
        assert one.class_names == recipe.class_names
        again = load(source, split=split, **options)
        assert isinstance(again.images, np.memmap) == (one.images.nbytes >= WORTHWHILE)
        assert again.fingerprint == one.fingerprint
        print(f"\n{one.name} {split}: {one.images.shape}, fingerprint {one.fingerprint}", end="")
        for name, number in zip(one.class_names or (), sizes(one), strict=True):
            print(f", {name} {number}", end="")
    return found


def sizes(one: ImageSet) -> list[int]:
    return [] if one.labels is None else np.bincount(one.labels).tolist()


def moments(one: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel."""
    pixels = to_float(one.images)
    means, deviations = (pixels.mean((0, 2, 3), np.float64), pixels.std((0, 2, 3), np.float64))
    print(f"; mean {means.round(4)}, deviation {deviations.round(4)}", end="")
    return means.tolist(), deviations.tolist()


def test_the_packs_are_those_of_their_sums() -> None:
    lines = (PACKS / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        expected, name = line.split(maxsplit=1)
        found = hashlib.sha256((PACKS / name.removeprefix("*")).read_bytes()).hexdigest()
        assert found == expected, name
    assert len(lines) >= 15


def test_mnist_with_its_published_sums() -> None:
    train, test = both(f"mnist:{PACKS / 'mnist'}")
    assert sizes(train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert sizes(test) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    (mean,), (deviation,) = moments(train)
    assert (round(mean, 4), round(deviation, 4)) == (0.1307, 0.3081)


def test_fashion_mnist_with_its_published_sums() -> None:
    train, test = both(f"fashion_mnist:{PACKS / 'fashion-mnist'}")
    assert (sizes(train), sizes(test)) == ([6000] * 10, [1000] * 10)
    (mean,), (deviation,) = moments(train)
    assert (round(mean, 4), round(deviation, 4)) == (0.2860, 0.3530)


def test_cifar10(place: Path) -> None:
    """Training pixels are JPEG at 40 dB: the moments are the published ones to a thousandth."""
    for split, files in zip(("train", "test"), TEN.files, strict=True):
        images, arrays = packs.strips(PACKS / "cifar10-jpeg" / f"{split}.npz")
        pixels = images.transpose(0, 3, 1, 2)
        write_cifar(place / TEN.folder, files, pixels, arrays["labels"])
        assert tuple(arrays["class_names"]) == RECIPES["cifar10"].class_names
    train, test = both(f"cifar10:{place}")
    assert (sizes(train), sizes(test)) == ([5000] * 10, [1000] * 10)
    means, deviations = moments(train)
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(deviations, [0.2470, 0.2435, 0.2616], atol=2e-3)


def test_cifar100_with_coarse_and_fine_labels(place: Path) -> None:
    """Pixels are JPEG at 36 dB."""
    for split, files in zip(("train", "test"), HUNDRED.files, strict=True):
        images, arrays = packs.strips(PACKS / "cifar100-jpeg" / f"{split}.npz")
        labels = arrays["coarse_labels"], arrays["labels"]
        write_cifar(place / HUNDRED.folder, files, images.transpose(0, 3, 1, 2), *labels)
        assert tuple(arrays["coarse_names"]) == RECIPES["cifar100"].class_names
        assert tuple(arrays["class_names"]) == RECIPES["cifar100_fine"].class_names
    train, test = both(f"cifar100:{place}")
    assert (sizes(train), sizes(test)) == ([2500] * 20, [500] * 20)
    fine, fine_test = both(f"cifar100_fine:{place}")
    assert (sizes(fine), sizes(fine_test)) == ([500] * 100, [100] * 100)
    assert fine.fingerprint == train.fingerprint
    means, _ = moments(train)
    np.testing.assert_allclose(means, [0.5071, 0.4865, 0.4409], atol=2e-3)


def test_celeba(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 faces of the training part at half size, doubled; 1,000 of them stand for the test."""
    faces, _ = packs.strips(PACKS / "celeba-10k" / "celeba-10k.npz")
    assert faces.shape == (10_000, 109, 89, 3)
    doubled = (face.repeat(2, axis=0).repeat(2, axis=1) for face in faces)
    write_celeba(place / "celeba", doubled, [0] * 9000 + [2] * 1000)
    changed = replace(RECIPES["celeba64"], counts=(9000, 1000), files={})
    monkeypatch.setitem(RECIPES, "celeba64", changed)
    train, test = both(f"celeba64:{place}")
    theirs = packs.PACKS["celeba"].read(PACKS)
    for mine, other in zip((train, test), theirs, strict=True):
        apart = np.abs(mine.images.astype(int) - other.images.astype(int)).mean()
        print(f"; {apart:.2f} of 255 from the half-size crop", end="")
        assert apart < 2


def test_cubicc(place: Path) -> None:
    """Pictures were squeezed to 64x64 before: the recipe's own squeezing leaves them alone."""
    wanted = {number: group for group, numbers in GROUPS.items() for number in numbers}
    kept: dict[bytes, str] = {}
    for split in ("train", "test"):
        images, arrays = packs.strips(PACKS / "cub64" / f"{split}.npz")
        numbers = arrays["labels"].astype(int) + 1
        rows = np.flatnonzero(np.isin(numbers, list(wanted)))
        species = [f"{numbers[row]:03}.{arrays['class_names'][numbers[row] - 1]}" for row in rows]
        files = [arrays["file_names"][row].decode() for row in rows]
        assert all(name.endswith(wanted[int(name[:3])]) for name in species)
        write_birds(place / FOLDER, images[rows], species, files)
        kept |= {images[row].tobytes(): wanted[numbers[row]] for row in rows}
    train, test = both(f"cubicc:{place}")
    assert sum(sizes(train)) + sum(sizes(test)) == 1315
    found: dict[bytes, str] = {}
    for part in (train, test):
        assert part.labels is not None
        assert part.class_names is not None
        for image, label in zip(part.images, part.labels, strict=True):
            found[image.transpose(1, 2, 0).tobytes()] = part.class_names[label]
    assert found == kept
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}


def test_omniglot_and_its_five_alphabets(place: Path) -> None:
    """Scaled to 28x28 before, by a browser; ink is turned from 255 on 0 to 0 on 255."""
    with np.load(PACKS / "omniglot28" / "omniglot28.npz", allow_pickle=False) as pack:
        names: NDArray[np.str_] = pack["alphabet_names"][pack["alphabet"]]
        write_omniglot(
            place / "omniglot-py",
            255 - pack["gray"],
            names.tolist(),
            pack["character"].tolist(),
            pack["background"].tolist(),
        )
    train, test = both(f"omniglot:{place}")
    assert len(train.images) + len(test.images) == 1623 * 20
    assert np.array_equal(np.array(sizes(train)), 4 * np.array(sizes(test)))
    five, five_test = both(f"omniglot5:{place}")
    assert (sizes(five), sizes(five_test)) == ([416, 720, 720, 736, 736], [104, 180, 180, 184, 184])
    theirs = packs.PACKS["omniglot5"].read(PACKS)
    drawn = {image.tobytes() for part in theirs for image in part.images}
    assert {image.tobytes() for part in (five, five_test) for image in part.images} == drawn


def test_the_authors_zips_of_omniglot_as_a_users_own_zips() -> None:
    for number, characters, alphabets in ((1, 136, 5), (2, 156, 5)):
        path = PACKS / "omniglot-small" / f"images_background_small{number}.zip"
        found = load(str(path), size=28)
        assert found.images.shape == (characters * 20, 1, 28, 28)
        assert found.class_names is not None
        assert len(found.class_names) == alphabets
        assert found.images.mean() > 200
        assert load(str(path)).images.shape[1:] == (1, 105, 105)
        print(f"\n{path.name}: {dict(zip(found.class_names, sizes(found), strict=True))}", end="")


def test_newsgroups20() -> None:
    train, test = both(f"newsgroups20:{PACKS / '20newsgroups'}")
    assert (min(sizes(train)), max(sizes(train))) == (377, 600)
    assert (min(sizes(test)), max(sizes(test))) == (251, 399)
    lengths = np.linalg.norm(train.images[:, :, 0, 0], axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-5)
