"""The server's socket: what holds before a request is whole, and nobody's key was seen.

uvicorn takes a parser in C where there is one, which reads heads of any length into memory, and
waits for their end for ever. So the one in Python is named here, whose heads are bounded, and gets
a clock.
"""

from __future__ import annotations

import gc
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""Seconds after which a connection without a whole head is closed; twice as many at most."""
HEAD_BYTES = 2**15
CONNECTIONS = 1024


class Impatient(H11Protocol):
    """A connection that closes where the head of a request does not come."""

    def connection_made(self, transport: Any) -> None:
        """As of asyncio."""
        super().connection_made(transport)
        self._clock = self.loop.call_later(HEAD_S, self._look, None, True)

    def connection_lost(self, exc: Exception | None) -> None:
        """As of asyncio."""
        self._clock.cancel()
        super().connection_lost(exc)

    def _look(self, before: object, waited: bool) -> None:
        """Closes a connection that waits for the same request as one look ago."""
        waits = self.cycle is None or self.cycle.response_complete
        if waits and waited and self.cycle is before:
            self.transport.abort()
        else:
            self._clock = self.loop.call_later(HEAD_S, self._look, self.cycle, waits)


def listen(app: Any, *, host: str, port: int, drain: float) -> None:
    """Serves until a signal.

    Args:
        app: the application.
        host: address to listen at.
        port: likewise.
        drain: seconds that requests underway get then.
    """
    # What is loaded by now stays: no later collection looks through it while requests wait.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app, host=host, port=port, http=Impatient, h11_max_incomplete_event_size=HEAD_BYTES,
        log_level="warning", server_header=False, limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(drain) + 1,
    )  # fmt: skip
