"""CelebA: faces, 148x148 pixels of each at 64x64, by the authors' own division.

The zip is read in place. Attributes are not read, and there are no classes: none of the forty is
the truth about a face.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..optional import require
from .content import Split
from .listing import Listing, file_entry, zip_entries
from .recipe import Recipe

FOLDER, PICTURES, DIVISION = "celeba", "img_align_celeba", "list_eval_partition.txt"
PART: dict[Split, str] = {"train": "0", "test": "2"}  # 1 is for validation, and unused
BOX = (15, 40, 163, 188)  # of 178x218 pixels


def _locate(root: Path) -> Path | None:
    for place in (root / FOLDER, root):
        pictures = (place / f"{PICTURES}.zip").is_file() or (place / PICTURES).is_dir()
        if pictures and (place / DIVISION).is_file():
            return place
    return None


def _fetch(root: Path) -> None:
    require("torchvision.datasets", extra="train").CelebA(root, split="train", download=True)


def _read(place: Path, split: Split) -> Listing:
    names = _names(place / DIVISION, PART[split])
    archive = place / f"{PICTURES}.zip"
    if not archive.is_file():
        return Listing([file_entry(place / PICTURES / name) for name in names], None, None)
    found = {entry.place.rsplit("/", 1)[-1]: entry for entry in zip_entries(archive)}
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            str(archive),
            got=f"no {missing[0]}, nor {len(missing) - 1} other pictures",
            expected=f"what {DIVISION} lists",
            hint="get the zip again",
        )
    return Listing([found[name] for name in names], None, None)


def _names(division: Path, part: str) -> list[str]:
    """Lines such as `000001.jpg 0`."""
    try:
        lines = [line.split() for line in division.read_text("ascii").splitlines() if line.strip()]
        return sorted(name for name, number in lines if number == part)
    except (OSError, ValueError) as fault:
        raise DataError(
            str(division),
            got=f"a file that cannot be read ({fault})",
            expected="lines of a file name and 0, 1 or 2",
            hint="get it again",
        ) from fault


CELEBA = Recipe(
    name="celeba64",
    title="faces",
    page="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    citation="Liu, Luo, Wang, Tang: Deep learning face attributes in the wild, 2015",
    terms="non-commercial research only",
    channels=3,
    size=64,
    counts=(162_770, 19_962),
    class_names=None,
    locate=_locate,
    fetch=_fetch,
    read=_read,
    lists=True,
    by_hand=f"{PICTURES}.zip and {DIVISION} from the authors' page in FOLDER/{FOLDER}",
    files={
        f"{PICTURES}.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
        DIVISION: "d32c9cbf5e040fd4025c592c306e6668",
    },
    cut=BOX,
)
