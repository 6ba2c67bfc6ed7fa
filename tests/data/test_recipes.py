"""Named data sets, from small stand-ins in the very layouts of their originals."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
import torchvision
from PIL import Image
from support.upstream import write_birds, write_celeba, write_cifar, write_idx
from treediffusion.data import RECIPES, load
from treediffusion.data.birds import GROUPS
from treediffusion.data.cifar import HUNDRED, TEN
from treediffusion.errors import DataError

RANDOM = np.random.default_rng(0)
NAMES = [
    "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "cifar100_fine", "celeba64",
    "cubicc", "omniglot", "omniglot5", "newsgroups20",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recipes look; sets of any number of images are those they expect."""
    monkeypatch.setenv("TREEDIFFUSION_DATA", str(tmp_path / "originals"))
    return tmp_path / "originals"


def of_counts(monkeypatch: pytest.MonkeyPatch, name: str, *counts: int, **more: Any) -> None:
    """Makes a recipe expect a stand-in's numbers, and no published sums."""
    changed = replace(RECIPES[name], counts=counts, **({"files": {}} | more))
    monkeypatch.setitem(RECIPES, name, changed)


def fault(source: str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    return caught.value


def test_every_set_is_known_by_name_and_described() -> None:
    assert list(RECIPES) == NAMES
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert all((recipe.title, recipe.page, recipe.citation, recipe.terms, recipe.by_hand))
        assert all(len(one) in (32, 64) for one in recipe.files.values())
        names = recipe.class_names or ()
        assert len(set(names)) == len(names)
    classes = {name: len(recipe.class_names or ()) for name, recipe in RECIPES.items()}
    assert list(classes.values()) == [10, 10, 10, 10, 20, 100, 0, 8, 50, 5, 20]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_idx_sets_are_what_torchvision_reads_from_its_own_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, packed: bool
) -> None:
    of_counts(monkeypatch, name, 5, 3)
    parts = {}
    for split, count in (("train", 5), ("test", 3)):
        images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[split] = images, np.arange(count) % 10
        for pack in {packed, False}:  # torchvision wants them unpacked
            write_idx(root / folder / "raw", split, *parts[split], packed=pack)
    theirs = getattr(torchvision.datasets, folder)
    for split in ("train", "test"):
        found, other = load(name, split=split), theirs(root, train=split == "train")
        np.testing.assert_array_equal(found.images[:, 0], other.data.numpy())
        assert found.labels is not None
        assert found.labels.tolist() == other.targets.tolist()
    if name == "fashion_mnist":
        assert found.class_names == tuple(theirs.classes)


def test_idx_sets_are_read_packed_and_from_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_counts(monkeypatch, "mnist", 5, 5)
    images = RANDOM.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for split in ("train", "test"):
        write_idx(tmp_path, split, images, np.arange(5), packed=True)
    found = load(f"mnist:{tmp_path}")
    np.testing.assert_array_equal(found.images[:, 0], images)
    assert (found.name, found.class_names) == ("mnist", tuple("0123456789"))
    assert RECIPES["mnist"].load("test", folder=tmp_path).fingerprint == found.fingerprint


def write_cifars(folder: Path) -> dict[str, Any]:
    images = RANDOM.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    coarse, fine = np.arange(10) * 2, np.arange(10) * 11
    write_cifar(folder / TEN.folder, TEN.files[0], images, np.arange(10))
    write_cifar(folder / TEN.folder, TEN.files[1], images[:4], np.arange(4))
    write_cifar(folder / HUNDRED.folder, HUNDRED.files[0], images, coarse, fine)
    write_cifar(folder / HUNDRED.folder, HUNDRED.files[1], images[:4], coarse[:4], fine[:4])
    labels = {"cifar10": np.arange(10), "cifar100": coarse, "cifar100_fine": fine}
    return {"images": images, **labels}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cifar100_fine"])
def test_cifar_is_read_from_folder_and_archive_alike(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    of_counts(monkeypatch, name, 10, 4)
    written = write_cifars(root)
    train, test = load(name), load(name, split="test")
    np.testing.assert_array_equal(train.images, written["images"])
    np.testing.assert_array_equal(test.images, written["images"][:4])
    assert train.labels is not None
    assert train.labels.tolist() == written[name].tolist()
    layout = TEN if name == "cifar10" else HUNDRED
    packed = root.parent / "packed"
    packed.mkdir()
    with tarfile.open(packed / layout.archive, "w:gz") as archive:
        archive.add(root / layout.folder, layout.folder)
    assert load(f"{name}:{packed}").fingerprint == train.fingerprint
    assert load(f"{name}:{root / layout.folder}").fingerprint == train.fingerprint


def test_cifar_that_is_cut_or_of_another_kind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_counts(monkeypatch, "cifar10", 10, 4)
    write_cifars(root)
    file = root / TEN.folder / "data_batch_2.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "a multiple of 3073" in fault("cifar10").expected
    file.write_bytes(bytes([10]) + whole[1:])
    assert "the label 10" in str(fault("cifar10").got)
    file.write_bytes(whole[:3073])
    assert "9 in the train part" in str(fault("cifar10").got)
    (root / TEN.archive).write_bytes(gzip.compress(b"no archive"))
    assert TEN.archive in str(fault("cifar10"))


def test_the_pickled_form_of_cifar_is_never_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", offline)
    batches = root / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (batches / "data_batch_1").write_bytes(b"cos\nmkdir\n(S'ran'\ntR.")
    assert "pickled" in fault("cifar10").expected


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_faces_are_the_usual_crop_of_the_official_parts(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    of_counts(monkeypatch, "celeba64", 2, 1)
    images = RANDOM.integers(0, 256, (4, 218, 178, 3), dtype=np.uint8)
    write_celeba(root / "celeba", images, [0, 1, 2, 0])
    pictures = root / "celeba" / "img_align_celeba"
    if kind == "zip":
        with zipfile.ZipFile(root / "celeba" / "img_align_celeba.zip", "w") as archive:
            for file in pictures.iterdir():
                archive.write(file, f"img_align_celeba/{file.name}")
                file.unlink()
    change = torchvision.transforms.functional
    expected = [
        np.asarray(change.resize(change.crop(Image.fromarray(image), 40, 15, 148, 148), [64, 64]))
        for image in images
    ]
    train, test = load("celeba64"), load("celeba64", split="test")
    np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1), [expected[0], expected[3]])
    np.testing.assert_array_equal(test.images.transpose(0, 2, 3, 1), expected[2:3])
    assert train.labels is None
    assert load("celeba64", size=32).images.shape == (2, 3, 32, 32)


def test_faces_of_another_size_are_not_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_counts(monkeypatch, "celeba64", 1, 0)
    write_celeba(root / "celeba", np.zeros((1, 109, 89, 3), np.uint8), [0])
    assert "89x109" in str(fault("celeba64").got)
    (root / "celeba" / "list_eval_partition.txt").write_text("000001.jpg zero one\n")
    assert fault("celeba64").name.endswith("list_eval_partition.txt")


def write_small_birds(folder: Path) -> None:
    """Ten pictures, oblong ones too, of each of the 22 species, and of one that has no group."""
    kinds = [number for numbers in GROUPS.values() for number in numbers] + [1]
    for number in kinds:
        images = RANDOM.integers(0, 256, (10, 20 + number % 3, 30, 3), dtype=np.uint8)
        files = [f"bird_{k}.jpg" for k in range(10)]
        write_birds(folder, images, [f"{number:03}.Some_Bird"] * 10, files)


def test_birds_are_divided_by_picture_and_grouped(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_counts(monkeypatch, "cubicc", 198, 22)
    write_small_birds(root / "CUB_200_2011")
    train, test = load("cubicc"), load("cubicc", split="test")
    assert train.class_names == test.class_names == tuple(GROUPS)
    assert train.labels is not None
    assert test.labels is not None
    species = [len(numbers) for numbers in GROUPS.values()]
    assert np.bincount(train.labels).tolist() == [9 * count for count in species]
    assert np.bincount(test.labels).tolist() == species
    both = {image.tobytes() for part in (train, test) for image in part.images}
    assert len(both) == 220
    with Image.open(root / "CUB_200_2011" / "images" / "009.Some_Bird" / "bird_0.jpg") as picture:
        whole = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
    assert whole.transpose(2, 0, 1).tobytes() in both


def test_an_archive_of_birds_is_unpacked_whole_or_not_at_all(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_counts(monkeypatch, "cubicc", 198, 22)
    write_small_birds(tmp_path / "CUB_200_2011")
    expected = load(f"cubicc:{tmp_path}").fingerprint
    root.mkdir()
    archive = root / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(tmp_path / "CUB_200_2011", "CUB_200_2011")
    whole = archive.read_bytes()
    monkeypatch.setattr("treediffusion.data.birds.CUBICC", RECIPES["cubicc"])
    archive.write_bytes(whole[: len(whole) // 2])
    assert fault("cubicc").name == str(archive)
    assert list(root.iterdir()) == [archive]
    archive.write_bytes(whole)
    assert load("cubicc").fingerprint == expected
    assert {file.name for file in root.iterdir()} == {"CUB_200_2011", archive.name}


def test_a_missing_species_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_counts(monkeypatch, "cubicc", 198, 22)
    (root / "CUB_200_2011" / "images" / "009.Some_Bird").mkdir(parents=True)
    assert "species 009, a Blackbird" in str(fault("cubicc").got)


def offline(*_: object, **__: object) -> None:
    raise URLError("no route\nto host")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_without_originals_and_network_one_line_says_what_to_put_where(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", offline)
    for theirs in ("MNIST", "FashionMNIST", "CelebA", "Omniglot"):
        monkeypatch.setattr(torchvision.datasets, theirs, offline)
    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", offline)
    error = fault(name)
    assert error.name == name
    assert "\n" not in str(error)
    assert "no route to host" in str(error.got)
    assert "network" in error.expected
    if name != "newsgroups20":
        assert f"--data {name}:FOLDER" in error.hint
        assert RECIPES[name].by_hand in error.expected


def test_originals_are_downloaded_into_the_users_folder_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_counts(monkeypatch, "cifar10", 10, 4)
    asked = []

    def fetch(url: str, folder: Path, *, md5: str) -> None:
        asked.append((url.rsplit("/", 1)[-1], folder, md5))
        write_cifars(folder)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    for split in ("train", "test"):
        load("cifar10", split=split)
    assert asked == [(TEN.archive, root, "c32a1d4ab5d03f1284b67883e8d87530")]


def test_other_numbers_of_images_than_published_are_refused(root: Path) -> None:
    images = RANDOM.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_idx(root / "MNIST" / "raw", "train", images, np.arange(5))
    error = fault("mnist")
    assert "5 in the train part" in str(error.got)
    assert "60000" in error.expected


def test_published_sums_are_compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = RANDOM.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_idx(root / "MNIST" / "raw", "train", images, np.arange(5), packed=True)
    error = fault("mnist")
    assert error.name.endswith("train-images-idx3-ubyte.gz")
    assert error.expected == "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    sums = {
        file.name: hashlib.md5(file.read_bytes()).hexdigest()
        for file in (root / "MNIST" / "raw").iterdir()
    }
    of_counts(monkeypatch, "mnist", 5, 5, files=sums)
    assert len(load("mnist").images) == 5


def test_of_texts_the_published_sum_is_a_sha256(tmp_path: Path) -> None:
    """That of scikit-learn, which downloads the same archive."""
    from sklearn.datasets import _twenty_newsgroups

    recipe = RECIPES["newsgroups20"]
    original = _twenty_newsgroups.ARCHIVE
    assert recipe.files == {original.filename: original.checksum}
    (tmp_path / original.filename).write_bytes(b"altered")
    error = fault(f"newsgroups20:{tmp_path}")
    assert error.name == str(tmp_path / original.filename)
    assert str(error.got).startswith("the SHA256 sum ")


def test_a_set_can_be_had_at_another_size() -> None:
    found = load("digits", size=16)
    assert found.images.shape == (1797, 1, 16, 16)
    original = load("digits").images[0, 0]
    scaled = Image.fromarray(original).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found.images[0, 0], np.asarray(scaled))


def test_a_misspelt_name_is_put_right() -> None:
    assert fault("fashion-mnist").hint == "did you mean 'fashion_mnist'?"
    assert "which is no folder" in str(fault("mnist:absent"))
