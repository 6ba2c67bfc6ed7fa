"""A recipe: how one published data set becomes images, from its own files, the same everywhere.

Originals are looked for in a folder, in the layout in which their authors or torchvision leave
them, and downloaded where they are missing and may be. Their MD5 or SHA-256 sums, where published,
are compared when a set is packed; numbers of images, sizes and classes always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import DataError
from .content import Content, Split
from .listing import Listing
from .pictures import Cut

if TYPE_CHECKING:
    from .dataset import ImageSet

MD5_DIGITS = 32
ELSEWHERE = Path("elsewhere")
"""Where originals lie that the library keeps which reads them."""


@dataclass(frozen=True)
class Recipe:
    """A published data set, as it is used here.

    Attributes:
        name: what `--data` calls it.
        title: what it is, in a line.
        page: where its authors describe it.
        citation: whom to cite.
        terms: under which it may be used, as its authors say.
        channels: of an image; of a text, the terms that are counted.
        size: side of an image; 1 for a text.
        counts: images for training and for testing.
        class_names: ground truth, used for evaluation alone; None where there is none.
        locate: where the originals lie in a folder; None if they are not there.
        read: one part of the originals, by their place.
        fetch: downloads the originals into a folder.
        by_hand: how to get them without it.
        files: MD5 or SHA-256 sum of each original, by name, where published; a missing file is not
            compared.
        cut: what is taken of a picture before it is scaled.
        lists: whether `read` names pictures, which are then decoded.
        kind: images, or texts as vectors.
    """

    name: str
    title: str
    page: str
    citation: str
    terms: str
    channels: int
    size: int
    counts: tuple[int, int]
    class_names: tuple[str, ...] | None
    locate: Callable[[Path], Path | None]
    read: Callable[[Path, Split], Content | Listing]
    fetch: Callable[[Path], object]
    by_hand: str
    files: Mapping[str, str] = field(default_factory=dict)
    cut: Cut = "whole"
    lists: bool = False
    kind: Literal["images", "texts"] = "images"

    def load(
        self, split: Split = "train", *, folder: Path | None = None, size: int | None = None
    ) -> ImageSet:
        """One part of the set.

        Args:
            split: which.
            folder: where the originals are; None for `originals_folder()`, where they may be
                downloaded to.
            size: another side of the images.

        Raises:
            DataError: no originals, or others than described.
        """
        from .dataset import load

        return load(f"{self.name}:{folder}" if folder else self.name, split=split, size=size)

    def facts(self) -> list[object]:
        """What its images depend on besides the originals, in JSON's types."""
        return [self.name, self.kind, self.channels, self.size, self.cut, self.class_names]

    def count(self, split: Split) -> int:
        """Images of a part."""
        return self.counts[split == "test"]

    def originals(self, root: Path) -> Path:
        """Where the originals are, after a download if need be.

        Raises:
            DataError: they are neither there nor to be had.
        """
        found = self.locate(root)
        reason = ""
        if found is None:
            try:
                self.fetch(root)
            # A server that is gone, an answer that is no archive, a sum that is another.
            except (OSError, RuntimeError, EOFError, ValueError) as fault:
                reason = " ".join(str(fault).split()) or type(fault).__name__
            found = self.locate(root)
        if found is None:
            raise DataError(
                self.name,
                got=f"no originals in {str(root)!r} and no download"
                + (f" ({reason})" if reason else ""),
                expected=f"a network connection the first time, or {self.by_hand}",
                hint=f"here FOLDER is {root}; --data {self.name}:FOLDER names another",
            )
        return found

    def check_files(self, place: Path) -> None:
        """Compares the sums of originals, wherever they lie next to each other.

        Raises:
            DataError: one differs.
        """
        folder = place if place.is_dir() else place.parent
        for name, expected in self.files.items():
            if not (folder / name).is_file():
                continue
            kind = "md5" if len(expected) == MD5_DIGITS else "sha256"
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, kind).hexdigest()
            if found != expected:
                raise DataError(
                    str(folder / name),
                    got=f"the {kind.upper()} sum {found}",
                    expected=expected,
                    hint="it is cut or altered: delete it, and get it again",
                )

    def check(self, found: Content | Listing, split: Split) -> None:
        """Compares what was read with the description.

        Raises:
            DataError: it differs.
        """
        images = found.images if isinstance(found, Content) else found.entries
        names, described = found.class_names, self.class_names
        differs = names is not None and described is not None and names != described
        if len(images) == self.count(split) and not differs:
            return
        raise DataError(
            self.name,
            got=f"{len(images)} in the {split} part" + (", other classes" if differs else ""),
            expected=f"{self.count(split)}" + (f" of {len(described or ())}" if differs else ""),
            hint="the originals are not whole, or not those of this set; get them again",
        )


def download(url: str, folder: Path, md5: str | None = None) -> None:
    """A file from the network, through torchvision, which shows a bar and compares the sum."""
    from ..optional import require

    require("torchvision.datasets.utils", extra="train").download_url(url, folder, md5=md5)
