"""Around the routes: keys, sizes, slow bodies and readers, headers, request ids, and metrics.

Plain ASGI, because what is refused here must not be read first.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .limits import Limits
from .metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health/", "/v2/health/")
"""Paths that need no key: what a load balancer asks."""
PAGES = ("/openapi.json",)
"""What says how to ask needs no key."""
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Refusal(HTTPException):
    """An answer before the routes are reached, or while they read the body."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, message)
        self.kind = kind


class SlowReaderError(OSError):
    """A client leaves its answer unread; an OSError is what ASGI has for one that is gone."""


class Guard:
    """The middleware.

    Args:
        app: what is guarded.
        keys: of those who may ask; none asks for none.
        limits: of bodies.
        metrics: told of every request.
    """

    def __init__(self, app: App, *, keys: Sequence[str], limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, started = time.perf_counter(), 500, False
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        scope["request_id"] = identity = given if ID.fullmatch(given) else secrets.token_hex(8)

        async def answer(message: Message) -> None:
            """`send`, to a client that reads."""
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                own = [*HEADERS, (b"x-request-id", identity.encode())]
                # A page may bring a policy of its own; everything else may do nothing at all.
                told = {name.lower() for name, _ in message["headers"]}
                if b"content-security-policy" not in told:
                    own.append(
                        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
                    )
                message["headers"] = [*message["headers"], *own]
            try:
                async with asyncio.timeout(self._limits.write_timeout):
                    await send(message)
            except TimeoutError:
                self._metrics.rejected.labels("slow").inc()
                raise SlowReaderError from None

        try:
            self._check_key(scope["path"], headers)
            await self._app(scope, self._bounded(headers, receive), answer)
        except Refusal as refusal:
            if started:
                raise
            await _refuse(refusal, answer)
        except (SlowReaderError, ClientDisconnect):
            pass  # the connection is closed; there is nobody to tell
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.duration.labels(route).observe(time.perf_counter() - began)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if not self._keys or path.startswith(OPEN) or path in PAGES:
            return
        given = _given_key(headers.get(b"authorization", b""))
        # Every key is compared, each in constant time: an answer's time tells nothing.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(matches):
            self._metrics.rejected.labels("key").inc()
            raise Refusal(
                401, "unauthorized", "authorization: expected 'Bearer' and a key of this server"
            )

    def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """`receive`, for bodies of a bounded size that arrive in a bounded time."""
        limit, read, complete = self._limits.max_body, 0, False
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            raise self._too_large(limit)

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()  # the client's leaving, whenever that is
            try:
                async with asyncio.timeout(self._limits.body_timeout):
                    message = await receive()
            except TimeoutError:
                self._metrics.rejected.labels("slow").inc()
                raise Refusal(408, "timeout", "body: it did not arrive in time") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > limit:
                raise self._too_large(limit)
            return message

        return bounded

    def _too_large(self, limit: int) -> Refusal:
        self._metrics.rejected.labels("size").inc()
        return Refusal(413, "too_large", f"body: expected at most {limit} bytes")


def _given_key(authorization: bytes) -> bytes:
    """The key in a header: `Bearer KEY`, or a browser's `Basic` with the key as the password."""
    kind, _, given = authorization.partition(b" ")
    if kind.lower() == b"bearer":
        return given.strip()
    if kind.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
    return b""


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": {"type": refusal.kind, "message": refusal.detail, "name": None}})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if refusal.status_code == 401:
        headers += [
            (b"www-authenticate", b"Bearer"),
            (b"www-authenticate", b"Basic realm=treediffusion"),
        ]
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
