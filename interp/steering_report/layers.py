"""The section on what the fit says of every site: α, ρ and η by layer."""

import math
from typing import TYPE_CHECKING, Any

from interp.sites import Site
from interp.steering.evaluation import SteeringEvaluation

if TYPE_CHECKING:
    from interp.page import Part, Section

_NUMBERS = {
    "alpha_debiased": ("α, less its bias", None),
    "rho": ("ρ: how far the target reads as the source", (0.0, "no leak")),
    "eta": ("η at β = 1", None),
}


def layer_section(found: SteeringEvaluation) -> "Section | None":
    """Figures for the first method that was fitted at several sites, one table for all."""
    from interp.figures.steering_effects import layer_plot
    from interp.page import Figure, Row, Section, Table

    parts: list[Part] = []
    lines: list[list[str]] = []
    for name, one in found.facts["methods"].items():
        rows = site_rows(one["provenance"])
        if len({row["layer"] for row in rows}) > 1 and not parts:
            figures: list[Part] = [
                Figure(layer_plot(rows, key, y_title=title, level=level), f"{title} · {name}")
                for key, (title, level) in _NUMBERS.items()
                if any(_finite(row.get(key)) for row in rows)
            ]
            parts.append(Row(figures, least=390))
        lines += [[name, *_cells(row)] for row in rows]
    if lines:
        parts.append(Table(["method", "site", *(title for title, _ in _NUMBERS.values())], lines, title="Sites"))
    lead = "Known from the fit alone, before any text is generated."
    return Section("What the fit says", parts, lead=lead) if parts else None


def site_rows(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each fitted site: its kind, its layer and the numbers of the fit."""
    rows = []
    for name, one in (provenance.get("sites") or {}).items():
        site = Site.parse(name)
        row = {"site": name, "point": site.point.short, "layer": -1 if site.layer is None else site.layer, **one}
        if _finite(one.get("eta")) and one.get("beta"):
            row["eta"] = one["eta"] / one["beta"] ** 2
        rows.append(row)
    return sorted(rows, key=lambda row: (row["point"], row["layer"]))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["site"]),
        *(format(row[key], ".3g").replace("-", "−") if _finite(row.get(key)) else "−" for key in _NUMBERS),
    ]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
