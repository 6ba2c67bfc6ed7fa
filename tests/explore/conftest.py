"""Chromium, where there is one, and a page to open in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.atlases import small_atlas
from support.browser import BROWSER, FLAGS, Visit
from treediffusion.explore import write_page


# Not of the session: while it lives, this thread has a running event loop, and no test another one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no Chromium on the path")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(small_atlas(), tmp_path_factory.mktemp("page") / "explorer.html")


@pytest.fixture
def visiting(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens windows with settings of their own; a fault in any fails the test."""
    opened: list[Visit] = []

    def visit(**how: Any) -> Visit:
        opened.append(Visit(browser, **how))
        return opened[-1]

    yield visit
    for one in opened:
        one.context.close()
    assert [fault for one in opened for fault in one.faults] == []


@pytest.fixture
def visit(visiting: Callable[..., Visit]) -> Visit:
    return visiting()


@pytest.fixture
def page(visit: Visit, file: Path) -> Any:
    return visit.open(file.as_uri())
