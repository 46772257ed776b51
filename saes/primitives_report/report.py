"""The page of a run on literary primitives: candidates, coverage, texts, judges, searches, cost, and what is not shown.

    write_primitives_report("report.html", catalogue=catalogue, untrained=untrained, coverage=coverage,
                            provenance={"model": "SmolLM2-135M-Instruct", "site": "blocks.15.hook_resid_post"})

After arXiv 2605.18808, of which only the abstract was at hand; rules, controls and criteria are this project's own.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from interp.errors import InputError
from interp.page.numbers import MISSING, number
from interp.stats import wilson
from saes.primitives.catalogue import Catalogue
from saes.primitives.results import Coverage
from saes.primitives_report.candidates import Promoted, catalogue_section
from saes.primitives_report.coverage_section import STEERED, coverage_section, fluency_section, names_of
from saes.primitives_report.judging import Known, judge_section
from saes.primitives_report.numbers import chance, interval, plain
from saes.primitives_report.samples import sample_section, search_section

if TYPE_CHECKING:
    from interp.page import Section, Tile

_FOOTER = (
    "In the manner of arXiv 2605.18808, of which only the abstract was at hand. Rules, controls, criteria, intervals "
    "and the search are this project's own."
)
_LIMITS = (
    "A candidate of the catalogue promotes words or tells contrast pairs apart; this does not show that the model uses "
    "the feature so. Causal is only what steering shows, and only for the strengths, prompts and seeds tried.",
    "Steering towards an emotion can work by making the model name it. A text that names joy and one that evokes it "
    "count alike here.",
    "Where a control hits about as often as the recipe, nothing is shown about the features: the prompts, a judge's "
    "favourite answer or any disturbance of that size would do the same. “Prompt only” says how far words alone go.",
    "Judges are models. Their agreement is not their validity, and no human judged these texts. Emotions share texts "
    "of the same prompts, so totals over emotions are not independent trials; nothing is corrected for the number of "
    "emotions tried.",
    "One model, one site, one SAE, English prompts, one set of categories: nothing is said about others.",
)


def write_primitives_report(
    path: str | os.PathLike[str],
    *,
    catalogue: Catalogue,
    untrained: Catalogue | None,
    coverage: Coverage,
    provenance: Mapping[str, object],
    promoted: Promoted | None = None,
    known: Known | None = None,
) -> Path:
    """Write the page and return its path.

    `untrained` is the catalogue of an untrained SAE of the same shape by the same rules, or None where none was
    searched (the page then says that counts cannot be read). `provenance` has to name the `"model"`; mappings in it
    become groups. `promoted` are the promoted tokens of features, `known` of every judge (right, tried) on texts of
    known emotion.
    """
    from interp.page import KeyValues, Note, Page, Section

    model = provenance.get("model")
    if not isinstance(model, str) or not model.strip():
        raise InputError(
            "provenance has to name the model under 'model', because its name stands beside every number; got keys "
            f"{sorted(provenance)}"
        )
    width, own = catalogue.facts.get("features"), untrained.facts.get("features") if untrained else None
    if untrained is not None and own != width:
        raise InputError(f"the untrained SAE has {own} features, the SAE {width}; expected the same shape")
    groups = {**provenance, "Coverage": coverage.facts}
    sections: list[Section | None] = [
        _summary(catalogue, untrained, coverage),
        catalogue_section(catalogue, untrained, promoted or {}),
        coverage_section(coverage),
        sample_section(coverage),
        judge_section(coverage, known),
        search_section(coverage),
        fluency_section(coverage),
        Section("What this does not show", [Note(text) for text in _LIMITS]),
        Section("Provenance", [KeyValues({key: plain(value) for key, value in groups.items()})]),
    ]
    site = catalogue.facts.get("site", "")
    subtitle = " · ".join(str(part) for part in (model, site, f"{width:,} features") if part)
    page = Page("Literary primitives", subtitle, [one for one in sections if one is not None], footer=_FOOTER)
    return page.write(path)


def _summary(catalogue: Catalogue, untrained: Catalogue | None, coverage: Coverage) -> "Section":
    from interp.page import Metrics, Section, Tile

    tiles = [_coverage_tile(coverage, "strict"), _coverage_tile(coverage, "soft")]
    held, beside = len(catalogue.candidates), "none was searched"
    if untrained is not None:
        beside = f"{len(untrained.candidates):,} pass in an untrained SAE of the same shape"
    tiles.append(Tile("Candidate features", f"{held:,}", beside))
    tiles.append(
        Tile("Agreement of the judges", number(coverage.kappa), f"Fleiss' kappa of {len(coverage.judges)} judges")
    )
    lead = (
        "Which features of the SAE name an emotion, speak as a self or change the register, and whether adding them "
        "makes the model write texts in which judges find the emotion, beside controls that should not."
    )
    return Section("Summary", [Metrics(tiles)], lead=lead)


def _coverage_tile(coverage: Coverage, rule: Literal["strict", "soft"]) -> "Tile":
    from interp.page import Tile

    totals = {name: coverage.passes(rule, name) for name in names_of(coverage)}
    n, passed = len(coverage.cells), totals.pop(STEERED, 0)
    if not n:
        return Tile(f"Emotions that pass, {rule}", MISSING, "no emotion was tried", headline=rule == "strict")
    controls = ", ".join(f"{name} {k}" for name, k in totals.items()) or "no control was run"
    by_chance = coverage.chance_strict if rule == "strict" else coverage.chance_soft
    note = f"{interval(wilson(passed, n))}; {controls}; chance {chance(by_chance)} each"
    return Tile(f"Emotions that pass, {rule}", f"{passed} of {n}", note, headline=rule == "strict")
