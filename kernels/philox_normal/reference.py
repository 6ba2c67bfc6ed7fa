"""The truth: `treediffusion.noise`, through NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...noise import Stream, normals_from_words, words


def normals(state: Tensor, count: int) -> Tensor:
    """state: [B, 5] int64, the bits of seed, image, step, stream, draw -> [B, count] float32."""
    rows = state.cpu().contiguous().numpy().view(np.uint64).tolist()
    drawn = np.empty((len(rows), (count + 1) // 2), np.uint64)
    for own, (seed, image, step, stream, draw) in zip(drawn, rows, strict=True):
        own[:] = words(seed, image, Stream(stream), step, len(own), draw=draw)
    flat = np.ascontiguousarray(normals_from_words(drawn)[:, :count])
    return torch.from_numpy(flat).to(state.device)
