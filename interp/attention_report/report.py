"""The page of a survey: what every number is of, how to read it, and the figures. Results of surgery and twins join it.

write_report("survey.html", [ModelSurvey.load("runs/survey/gpt2"), ...], results=["runs/surgery.json"])
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.attention.survey_summary import BEHAVIOUR, METRICS, OBJECTS, RANKS, beyond, positive, values
from interp.errors import InputError
from interp.page.numbers import MISSING, number

if TYPE_CHECKING:
    from interp.attention.survey_result import ModelSurvey
    from interp.page import Part, Section

PAPER = "The Routing and Filtering Structure of Attention (Jamil and Kapadia 2026, arXiv 2605.18826)"
_PART_NAMES = {
    "kernel": "weight kernel",
    "rope": "rotary sectors",
    "operating": "operating interaction",
    "behaviour": "behaviour",
}
_COLUMNS = {
    "routing_fraction": ("routing fraction", ".3f"),
    "symmetry": ("symmetry", "+.3f"),
    "directionality": ("directionality", "+.3f"),
    "rotation_share": ("rotation share", ".3f"),
    "henrici": ("non-normality", ".3f"),
    "routing_r90": ("rank: kernel", ".0f"),
    "op_raw_routing_r90": ("raw", ".0f"),
    "op_key_centred_routing_r90": ("key-centred", ".0f"),
    "op_double_centred_routing_r90": ("doubly centred", ".0f"),
}
_GLOSSARY = {
    "routing": "the skew-symmetric part A = (M − Mᵀ)/2: what one position passes to another and not back",
    "filtering": "the symmetric part S = (M + Mᵀ)/2: mutual relevance",
    "weight kernel": "M = W_Q W_Kᵀ, as wide as the residual stream, of rank e at most; its parts have rank 2e at most",
    "operating": "M = q kᵀ of one window of text, after biases, norms and rotation, positions × positions",
    "routing fraction": "‖A‖² / ‖M‖²; 0.5 for random weights",
    "symmetry": "tr M² / ‖M‖² = 1 − 2 × routing fraction",
    "rotation share": "Σ|Im λ| / Σ|λ| over the eigenvalues of M",
    "non-normality": "√(‖M‖² − Σ|λ|²) / ‖M‖ (Henrici)",
    "directionality": "excess of large row norms over large column norms, −1 to 1; negative: few large columns",
    "random weights": "heads of independent Gaussian numbers of the same shape; abscissae scale with the head, so none",
    "matched null": "the same singular values of M in random orientations; z is in its standard deviations",
    "previous token, duplicate token, induction": "attention paid to the position before, to earlier copies of the "
    "token, to what followed them, on repeated random tokens",
    "sink share": "attention paid to position 0",
}

_GAUGE = """The softmax does not see everything that is split here. Adding one number to all scores of a query changes
no attention, and taking the mean out of the keys does just that: attention and perplexity stay as they are, but routing
and filtering become different. A head that only looks at one fixed position has routing of rank 2 and a routing
fraction of one half in the raw gauge. So low rank, rank 2 included, can come from a sink. Raw, key-centred and doubly
centred figures stand side by side for that reason, and none of them is the true one; double centring, which takes the
mean out of the queries too, does change attention."""
_MASK = """A causal model never uses the score of a later position. The unused half of the square could be filled in so
that routing vanishes, or filtering, without any change to the model. Figures here are of the whole square: they
describe the bilinear form, not the masked attention."""
_CONVENTIONS = """The kernel depends on conventions: whether a norm's gain is folded into it, whether biases are part of
it. They are listed under provenance. The operating interaction depends on none of them, but on the text."""


def write_report(
    path: str | os.PathLike[str],
    surveys: Sequence["ModelSurvey"],
    *,
    results: Sequence[str | Path] = (),
    heads: Sequence[str] = (),
) -> Path:
    """Write the page; `results` are JSON files of surgery and of trained twins, `heads` those whose spectra are drawn.

    Without a survey the page holds the results alone.
    """
    from interp.attention_report.behaviour import behaviour_section, rope_section
    from interp.attention_report.results import result_sections
    from interp.attention_report.structure import depth_section, eigenvalue_section, null_section, spectra_section
    from interp.page import Page

    more = result_sections(results)
    if not surveys and not more:
        raise InputError("there is nothing to report: expected the survey of a model, or a file of results")
    sections: list[Section | None] = []
    if surveys:
        sections += [_summary(surveys), _caveats(surveys), depth_section(surveys), eigenvalue_section(surveys)]
        sections += [null_section(surveys), spectra_section(surveys, heads), behaviour_section(surveys)]
        sections += [rope_section(surveys)]
    sections += more
    if surveys:
        sections.append(_provenance(surveys))
    names = ", ".join(one.name for one in surveys) or "trained twins and surgery"
    note = f"In the manner of {PAPER}; no reproduction of its tables, whose formulas are not known here."
    return Page("Routing and filtering of attention", names, [s for s in sections if s is not None], footer=note).write(
        path
    )


def median(survey: "ModelSurvey", column: str) -> float:
    """Over the heads that have a value; NaN without."""
    found = values(survey.rows, column)
    return float(np.median(found)) if found.size else math.nan


def _summary(surveys: Sequence["ModelSurvey"]) -> "Section":
    from interp.page import Note, Section, Table

    head = ["model", "heads", *(name for name, _ in _COLUMNS.values()), "Re λ > 0 in"]
    lines = []
    for one in surveys:
        found = positive(one.rows, "spectral_abscissa")
        share = MISSING if found is None else f"{number(100 * found['heads'] / found['of'], '.0f')} %"
        cells = [number(median(one, column), form) for column, (_, form) in _COLUMNS.items()]
        lines.append([one.name, f"{len(one.rows):,}", *cells, share])
    lead = (
        "Medians over heads. Ranks are of the routing part, at 90 % of its energy: first as the weight kernel allows "
        "them, then as text uses them in three gauges. Last, the share of heads with an eigenvalue of positive real "
        "part."
    )
    parts: list[Part] = [Table(head, lines, title="Models"), *(_against_null(one) for one in surveys if _has_null(one))]
    parts += [Note(reason) for one in surveys for reason in _reasons(one)]
    return Section("Summary", parts, lead=lead)


def _reasons(one: "ModelSurvey") -> list[str]:
    """Why cells of a model are empty."""
    refused = {name: part["refused"] for name, part in one.parts.items() if part["refused"]}
    return [f"{one.name}: no {_PART_NAMES.get(name, name)}, because {reason}." for name, reason in refused.items()]


def _has_null(one: "ModelSurvey") -> bool:
    return any(f"z_{name}" in row for row in one.rows[:1] for name in METRICS)


def _against_null(one: "ModelSurvey") -> "Part":
    from interp.page import Table

    lines = []
    for name, title in METRICS.items():
        found = values(one.rows, name)
        if not found.size:
            continue
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
        far = (
            number(100 * beyond(one.rows, f"z_{name}"), ".0f") + " %" if values(one.rows, f"z_{name}").size else MISSING
        )
        null, score, chance = (median(one, f"{prefix}{name}") for prefix in ("null_", "z_", "gaussian_"))
        cells = [number(value, ".3g") for value in (middle, low, high, chance, null)]
        lines.append([title, *cells, number(score, "+.1f"), far])
    head = [
        "weight kernel",
        "median",
        "lower quartile",
        "upper quartile",
        "random weights",
        "matched null",
        "median z",
        "heads |z| > 2",
    ]
    return Table(head, lines, title=f"{one.name}: {len(one.rows):,} heads against their nulls")


def _caveats(surveys: Sequence["ModelSurvey"]) -> "Section":
    from interp.page import Note, Section

    notes = [_GAUGE, _MASK, _rank_note(surveys), _abscissa_note(surveys), _CONVENTIONS]
    return Section("How to read this", [Note(note) for note in notes])


def _rank_note(surveys: Sequence["ModelSurvey"]) -> str:
    """How far apart the definitions of rank are on the very same heads."""
    said = []
    for one in surveys:
        for title, prefix in OBJECTS.items():
            found = [median(one, f"{prefix}routing_{rank}") for rank in RANKS if rank != "numerical"]
            found = [rank for rank in found if math.isfinite(rank) and rank > 0]
            if found and prefix != "op_double_centred_":
                said.append(f"{one.name}, {title}: {number(min(found), '.1f')} to {number(max(found), '.1f')}")
    return (
        "A rank is a matter of definition: on the same heads the usual measures differ up to 10 or 20 times. Median "
        "rank of routing by definition, smallest to largest (numerical rank left out): "
        f"{'; '.join(said) or 'not measured here'}. Every measure is 2 at least on a routing part that is not zero, "
        "because its singular values come in equal pairs: 2 means a single plane of rotation, whatever the formula."
    )


def _abscissa_note(surveys: Sequence["ModelSurvey"]) -> str:
    said = []
    for one in surveys:
        found, null = positive(one.rows, "spectral_abscissa"), positive(one.rows, "null_spectral_abscissa")
        if found:
            beside = f", and {null['heads']:,} of {null['of']:,} of their nulls, on average" if null else ""
            said.append(f"{one.name}: {found['heads']:,} of {found['of']:,} heads{beside}")
    return (
        "That an eigenvalue of a head has a positive real part is no finding by itself: random matrices with the same "
        f"singular values have one too. {'; '.join(said) or 'Not measured here'}."
    )


def _provenance(surveys: Sequence["ModelSurvey"]) -> "Section":
    from interp.page import KeyValues, Section

    groups: dict[str, Any] = {}
    for one in surveys:
        shape = one.facts["shape"]
        facts = {
            "family": one.facts["family"],
            "revision": one.facts["revision"] or "–",
            "weights as": one.facts["dtype"],
            "shape": f"{shape['layers']} layers × {shape['heads']} heads ({shape['groups']} of keys) of width "
            f"{shape['e']} in {shape['d']:,}",
        }
        for name, part in one.parts.items():
            settings = ", ".join(f"{key} {_short(value)}" for key, value in part["settings"].items())
            done = f"{len(part['layers'])} layers in {part['seconds']:.0f} s; " if part["layers"] else ""
            facts[_PART_NAMES.get(name, name)] = done + settings
        groups[one.name] = facts
    return Section("Provenance", [KeyValues({**groups, "What the words mean": _GLOSSARY})])


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


__all__ = ["BEHAVIOUR", "median", "number", "write_report"]
