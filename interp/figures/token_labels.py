"""Tokens as labels of figures: invisible characters marked, long ones cut, and nothing left that Plotly would render.

Plotly reads `<b>`, `<br>`, `<a href=...>` and `$...$` in any text as markup, and tokens hold all of them.
"""

import html
import unicodedata
from collections.abc import Sequence
from typing import Any

_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(token: str, *, most: int | None = None, spaces: bool = True) -> str:
    """`token` with what cannot be seen made visible: blanks at its ends `␣`, a line break `↵`, others `⟨200B⟩`.

    `spaces=False` leaves the blanks of a token that has more than blanks as they are.
    """
    if not token:
        return "∅"
    if not spaces and token.strip():
        return "".join(_mark(character) for character in token)
    body = token.strip(" ")
    before = len(token) - len(token.lstrip(" ")) if body else len(token)
    after = len(token) - before - len(body)
    said = "␣" * before + "".join(_mark(character) for character in body) + "␣" * after
    return said if most is None or len(said) <= most else said[: most - 1] + "…"


def plotly_text(token: str, *, most: int | None = 12) -> str:
    """`visible(token)` escaped for Plotly's texts and hover boxes."""
    # A zero-width joiner behind "$" keeps MathJax, where it is loaded, from reading "$...$" as a formula.
    return html.escape(visible(token, most=most), quote=False).replace("$", "$\u200d")


def token_ticks(tokens: Sequence[str], *, most: int = 40, letters: int = 12) -> dict[str, Any]:
    """Ticks of an axis on which token i stands at i; of more than `most` tokens every second, third ... is named."""
    step = max(1, -(-len(tokens) // most))
    places = list(range(0, len(tokens), step))
    return {
        "tickmode": "array",
        "tickvals": places,
        "ticktext": [plotly_text(tokens[place], most=letters) for place in places],
    }


def _mark(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    return f"⟨{ord(character):04X}⟩" if unicodedata.category(character) in _UNSEEN else character
