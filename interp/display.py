"""How values show themselves: one line where text is shown, a short table in a notebook.

A class lists its facts once, `facts() -> {name: value}`; `one_line` and `html_table` say them in the two ways. Values
are escaped, and nothing is computed for the sake of being shown.
"""

import html
from collections.abc import Mapping
from typing import Any

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top"
_LONGEST = 160


def one_line(name: str, facts: Mapping[str, Any]) -> str:
    """`Name(first, key 3, other 1,024)`: the facts behind the first word that is the object's own name, on one line."""
    said = ", ".join(f"{key} {_said(value)}" for key, value in facts.items() if value is not None)
    return " ".join(f"{name}({said})".split())


def html_table(name: str, facts: Mapping[str, Any]) -> str:
    """The same as a table with the class's name above; facts without a value are left out."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:500">{html.escape(key)}</th>'
        f'<td style="{_CELL}">{html.escape(_said(value))}</td></tr>'
        for key, value in facts.items()
        if value is not None
    )
    return f"<div><b>{html.escape(name)}</b><table>{rows}</table></div>"


class Shown:
    """Gives a class its `repr` and its notebook table from `_facts()`."""

    def _facts(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return one_line(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._facts())


class ShownModel(Shown):
    """A `HookedModel`: what it is, how much of it is loaded, and where its preset reads."""

    def _facts(self) -> Mapping[str, Any]:
        model: Any = self
        spec, loaded = model.cfg, model.loaded_layers
        return {
            "name": model.name,
            "family": spec.family,
            "layers": spec.n_layers if loaded == spec.n_layers else f"{loaded} of {spec.n_layers} loaded",
            "d_model": spec.d_model,
            "heads": f"{spec.n_heads} ({spec.n_kv_heads} for keys and values), d_head {spec.d_head}",
            "vocabulary": spec.d_vocab,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }


class ShownEdit(Shown):
    """An edit of `interp.steering.edits`: width, rank where it has one, and its own numbers."""

    def _facts(self) -> Mapping[str, Any]:
        edit: Any = self
        return {"d": edit.d, "rank": getattr(edit, "rank", None), **edit.facts()}


def _said(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
