"""A page open in a browser, with everything it said and asked for."""

from __future__ import annotations

import shutil
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Visit:
    """A window of its own; `faults` are errors and warnings of its console."""

    def __init__(self, browser: Any, **how: Any) -> None:
        settings = {"viewport": {"width": 1280, "height": 800}, "accept_downloads": True} | how
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def open(self, address: str) -> Any:
        """The page, once it is drawn."""
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page

    def selected(self) -> str | None:
        """Name of the chosen node."""
        found = self.page.get_attribute('[role=treeitem][aria-selected="true"]', "data-name")
        return None if found is None else str(found)

    def outside(self, own: str) -> list[str]:
        """Requests that went elsewhere."""
        return [url for url in self.requests if not url.startswith((own, "data:", "blob:"))]

    def wait_to_hear(self, words: str) -> None:
        """Until the line that screen readers are told holds these words."""
        self.page.wait_for_selector(f"#status:has-text('{words}')", state="attached")
