"""A big set of images, cut into units that anybody may draw, anywhere and twice.

A seed names images, so a unit (node, seed, offset, count) is the same images whoever draws it. The
set lies under `out`:

    manifest.csv                  every image once, in the order of the plan
    r01/seed7-00000.png           images, by the node that was asked for
    .parts/r01-seed7-0-128.csv    a unit's rows of the manifest, written after its images
    .parts/set.json               what the set is made of; another set is refused

A unit whose part lies there, and whose files have the hashes in it, is done and is not drawn again;
one that died half-way has no part and is drawn again over the same names. So neither a repeated
command nor a repeated unit puts an image into the set twice, and the manifest's bytes do not tell
how many workers there were. Nothing here knows Ray.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..bundle import SEAL, Bundle
from ..errors import ConfigError
from ..files import write_atomic, write_json
from ..runtime import Engine
from ..runtime.batches import integer
from ..runtime.plan import SamplingOptions
from ..runtime.results import Generation
from ..serve.pictures import encode_png

if TYPE_CHECKING:
    from ..progress import Progress

UNIT = 128
"""Images of a unit: what a death costs at most, and two calls of the largest common size."""
MANIFEST = "manifest.csv"
PARTS = ".parts"
COLUMNS = ("file", "seed", "offset", "leaf", "leaf_prob", "path", "sha256")


@dataclass(frozen=True)
class Order:
    """What a set is drawn from, how, and where to.

    Attributes:
        bundle: its folder, the same on every machine.
        out: folder of the set, shared by all machines.
        backend: what runs the graphs.
        sampling: how images are drawn.
    """

    bundle: Path
    out: Path
    backend: str = "auto"
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions())


@dataclass(frozen=True)
class Unit:
    """Images `offset` to `offset + count` of a seed, of one node."""

    node: str
    seed: int
    offset: int
    count: int

    @property
    def name(self) -> str:
        """Of its part's file."""
        return f"{self.node}-seed{self.seed}-{self.offset}-{self.count}"


def plan_units(
    nodes: Sequence[str], count: int, *, seed: int = 0, offset: int = 0, size: int = UNIT
) -> list[Unit]:
    """The units of a set: `count` images of every node, cut after every `size`.

    Args:
        nodes: names, each once.
        count: images of each.
        seed: of all of them.
        offset: number of each node's first image.
        size: images of a unit; the last of a node may have fewer.

    Raises:
        ConfigError: a number out of its range.
    """
    stop = integer("offset", offset, 0) + integer("count", count, 1)
    integer("seed", seed, 0)
    return [
        Unit(node, seed, start, min(size, stop - start))
        for node in nodes
        for start in range(offset, stop, size)
    ]


def begin(order: Order) -> Bundle:
    """Opens the set's folder, and the bundle to see that it can be drawn.

    Raises:
        BundleError: not a bundle, or one that is damaged.
        ConfigError: the folder holds a set of another bundle, or drawn in another way.
        CheckpointError: the folder cannot be written.
    """
    bundle = Bundle.open(order.bundle)
    options = {
        "bundle": (order.bundle / SEAL).read_text("utf-8").split()[0],
        "backend": order.backend,
        "sampling": {name: told for name, told in order.sampling.items() if told is not None},
    }
    made_of: dict[str, object] = json.loads(json.dumps(options))  # as it is read back: no tuples
    file = order.out / PARTS / "set.json"
    if not file.exists():
        write_json(file, made_of)
    elif (found := _read(file)) != made_of:
        differ = [name for name, value in made_of.items() if found.get(name) != value]
        raise ConfigError(
            "out", got=f"{order.out}, which holds a set with another {' and '.join(differ)}",
            expected="a new folder, or the same bundle and options", hint="choose another --out",
        )  # fmt: skip
    return bundle


def draw_unit(
    engine: Engine, order: Order, unit: Unit, *, progress: Progress | None = None
) -> bool:
    """Draws a unit and writes its images, then its part; does nothing if that was done before.

    Args:
        engine: of the order's bundle.
        order: says how and where to.
        unit: which images.
        progress: advanced by 1 per image that is drawn.

    Returns:
        Whether it was drawn.

    Raises:
        TopologyError: no node has this name.
        ConfigError: an option out of its range.
        CheckpointError: the system refused to write the part.
    """
    part = _part(order, unit)
    if _is_done(order.out, part, unit.count):
        return False
    made = engine.generate(
        unit.count, node=unit.node, seed=unit.seed, offset=unit.offset,
        batch_size=engine.bucket, progress=progress, **order.sampling,
    )  # fmt: skip
    (order.out / unit.node).mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    for row in range(unit.count):
        png = encode_png(made.images[row])
        file = f"{unit.node}/seed{unit.seed}-{unit.offset + row:05d}.png"
        _put(order.out / file, png)
        write([file, *_described(made, row), hashlib.sha256(png).hexdigest()])
    write_atomic(part, lambda stream: stream.write(text.getvalue().encode()))
    return True


def draw_here(order: Order, units: Sequence[Unit], progress: Progress) -> Path:
    """Draws a set in this process.

    Args:
        order: what and where to; `begin` has opened its folder.
        units: the plan.
        progress: of all images.

    Returns:
        The manifest.

    Raises:
        BackendUnavailableError: the back end cannot run here.
        CheckpointError: the system refused to write.
    """
    with Engine.load(order.bundle, backend=order.backend, verify=False) as engine:
        for unit in units:
            if not draw_unit(engine, order, unit, progress=progress):
                progress.skip(unit.count)
    return join(order, units)


def join(order: Order, units: Sequence[Unit]) -> Path:
    """Writes the manifest: the parts of all units in the order of the plan.

    Returns:
        The file.

    Raises:
        CheckpointError: a unit has no part, or the system refused to write.
    """
    manifest = order.out / MANIFEST

    def write(stream: BinaryIO) -> None:
        stream.write((",".join(COLUMNS) + "\n").encode())
        for unit in units:
            with _part(order, unit).open("rb") as part:
                shutil.copyfileobj(part, stream)

    write_atomic(manifest, write)
    return manifest


def _described(made: Generation, row: int) -> Iterator[object]:
    """Seed, offset, leaf, its probability and the nodes from the root to it."""
    which = made.leaf[row]
    leaf = made.leaf_names[which]
    yield from (int(made.seed[row]), int(made.index[row]), leaf)
    yield str(made.leaf_prob[row, which])  # the shortest digits that read back as this float32
    yield "/".join(leaf[:end] for end in range(1, len(leaf) + 1))


def _put(file: Path, content: bytes) -> None:
    """Whole or not there, but perhaps not on the disk yet.

    To wait for the disk takes longer than to draw a small image. What a power failure loses, the
    hashes in the part tell.
    """
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def _part(order: Order, unit: Unit) -> Path:
    return order.out / PARTS / f"{unit.name}.csv"


def _is_done(out: Path, part: Path, count: int) -> bool:
    try:
        with part.open(encoding="utf-8", newline="") as stream:
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in csv.reader(stream)]
        return len(rows) == count and all(
            hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]
            for row in rows
        )
    except (OSError, ValueError):  # no part or no image, or a part that is no table
        return False


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}
