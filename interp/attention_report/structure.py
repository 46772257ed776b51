"""Sections of a survey's page on how heads are built: depth, eigenvalues, nulls, spectra."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.attention.survey_config import parse_head
from interp.attention.survey_summary import METRICS, OBJECTS, RANKS, values
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.attention.survey_result import ModelSurvey
    from interp.page import Part, Section

_CLOUDS = 4
_SCORED = METRICS | {
    "routing_erank1": "routing: effective rank, exp H(σ)",
    "routing_r90": "routing: rank at 90 %",
    "filtering_erank1": "filtering: effective rank, exp H(σ)",
    "filtering_r90": "filtering: rank at 90 %",
}


def depth_section(surveys: Sequence["ModelSurvey"]) -> "Section | None":
    """Ranks and routing fractions against depth, for each model that has any."""
    from interp.figures.attention_depth import depth_plot
    from interp.page import Figure, Row, Section

    figures: list[Part] = []
    for one in surveys:
        width = max(values(one.rows, "capacity"), default=math.nan)
        level = (float(width), f"capacity {width:.0f}") if math.isfinite(width) else None
        for rank, title in (("r90", "Rank at 90 % of the energy"), ("erank1", "Effective rank, exp H(σ)")):
            held = _held(one, {name: f"{prefix}routing_{rank}" for name, prefix in OBJECTS.items()})
            if held:
                plot = depth_plot(one.rows, held, y_title="rank of routing (log scale)", log=True, level=level)
                figures.append(Figure(plot, f"{title} · {one.name}", "Median over a layer's heads, and quartiles."))
        held = _held(one, {name: f"{prefix}routing_fraction" for name, prefix in OBJECTS.items()})
        if held:
            half = (0.5, "random weights")
            plot = depth_plot(one.rows, held, y_title="routing fraction", bounds=(0, 1), level=half)
            figures.append(
                Figure(
                    plot, f"Routing fraction · {one.name}", "‖A‖² / ‖M‖²: median over a layer's heads, and quartiles."
                )
            )
    lead = (
        "Ranks of the routing part and its share of the energy, by layer: what the weight kernel allows, and what text "
        "makes of it in three gauges."
    )
    return Section("Depth", [Row(figures)], lead=lead) if figures else None


def eigenvalue_section(surveys: Sequence["ModelSurvey"]) -> "Section | None":
    """Eigenvalues of up to four layers of each model, each head's in units of its own norm."""
    from interp.figures.attention_spectra import eigenvalue_cloud
    from interp.page import Figure, Row, Section

    rows: list[Part] = []
    for one in surveys:
        arrays = one.arrays()
        if "eigenvalues_real" not in arrays:
            continue
        real, imag = arrays["eigenvalues_real"], arrays["eigenvalues_imag"]
        scaled = {layer: _scaled(one, layer, real[layer] + 1j * imag[layer]) for layer in _spread(sorted(real))}
        scaled = {layer: found for layer, found in scaled.items() if found.size}
        if not scaled:
            continue
        reach = 1.06 * max(float(np.abs(np.stack([z.real, z.imag])).max()) for z in scaled.values())
        titles = {layer: f"{len(z)} heads" for layer, z in scaled.items()}
        rows.append(
            Row(
                [
                    Figure(eigenvalue_cloud(z, extent=reach), f"{one.name} · layer {layer}", titles[layer])
                    for layer, z in scaled.items()
                ],
                least=290,
            )
        )
    lead = (
        "Eigenvalues of the weight kernel in the complex plane, each head in units of its Frobenius norm; diamonds "
        "mark each head's rightmost. Right of the vertical line a head amplifies some direction of itself."
    )
    return Section("Eigenvalues", rows, lead=lead) if rows else None


def null_section(surveys: Sequence["ModelSurvey"]) -> "Section | None":
    """z-scores against matched nulls, and all definitions of rank on the same heads."""
    from interp.figures.attention_nulls import rank_definitions, z_plot
    from interp.figures.attention_style import column
    from interp.page import Figure, Row, Section

    rows: list[Part] = []
    for one in surveys:
        figures: list[Part] = []
        scores = {title: column(one.rows, f"z_{name}") for name, title in _SCORED.items()}
        scores = {title: found for title, found in scores.items() if np.isfinite(found).any()}
        if scores:
            draws = one.parts["kernel"]["settings"]["draws"]
            caption = (
                f"All heads against {draws} draws each with the same singular values. Boxes: quartiles; whiskers: 5th "
                "to 95th percentile; grey: |z| < 2."
            )
            figures.append(Figure(z_plot(scores), f"Against the matched null · {one.name}", caption))
        ranks = {
            name: {title: column(one.rows, f"{prefix}routing_{rank}") for rank, title in RANKS.items()}
            for name, prefix in OBJECTS.items()
        }
        if any(np.isfinite(found).any() for of in ranks.values() for found in of.values()):
            caption = (
                "The same heads under each definition: median over all heads, and quartiles. Of the weight kernel, and "
                "of what text makes of it in three gauges."
            )
            figures.append(Figure(rank_definitions(ranks), f"What rank means · {one.name}", caption))
        if figures:
            rows.append(Row(figures, least=520))
    return Section("Nulls and definitions", rows) if rows else None


def spectra_section(surveys: Sequence["ModelSurvey"], heads: Sequence[str] = ()) -> "Section | None":
    """Spectra of chosen heads; without a choice those with the largest and the smallest routing fraction."""
    from interp.figures.attention_spectra import head_spectrum
    from interp.page import Figure, Row, Section

    figures: list[Part] = []
    for one in surveys:
        arrays = one.arrays()
        if "routing" not in arrays:
            continue
        for layer, head in _heads(one, heads):
            row = next(r for r in one.rows if (r["layer"], r["head"]) == (layer, head))
            norm = math.sqrt(row.get("energy") or 0.0)
            if norm == 0:
                continue
            planes, modes = (arrays[name][layer][head] / norm for name in ("routing", "filtering"))
            caption = f"Routing fraction {row['routing_fraction']:.3f}. Values in units of the head's Frobenius norm."
            figures.append(Figure(head_spectrum(planes, modes), f"{one.name} · head {layer}.{head}", caption))
    lead = "Singular values of the kernel's routing part, and eigenvalues of its filtering part by size."
    return Section("Spectra of heads", [Row(figures)], lead=lead) if figures else None


def _held(one: "ModelSurvey", columns: Mapping[str, str]) -> dict[str, str]:
    return {title: name for title, name in columns.items() if values(one.rows, name).size}


def _spread(layers: Sequence[int]) -> list[int]:
    """Up to four layers, first and last among them, evenly apart."""
    places = np.linspace(0, len(layers) - 1, min(_CLOUDS, len(layers))).round().astype(int)
    return [layers[place] for place in places]


def _scaled(one: "ModelSurvey", layer: int, values: np.ndarray) -> Any:
    """Eigenvalues of a layer's heads over their Frobenius norms; zero heads are left out."""
    energy: dict[int, Any] = {row["head"]: row.get("energy") for row in one.rows if row["layer"] == layer}
    kept = [head for head in range(len(values)) if energy.get(head)]
    return np.stack([values[head] / math.sqrt(energy[head]) for head in kept]) if kept else values[:0]


def _heads(one: "ModelSurvey", asked: Sequence[str]) -> list[tuple[int, int]]:
    held = {(row["layer"], row["head"]): row for row in one.rows if row.get("routing_fraction") is not None}
    if not asked:
        order = sorted(held, key=lambda place: held[place]["routing_fraction"])
        return list(dict.fromkeys([order[-1], order[0]])) if order else []
    chosen = [parse_head(name) for name in asked]
    if absent := [place for place in chosen if place not in held]:
        layer, head = absent[0]
        layers, heads = sorted({place[0] for place in held}), max(place[1] for place in held) + 1
        raise InputError(
            f"head {layer}.{head} was not measured in {one.name}: layers {layers[0]} to {layers[-1]}, heads 0 to "
            f"{heads - 1} were"
        )
    return chosen
