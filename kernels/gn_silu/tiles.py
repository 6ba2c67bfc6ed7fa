"""How a map is cut into programs, and which maps the published networks norm.

A program holds a tile of groups x channels of a group x pixels in registers, each rounded up to a
power of two. It has all pixels of its groups if they fit; else it walks over them in chunks, twice.
No Triton.
"""

from __future__ import annotations

from typing import NamedTuple

# What a processor's registers hold without spilling, of two maps while gradients are taken.
RESIDENT = 16384
# What a program that walks holds at once; half of it where no more channels lie side by side.
CHUNK, NARROW = 4096, 32
# Less is not worth a program; small maps share one.
LEAST = 1024
# Programs that keep the largest GPUs busy, two for each of 132 processors.
BUSY = 264
# Bytes side by side that a program reads of a pixel with channels last: two sectors, or one.
WIDTHS = (64, 32)

# (channels, side) of every norm in a U-Net of the presets paper-mnist, -cifar10 and -celeba.
SITES = (
    *((64, 32), (128, 32), (192, 32)),
    *((64, 16), (128, 16), (192, 16), (256, 16)),
    *((128, 8), (256, 8), (128, 4), (256, 4)),
    *((256, 32), (384, 32), (384, 16), (512, 16), (512, 8), (512, 4)),
    *((128, 64), (256, 64), (384, 64), (512, 32), (768, 8), (768, 4), (1024, 4)),
)
# Those of them that a condition follows or precedes.
CONDITIONED = (
    *((64, 32), (128, 16), (128, 8), (128, 4)),
    *((128, 32), (256, 16), (256, 8), (256, 4)),
    *((128, 64), (256, 32), (512, 4)),
)
# Those before attention, without SiLU.
ATTENDING = ((128, 4), (256, 4), (256, 8), (256, 16), (512, 4))


class Tile(NamedTuple):
    """The cut of one program.

    Attributes:
        groups: of a program, a power of two.
        channels: of a group, rounded up.
        pixels: of a chunk, rounded up.
        chunks: that make all pixels.
        warps: of a program.
    """

    groups: int
    channels: int
    pixels: int
    chunks: int
    warps: int


def cut(
    batch: int, groups: int, channels: int, pixels: int, *, channels_last: bool, itemsize: int
) -> Tile:
    """The tile of a norm, by sizes alone.

    Args:
        batch: B.
        groups: of the norm.
        channels: of one group.
        pixels: H W.
        channels_last: whether the channels of a pixel lie side by side.
        itemsize: bytes of a number.
    """
    deep, flat = above(channels), above(pixels)
    shared = _side_by_side(channels * itemsize, deep * flat) if channels_last else 1
    shared = min(max(shared, LEAST // (deep * flat)), above(groups))
    if batch * -(-groups // shared) < BUSY:
        shared = 1
    elements = shared * deep * flat
    walks = elements > RESIDENT
    if walks:
        chunk = CHUNK // 2 if channels_last and shared * deep <= NARROW else CHUNK
        flat = max(1, chunk // (shared * deep))
        elements = shared * deep * flat
    # With channels last a thread has many channels' numbers besides the map's. Fewer warps spill
    # less, as each may then have more registers; but one that walks can have less of the map.
    wide = channels_last and not walks
    of_warp = 1024 if wide else 256 if channels_last else 512
    warps = min(max(elements // of_warp, 4), 8 if wide else 16)
    return Tile(shared, deep, flat, -(-pixels // flat), warps)


def above(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _side_by_side(width: int, elements: int) -> int:
    """Groups whose channels of a pixel are wide enough, all pixels of them resident if possible.

    Args:
        width: bytes of one group's channels.
        elements: of one group's tile.
    """
    choices = [above(-(-wanted // width)) for wanted in WIDTHS]
    return next((shared for shared in choices if shared * elements <= RESIDENT), choices[0])
