"""Sections of a survey's page on what heads do beside how they are built, and on rotary kernels."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.attention.survey_summary import BEHAVIOUR, values
from interp.attention_report.report import number

if TYPE_CHECKING:
    from interp.attention.survey_result import ModelSurvey
    from interp.page import Part, Section

_STRUCTURE = {"routing_fraction": "routing fraction of the kernel", "rotation_share": "rotation share of the kernel"}
_INSTEAD = {"op_key_centred_routing_fraction": "routing fraction, key-centred"}
_SECTORS = {
    "content symmetric, offset even (filters)": "rope_even_symmetric",
    "content skew, offset odd (filters)": "rope_odd_skew",
    "content skew, offset even (routes)": "rope_even_skew",
    "content symmetric, offset odd (routes)": "rope_odd_symmetric",
}


def behaviour_section(surveys: Sequence["ModelSurvey"]) -> "Section | None":
    """Each behaviour against routing fraction and rotation share, one point a head."""
    from interp.figures.attention_scatter import THIRDS, head_scatter, spearman
    from interp.page import Figure, Row, Section

    rows: list[Part] = []
    for one in surveys:
        structure = {name: title for name, title in _STRUCTURE.items() if values(one.rows, name).size} or {
            name: title for name, title in _INSTEAD.items() if values(one.rows, name).size
        }
        figures: list[Part] = []
        for x, x_title in structure.items():
            for y, y_title in BEHAVIOUR.items():
                if not values(one.rows, y).size:
                    continue
                rho, n = spearman(one.rows, x, y)
                said = f"ρ = {number(rho, '+.2f')} over {n:,} heads" if math.isfinite(rho) else f"{n:,} heads"
                plot = head_scatter(one.rows, x, y, x_title=x_title, y_title="share of attention")
                figures.append(Figure(plot, f"{y_title[0].upper()}{y_title[1:]} · {one.name}", said))
        if figures:
            rows.append(Row(figures, least=290))
    marks = ", ".join(f"{name} {mark}" for name, mark in THIRDS.items())
    lead = (
        f"Scores on repeated random tokens against the structure of the kernel, by thirds of the depth: {marks}. ρ is "
        "Spearman's. Heads of a layer are not independent, so no significance is given."
    )
    return Section("Behaviour", rows, lead=lead) if rows else None


def rope_section(surveys: Sequence["ModelSurvey"]) -> "Section | None":
    """Energies of the four sectors by layer, and routing against the offset."""
    from interp.figures.attention_curves import curves, share_bars
    from interp.page import Figure, Row, Section

    figures: list[Part] = []
    for one in surveys:
        if not values(one.rows, "rope_even_symmetric").size:
            continue
        offsets = one.parts["rope"]["settings"]["offsets"]
        plot = share_bars(one.rows, _SECTORS, y_title="share of energy")
        caption = f"Mean over a layer's heads, offsets 0 to {offsets - 1}."
        figures.append(Figure(plot, f"Four sectors · {one.name}", caption))
        for name, title in (
            ("offset_routing_fraction", "routing fraction of M(Δ)"),
            ("offset_phase_fraction", "share of routing through the phase"),
        ):
            held = one.arrays()[name]
            layers = sorted(held)
            picked = dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]])
            series = {f"layer {layer}": _median_curve(held[layer]) for layer in picked}
            plot = curves(series, x_title="offset Δ between query and key, tokens", y_title=title)
            figures.append(Figure(plot, f"{title[0].upper()}{title[1:]} · {one.name}", "Median over a layer's heads."))
    lead = (
        "With rotary positions the kernel depends on the offset: M(Δ). Swapping two positions with their contents "
        "splits it into routing and filtering, and each has a part that is even in the offset and one that is odd. A "
        "head whose kernel is symmetric at offset 0 can still route, through the phase."
    )
    return Section("Rotary positions", [Row(figures)], lead=lead) if figures else None


def _median_curve(values: "object") -> list[tuple[float, float]]:
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    kept = array[np.isfinite(array).any(axis=1)]
    middles = np.nanmedian(kept, axis=0) if len(kept) else []
    return [(float(offset), float(value)) for offset, value in enumerate(middles)]
