"""A server in the tests' own process, and one in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.models import tiny_bundle
from treediffusion.runtime import Engine
from treediffusion.serve.app import make_app


@pytest.fixture(scope="session")
def serving() -> Iterator[Callable[..., TestClient]]:
    """Makes clients of warm servers; the same settings share one."""
    made: dict[str, TestClient] = {}

    def make(**settings: Any) -> TestClient:
        name = repr(settings)
        if name not in made:
            client = TestClient(
                make_app(Engine.load(tiny_bundle(), threads=1), drain=5, **settings),
                raise_server_exceptions=False,
            )
            client.__enter__()
            while client.get("/health/ready").status_code != 200:
                pass
            made[name] = client
        return made[name]

    yield make
    for client in made.values():
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(serving: Callable[..., TestClient]) -> TestClient:
    """Of a server with nothing set."""
    return serving()
