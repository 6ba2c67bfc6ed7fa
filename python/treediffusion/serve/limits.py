"""What a request may ask for, and what happens to one that asks for more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client from stopping the others."""

    max_images: int = 64
    """Images of a request."""
    max_steps: int = 1000
    """Denoising steps of an image."""
    max_queue: int = 100_000
    """Image-steps that may wait; beyond, the answer is 429."""
    max_body: int = 8 * 2**20
    """Bytes of a request's body; beyond, 413."""
    max_pixels: int = 2**24
    """Pixels of a request's images together, whatever their files' sizes."""
    timeout: float = 60.0
    """Seconds of a request, waiting included, unless it asks for fewer; beyond, 504."""
    body_timeout: float = 10.0
    """Seconds between two parts of a request's body; beyond, 408."""
    write_timeout: float = 30.0
    """Seconds that a part of an answer may wait for its reader; beyond, the connection ends."""
