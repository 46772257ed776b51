"""What a page is made of: metric tiles, tables, key-value lists, notes, figures, and rows and sections of these.

A part turns itself into HTML with `render(anchor)`, where `anchor` is an id no other part of the page has, and names
the asset files it needs in `assets`; the page includes each asset once. Every text is escaped here; none is HTML.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import InputError
from interp.page.escape import json_block, slug, text

_LEADING_OUT = re.compile(r"<(?!/?(?:br|b|i|em|strong|sub|sup|extra) ?/?>)")
_WIDTH, _GAP = 1272, 14  # of the content on a wide screen and between parts, in pixels: page.css


class Part(ABC):
    """Anything that can stand on a page."""

    @property
    def assets(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def render(self, anchor: str) -> str: ...


@dataclass(frozen=True)
class Tile:
    """One number with what it means: `value` large, `unit` beside it, `note` below; `headline` sets it apart."""

    label: str
    value: str
    note: str = ""
    unit: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Metrics(Part):
    """A grid of tiles."""

    tiles: Sequence[Tile]

    def render(self, anchor: str) -> str:
        return f'<dl class="tiles" id="{anchor}">{"".join(map(self._tile, self.tiles))}</dl>'

    @staticmethod
    def _tile(tile: Tile) -> str:
        unit = f' <span class="unit">{text(tile.unit)}</span>' if tile.unit else ""
        note = f'<dd class="note">{text(tile.note)}</dd>' if tile.note else ""
        kind = "tile headline" if tile.headline else "tile"
        value = f'<dd class="value">{text(tile.value)}{unit}</dd>'
        return f'<div class="{kind}"><dt>{text(tile.label)}</dt>{value}{note}</div>'


@dataclass(frozen=True)
class Note(Part):
    """A paragraph."""

    body: str

    def render(self, anchor: str) -> str:
        return f'<p class="prose" id="{anchor}">{text(self.body)}</p>'


@dataclass(frozen=True)
class Table(Part):
    """Rows of cells under column names. Numbers (cells that are not `str`) stand right; `title` is the caption."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(f"a table of {len(self.columns)} columns got a row of {len(row)} cells: {list(row)!r}")

    def render(self, anchor: str) -> str:
        numeric = [
            bool(self.rows) and all(_is_number(row[column]) for row in self.rows) for column in range(len(self.columns))
        ]
        kinds = [' class="number"' if number else "" for number in numeric]
        # A column without a name has no header: an empty one is read out as nothing.
        head = "".join(
            f'<th scope="col"{kind}>{text(name)}</th>' if name else f"<td{kind}></td>"
            for name, kind in zip(self.columns, kinds, strict=True)
        )
        body = "".join(
            f"<tr>{''.join(f'<td{kind}>{text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
            for row in self.rows
        )
        caption = f"<caption>{text(self.title)}</caption>" if self.title else ""
        name = text(self.title or "Table")
        return (
            f'<div class="scroll" id="{anchor}" role="group" aria-label="{name}" tabindex="0">'
            f"<table>{caption}<thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class KeyValues(Part):
    """Names and values, such as where numbers come from; a mapping among the values becomes a group of its own."""

    items: Mapping[str, object]
    title: str = ""

    def render(self, anchor: str) -> str:
        return f'<div class="facts-group" id="{anchor}">{self._group(self.title, self.items)}</div>'

    def _group(self, title: str, items: Mapping[str, object]) -> str:
        plain = {key: value for key, value in items.items() if not isinstance(value, Mapping)}
        heading = f"<h3>{text(title)}</h3>" if title else ""
        facts = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in plain.items())
        body = f'<div class="facts">{heading}<dl>{facts}</dl></div>' if plain else ""
        return body + "".join(
            self._group(str(key), value) for key, value in items.items() if isinstance(value, Mapping)
        )


@dataclass(frozen=True)
class Figure(Part):
    """A Plotly figure (anything with `to_json()`), with a title above and a caption below that says what is seen.

    One with a width of its own keeps it, and is scrolled where the screen is narrower.
    """

    figure: Any
    title: str
    caption: str = ""

    @property
    def assets(self) -> tuple[str, ...]:
        return ("plotly", "figures.js")

    def render(self, anchor: str) -> str:
        caption = f"<p>{text(self.caption)}</p>" if self.caption else ""
        height = int(self.figure.layout.height or 300)
        wide = ' tabindex="0"' if self.figure.layout.width else ""  # what scrolls has to be reached by keys
        label = text(f"{self.title}. {self.caption}".strip())
        return (
            f'<figure class="card" id="{anchor}"><figcaption><h3>{text(self.title)}</h3>{caption}</figcaption>'
            f'<div class="plot" role="group" aria-label="{label}" data-figure="{anchor}-data"{wide} '
            f'style="min-height:{height}px"></div>'
            f"{json_block(_inert(json.loads(self.figure.to_json())), id=f'{anchor}-data')}</figure>"
        )


def _inert(value: Any) -> Any:
    """A figure's data with the tags that Plotly would make links and styles of written out; line breaks and bold stay.

    Any text in a figure may be a name from elsewhere, and `<a href=...>` or `<span style="fill:url(...)">` lead out.
    """
    if isinstance(value, str):
        return _LEADING_OUT.sub("&lt;", value)
    if isinstance(value, dict):
        return {key: _inert(item) for key, item in value.items()}
    return [_inert(item) for item in value] if isinstance(value, list) else value


class _Holder(Part):
    """A part that holds parts."""

    parts: Sequence[Part]

    @property
    def assets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(asset for part in self.parts for asset in part.assets))

    def _inner(self, anchor: str) -> str:
        return "".join(part.render(f"{anchor}-{number}") for number, part in enumerate(self.parts, 1))


@dataclass(frozen=True)
class Row(_Holder):
    """Parts side by side, as many as fit when each is at least `least` pixels wide."""

    parts: Sequence[Part]
    least: int = 390

    def render(self, anchor: str) -> str:
        # As few rows as `least` allows, and these evenly filled: five parts stand as 3 + 2, not as 4 + 1.
        most = max(1, (_WIDTH + _GAP) // (self.least + _GAP))
        rows = -(-len(self.parts) // most) or 1
        columns = -(-len(self.parts) // rows) or 1
        least = (_WIDTH + _GAP) // columns - _GAP
        return (
            f'<div class="row" id="{anchor}" style="--least:{min(least, 2 * self.least)}px">{self._inner(anchor)}</div>'
        )


@dataclass(frozen=True)
class Section(_Holder):
    """Parts under a heading that the page's navigation lists."""

    title: str
    parts: Sequence[Part]
    lead: str = ""

    @property
    def anchor(self) -> str:
        return slug(self.title)

    def render(self, anchor: str) -> str:
        lead = f'<p class="lead">{text(self.lead)}</p>' if self.lead else ""
        return (
            f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{text(self.title)}</h2>'
            f"{lead}{self._inner(anchor)}</section>"
        )


def _is_number(cell: object) -> bool:
    # Formatted numbers ("+0.213", "12.5 %", "1,024") are numbers too.
    if not isinstance(cell, str):
        return not isinstance(cell, bool)
    return bool(cell) and all(mark in "0123456789+-−.,%× e" for mark in cell)
