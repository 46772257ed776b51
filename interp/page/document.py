"""The page: parts in, one HTML file out that holds all it needs.

A content security policy inside the file forbids every request and every script but the ones written here (by the hash
of their text), so that the page is offline by construction and an injected handler or script would not run.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from interp.page.escape import slug, text
from interp.page.parts import Part, Section
from interp.sealing import write_sealed


@dataclass(frozen=True)
class Page:
    """One offline HTML page. `subtitle` is what must be read beside every number on it: which model, which site."""

    title: str
    subtitle: str
    parts: Sequence[Part]
    footer: str = ""

    def html(self) -> str:
        """The whole document."""
        needed = tuple(dict.fromkeys(asset for part in self.parts for asset in part.assets))
        styles = [asset(name) for name in ("page.css", *(name for name in needed if name.endswith(".css")))]
        scripts = [asset(name) for name in needed if not name.endswith(".css")]
        sections = [part for part in self.parts if isinstance(part, Section)]
        body = "".join(part.render(self._anchor(part, number)) for number, part in enumerate(self.parts, 1))
        links = "".join(f'<a href="#{part.anchor}">{text(part.title)}</a>' for part in sections)
        nav = f'<nav aria-label="Sections">{links}</nav>' if links else ""
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(scripts)}\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
            f"<title>{text(self.title)}</title>\n<style>\n{''.join(styles)}</style>\n</head>\n<body>\n"
            f'<a class="skip" href="#content">Skip to content</a>\n<header><h1>{text(self.title)}</h1>'
            f'<p class="subtitle">{text(self.subtitle)}</p>{nav}</header>\n<main id="content">\n'
            '<noscript><p class="prose">The plots and lists on this page need JavaScript.</p></noscript>\n'
            f"{body}\n</main>\n<footer>{text(self.footer)}</footer>\n"
            f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, whole or not at all; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, self.html())
        return path

    @staticmethod
    def _anchor(part: Part, number: int) -> str:
        return part.anchor if isinstance(part, Section) else slug(f"part {number}")


def asset(name: str) -> str:
    """The text of a packaged asset; `"plotly"` is plotly.js as the installed plotly carries it (about 5 MB)."""
    if name == "plotly":
        from plotly.offline import get_plotlyjs

        return get_plotlyjs()
    return files("interp.page").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    allowed = hashes or "'none'"
    # Plotly writes its own style rules and saves images through data: and blob: addresses.
    rules = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
