"""CUBICC: 22 species of CUB-200-2011 in eight groups, whole pictures squeezed to 64x64.

    1,315 pictures = 1,183 to train and 132 to test: of each species every tenth, chosen by seed

The published set has ten captions to a picture, and is divided by captions into nine tenths and a
tenth, so that a picture may be in both parts. Here the shares are the same and a picture is in one
part only: expect other numbers. How the published pictures were scaled is not said; squeezing them
is what `Resize((64, 64))` does, and keeps the whole bird.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np

from ..errors import DataError
from .content import Split
from .division import is_test_image
from .listing import Listing, file_entry, numbered
from .recipe import Recipe, download

GROUPS = {
    "Blackbird": (9, 10, 11),
    "Gull": (59, 62, 66),
    "Jay": (73, 74),
    "Oriole": (95, 96, 98),
    "Tanager": (139, 140),
    "Tern": (141, 143, 145),
    "Warbler": (168, 175, 182),
    "Wren": (195, 196, 197),
}
TEST_SHARE = 0.1
SEED = 0
FOLDER, ARCHIVE = "CUB_200_2011", "CUB_200_2011.tgz"
URL = f"https://data.caltech.edu/records/65de6-vp158/files/{ARCHIVE}"
MD5 = "97eceeb196236b17998738112f37df78"


def _locate(root: Path) -> Path | None:
    places = (root / FOLDER, root)
    found = next((place for place in places if (place / "images").is_dir()), None)
    if found is None and (root / ARCHIVE).is_file():
        _unpack(root)
        return root / FOLDER
    return found


def _fetch(root: Path) -> None:
    download(URL, root, MD5)


def _unpack(root: Path) -> None:
    """The whole archive beside itself, or nothing of it."""
    CUBICC.check_files(root)
    temporary = root / f".{FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(root / ARCHIVE, "r:gz") as archive:
            archive.extractall(temporary, filter="data")
        (temporary / FOLDER).rename(root / FOLDER)
    except (OSError, EOFError, tarfile.TarError) as fault:
        raise DataError(
            str(root / ARCHIVE),
            got=f"an archive that cannot be unpacked ({fault})",
            expected=f"the folder {FOLDER}, whole, and room for 1.2 GB",
            hint="get it again, or unpack it yourself",
        ) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(place: Path, split: Split) -> Listing:
    files: list[Path] = []
    groups: list[str] = []
    species: list[int] = []
    for group, numbers in GROUPS.items():
        for number in numbers:
            folder = next((place / "images").glob(f"{number:03}.*"), None)
            found = sorted(folder.glob("*.jpg")) if folder else []
            if not found:
                raise DataError(
                    str(place / "images"),
                    got=f"no pictures of species {number:03}, a {group}",
                    expected=f"the folders of {ARCHIVE}",
                    hint="unpack it again",
                )
            files += found
            groups += [group] * len(found)
            species += [number] * len(found)
    is_test = is_test_image(np.array(species), TEST_SHARE, SEED)
    rows = np.flatnonzero(is_test if split == "test" else ~is_test)
    entries = [file_entry(files[row], place) for row in rows]
    names = tuple(GROUPS)
    return Listing(entries, numbered([groups[row] for row in rows], names), names)


CUBICC = Recipe(
    name="cubicc",
    title="birds of eight groups, 22 species of CUB-200-2011",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    citation="Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 dataset, "
    "2011; grouped by Palumbo, Manduchi, Laguna, Chopard, Vogt: Deep generative clustering with "
    "multimodal diffusion variational autoencoders, 2024",
    terms="non-commercial research and education only",
    channels=3,
    size=64,
    counts=(1183, 132),
    class_names=tuple(GROUPS),
    locate=_locate,
    fetch=_fetch,
    read=_read,
    lists=True,
    by_hand=f"{ARCHIVE} from {URL} in FOLDER, packed or unpacked",
    files={ARCHIVE: MD5},
)
