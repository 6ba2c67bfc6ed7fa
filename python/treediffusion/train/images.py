"""Images to train on: kept once as they are stored, handed out as floats, a batch at a time.

Bytes stay bytes, a quarter of the memory that floats take, and dividing a batch of them costs next
to nothing. A GPU holds the whole set if that leaves half of its free memory to training. Otherwise
the set stays on the host, as a rule a file of the cache that is mapped into memory, and batches of
it cross pinned memory. The set itself is not pinned: it may be larger than the host's memory, and
processes that train side by side share the pages of one file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data import Pixels


class TrainingImages:
    """A set of images, and the device that its batches go to.

    Attributes:
        shape: (n, C, H, W).
        device: where batches go.
        resident: whether the whole set lies there.

    Args:
        pixels: [n, C, H, W] uint8, or float32 in 0..1; never written to.
        device: to train on.
    """

    def __init__(self, pixels: Pixels, device: torch.device | str = "cpu") -> None:
        stored = _as_tensor(pixels)
        self.shape = stored.shape
        self.device = torch.empty(0, device=device).device  # with its number
        self.resident = has_room(self.device, stored.nbytes)
        self._stored = stored.to(self.device) if self.resident else stored
        # A tensor, since GPUs multiply by the inverse of a number, which differs in last bits.
        self._white = torch.tensor(255.0, device=self.device)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Some images as `to_float` has them, on the device.

        Args:
            rows: [B] or [B, S] int64, positions, on the device; or a slice.

        Returns:
            [B, C, H, W] or [B, S, C, H, W] float32 in 0..1.
        """
        found = self._stored[rows] if self.resident else self._fetched(rows)
        return found / self._white if found.dtype == torch.uint8 else found

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest pixel, not numbers where one is not; bytes are within 0..1 as such."""
        if self._stored.dtype == torch.uint8:
            return 0.0, 1.0
        low, high = self._stored.aminmax()
        return float(low), float(high)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All images in order: [size, C, H, W] as of indexing, the last ones fewer."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def _fetched(self, rows: Tensor | slice) -> Tensor:
        """Images from the host, which waits for the rows but not until the images have arrived."""
        found = self._stored[rows.cpu() if isinstance(rows, Tensor) else rows]
        return found.pin_memory().to(self.device, non_blocking=True)


def has_room(device: torch.device, needed: int) -> bool:
    """Whether so many bytes may lie on a device for a whole training; on a CPU they always may."""
    return device.type != "cuda" or fits(needed, _free(device))


def fits(needed: int, free: int) -> bool:
    """Whether so many bytes leave training at least half of those that are free."""
    return 2 * needed <= free


def _free(device: torch.device) -> int:
    """Bytes that a GPU has to spare, with those that PyTorch holds back for the next to ask."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _as_tensor(pixels: Pixels) -> Tensor:
    """The array's own memory, in the order of its axes."""
    with warnings.catch_warnings():
        # Of arrays that refuse to be written to, as bytes out of a file do.
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.ascontiguousarray(pixels))
