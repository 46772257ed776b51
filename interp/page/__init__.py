"""One offline HTML page from parts: `Page(title, subtitle, parts)`; nothing on it is ever loaded from a network."""

from interp.page.browser import ExampleLike, FeatureBrowser, FeatureLike
from interp.page.document import Page
from interp.page.parts import Figure, KeyValues, Metrics, Note, Part, Row, Section, Table, Tile

__all__ = [
    "ExampleLike",
    "FeatureBrowser",
    "FeatureLike",
    "Figure",
    "KeyValues",
    "Metrics",
    "Note",
    "Page",
    "Part",
    "Row",
    "Section",
    "Table",
    "Tile",
]
