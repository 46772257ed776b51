"""Texts as markup, on every page there is, in a real browser: nothing runs or is asked for, all is shown as it is.

The pages' content security policy is switched off here, so that escaping alone has to hold.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser_tab import chromium, needs_chromium
from tests.hostile_text import ALL, PAGES, PAYLOADS, SLOW, as_shown, inspected

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PAGES]
)
def test_hostile_text_stays_text(browser: Any, tmp_path: Path, name: str):
    found = inspected(browser, PAGES[name](tmp_path / "page.html"))
    assert found["ran"] is None
    assert not found["complaints"] and not found["asked"]
    assert not found["handlers"] and not found["foreign"] and not found["links"]
    assert not found["scripts"] and not found["refreshes"] and not found["styles"] and not found["hidden"]
    wanted = PAYLOADS if name == "primitives report" else (ALL,)
    if name != "notebook values":  # there what cannot be seen is marked
        assert all(as_shown(text) in found["text"] for text in wanted)
    assert "<img src=x onerror=window.pwned=3>" in found["text"] and "</script><script>" in found["text"]


def test_an_unescaped_page_would_be_found_out(browser: Any, tmp_path: Path):
    """The converse: each kind of thing that the test looks for is seen where it is."""
    path = tmp_path / "page.html"
    texts = [text for text in PAYLOADS if text != "<!--" and "refresh" not in text]  # the one hides, the other leaves
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(texts)}</body>")
    found = inspected(browser, path)
    assert found["ran"] and found["handlers"] and found["foreign"] and found["links"] and found["asked"]
    assert found["complaints"] and found["styles"]
