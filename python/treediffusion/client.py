"""A client of `treediffusion serve`, with nothing but the standard library.

    client = Client("http://127.0.0.1:8000")
    for image in client.generate(node="r01", n=4, seed=7):
        image.save(f"{image.leaf}-{image.seed}-{image.offset}.png")

Copy this file where treediffusion is not installed.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

PAUSE_S = 0.25
"""Before a request is made again, twice as long each time, where no answer names a time."""

Answer = TypeVar("Answer")


class ServerError(Exception):
    """What the server refused, or could not do.

    Attributes:
        status: of the answer.
        kind: 'invalid_request', 'unauthorized', 'too_large', 'busy', 'timeout', ..
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(f"{message} ({kind}, {status})")
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class Image:
    """An image and where it comes from; `seed` and `offset` draw it again."""

    index: int
    png: bytes
    leaf: str
    leaf_prob: float
    path: tuple[str, ...]
    seed: int
    offset: int

    @classmethod
    def read(cls, item: dict[str, Any]) -> Image:
        """From an answer's item."""
        rest = {name: value for name, value in item.items() if name not in ("image", "path")}
        return cls(png=base64.b64decode(item["image"]), path=tuple(item["path"]), **rest)

    def save(self, file: str | Path) -> None:
        """Writes the PNG."""
        Path(file).write_bytes(self.png)


class Client:
    """Asks one server, or the balancer before many.

    Args:
        url: of the server.
        key: where it asks for one.
        timeout: seconds without a sign of it.
        retries: how often a request is made again: after the time that a busy server names, and
            after a pause where the connection broke, the server was stopping, or a balancer says
            that the server behind it is gone. A seed names images, so a request made twice has one
            answer. A stream that has begun is not made again.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 90.0, retries: int = 3
    ) -> None:
        self._url, self._key = url.rstrip("/"), key
        self._timeout, self._retries = timeout, retries

    def tree(self) -> dict[str, Any]:
        """The tree, and what can be asked of it."""
        return self._json("GET", "/v1/tree", None)

    def generate(self, **request: Any) -> list[Image]:
        """New images: `node`, `n`, `seed` or `seeds`, `num_inference_steps`, `solver`, .."""
        return self._images("/v1/generate", request)

    def sheet(self, **request: Any) -> list[Image]:
        """The same latents and noise in every leaf: `n`, `seed`, .."""
        return self._images("/v1/sheet", request)

    def interpolate(self, start: str, end: str, **request: Any) -> list[Image]:
        """The way from one leaf to another: `frames`, `seed`, .."""
        return self._images("/v1/interpolate", {"start": start, "end": end, **request})

    def reconstruct(self, file: bytes, **request: Any) -> list[Image]:
        """An image file drawn again: `leaf`, `seed`, .."""
        return self._images("/v1/reconstruct", {"image": _text(file), **request})

    def assign(self, files: Sequence[bytes]) -> list[dict[str, float]]:
        """The probability of each leaf, by name, for each image file."""
        answer = self._json("POST", "/v1/assign", {"images": [_text(file) for file in files]})
        return [dict(zip(answer["leaf_names"], row, strict=True)) for row in answer["leaf_prob"]]

    def stream(self, **request: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """`generate`, watched: pairs of an event's name and what it says, as they come."""
        told = {**request, "stream": True}
        with self._asked("POST", "/v1/generate", told, lambda answer: answer) as answer:
            event = ""
            for line in answer:
                name, _, rest = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = rest
                elif name == "data":
                    yield event, json.loads(rest)

    def _images(self, path: str, request: dict[str, Any]) -> list[Image]:
        return [Image.read(item) for item in self._json("POST", path, request)["data"]]

    def _json(self, method: str, path: str, request: dict[str, Any] | None) -> dict[str, Any]:
        def read(answer: Any) -> dict[str, Any]:
            with answer:
                found: dict[str, Any] = json.load(answer)
                return found

        return self._asked(method, path, request, read)

    def _asked(
        self,
        method: str,
        path: str,
        request: dict[str, Any] | None,
        read: Callable[[Any], Answer],
    ) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if request is None else json.dumps(request).encode()
        asked = urllib.request.Request(self._url + path, data, headers, method=method)
        for again in range(self._retries + 1):
            pause = PAUSE_S * 2**again
            try:
                return read(urllib.request.urlopen(asked, timeout=self._timeout))
            except urllib.error.HTTPError as refusal:
                fault = _error(refusal)
                if again == self._retries or not _passes(fault):
                    raise fault from None
                pause = float(
                    refusal.headers.get("Retry-After", 1 if fault.status == 429 else pause)
                )
            except (ConnectionError, http.client.HTTPException):
                if again == self._retries:
                    raise
            except urllib.error.URLError as broken:
                if again == self._retries or not isinstance(broken.reason, ConnectionError):
                    raise
            time.sleep(pause)
        raise AssertionError


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")


def _passes(fault: ServerError) -> bool:
    """Whether to ask again may help: no room, a server that stops, or a balancer's own fault."""
    return fault.status in (429, 503) or (fault.status >= 500 and fault.kind == "unknown")


def _error(refusal: urllib.error.HTTPError) -> ServerError:
    try:
        fault = json.load(refusal)["error"]
        return ServerError(refusal.code, fault["type"], fault["message"])
    except (ValueError, KeyError, TypeError):
        return ServerError(refusal.code, "unknown", str(refusal.reason))
