"""A page in a real, headless browser: every request recorded and refused, every complaint kept."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REASON = (
    "no Chromium found (Debian: apt-get install chromium)"
    if CHROMIUM is None
    else "playwright is not installed (pip install 'midlens[report]')"
    if importlib.util.find_spec("playwright") is None
    else ""
)
# In continuous integration a missing browser is a failure, not a skip.
needs_chromium = pytest.mark.skipif(bool(REASON) and not os.environ.get("CI"), reason=REASON)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@contextmanager
def chromium() -> Iterator[Any]:
    """The installed Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """One page. Its requests are refused, but for its own file."""

    def __init__(self, browser: Any, path: Path, *, fragment: str = "", **context: Any) -> None:
        settings = {"viewport": {"width": 1440, "height": 900}} | context
        self.context = browser.new_context(**settings)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.address = path.as_uri()
        self.context.route("**/*", self._refuse)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.address + fragment)
        self.page.wait_for_selector(".detail h3")

    def _refuse(self, route: Any) -> None:
        if route.request.url.split("#")[0] == self.address:
            route.continue_()
        else:
            route.abort()

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def quiet(self) -> bool:
        return not self.complaints and all(url.split("#")[0] == self.address for url in self.requests)

    @property
    def count(self) -> str:
        return self.page.inner_text(".count")

    @property
    def chosen(self) -> int:
        return int(self.page.inner_text(".detail h3").removeprefix("Feature "))

    def visible(self) -> list[int]:
        return self.page.eval_on_selector_all(".option", "all => all.map(one => Number(one.dataset.index))")

    def search(self, query: str, scope: str = "anywhere") -> None:
        self.page.select_option(".browser select", scope)
        self.page.fill(".browser input", query)
