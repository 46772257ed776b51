"""The page's sections on texts and searches: a steered text beside every control's, and how the recipe was found."""

import math
from collections import Counter
from typing import TYPE_CHECKING

from interp.page.numbers import MISSING, number
from saes.primitives.results import Cell, Coverage, Sample
from saes.primitives_report.coverage_section import STEERED, names_of
from saes.primitives_report.numbers import recipe

if TYPE_CHECKING:
    from interp.page import Part, Section

_LEAD = (
    "Of every emotion the texts of its first prompt, one for each seed, as they were written; they are drawn, not "
    "picked. Votes: how many judges chose the emotion, and what the others chose."
)


def sample_section(coverage: Coverage) -> "Section | None":
    """A table for each emotion, the steered text first, then every control."""
    from interp.page import Section

    names = names_of(coverage)
    parts: list[Part] = [_table(cell, names) for cell in coverage.cells if cell.samples]
    return Section("Texts", parts, lead=_LEAD) if parts else None


def _table(cell: Cell, names: list[str]) -> "Part":
    from interp.page import Table

    prompt = cell.samples[0].prompt
    rows = []
    for name in names:
        own = sorted((one for one in cell.samples if one.condition == name), key=lambda one: one.seed)
        seen: dict[int, Sample] = {}
        for one in own:
            if one.seed not in seen or (one.prompt == prompt and seen[one.seed].prompt != prompt):
                seen[one.seed] = one
        rows += [_row(one, cell.emotion) for one in seen.values()]
    title = f"{cell.emotion}: {recipe(cell.chosen)} · “{prompt.strip()}”"
    return Table(["condition", "seed", "votes", "text", "fluency", "repetition"], rows, title=title)


def _row(one: Sample, emotion: str) -> list[str]:
    votes = list(one.votes.values())
    others = Counter(vote or "unusable" for vote in votes if vote != emotion)
    said = ", ".join(f"{name} {n}" if n > 1 else name for name, n in others.most_common(3))
    hits = f"{votes.count(emotion)} of {len(votes)}"
    return [
        one.condition,
        str(one.seed),
        f"{hits}; {said}" if said else hits,
        one.text.strip() or "(nothing)",
        number(one.fluency, ".2f"),
        number(one.repetition, ".2f"),
    ]


def search_section(coverage: Coverage) -> "Section | None":
    """Of every emotion with a search: the score of every trial in order, and the recipe it ended with."""
    from interp.figures.literary_cells import Trial, search_path
    from interp.page import Figure, Row, Section, Table

    figures, rows = [], []
    for cell in coverage.cells:
        if not cell.search:
            continue
        trials = [Trial(recipe(one.spec), one.score) for one in cell.search]
        chosen = next((i for i, one in enumerate(cell.search) if one.spec == cell.chosen), None)
        figures.append(Figure(search_path(trials, y_title="score", chosen=chosen), cell.emotion))
        rows.append([cell.emotion, str(len(trials)), recipe(cell.chosen), *_confirmed(cell, chosen)])
    if not rows:
        return None
    lead = (
        "A search tries features and strengths one after the other; its score is the panel's mean weight of the "
        "emotion less a penalty for lost fluency. The best of many tries flatters itself, so the recipe was then "
        "judged on seeds that the search never saw: only those are in the coverage above. Figures: line, best "
        "score so far; ring, the recipe."
    )
    head = ["emotion", "trials", "recipe, in mean norms", "score in the search", "hit rate on new seeds"]
    return Section("How recipes were found", [Table(head, rows, title="Searches"), Row(figures, least=390)], lead=lead)


def _confirmed(cell: Cell, chosen: int | None) -> list[str]:
    steered = cell.condition(STEERED)
    fresh = steered.hits / steered.answers if steered is not None and steered.answers else math.nan
    return [MISSING if chosen is None else number(cell.search[chosen].score, ".3f"), number(fresh, ".2f")]
