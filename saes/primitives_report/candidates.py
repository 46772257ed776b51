"""The page's section on the catalogue: counts by class beside an untrained SAE's, then the candidates themselves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interp.page.numbers import MISSING, number
from saes.primitives.catalogue import KINDS, Candidate, Catalogue, Kind
from saes.primitives_report.numbers import GLUE

if TYPE_CHECKING:
    from interp.page import Part, Section

Promoted = Mapping[int, Sequence[tuple[str, float]]]
TITLES: dict[Kind, str] = {"naming": "Naming-gates", "self": "Selves", "register": "Register modulators"}
_COLUMNS: dict[Kind, tuple[tuple[str, str, str], ...]] = {
    "naming": (("score", "score", ".2f"), ("second", "second emotion", ".2f"), ("hits", "words", ".0f")),
    "self": (("score", "score", ".2f"), ("effect", "1st − 3rd person", "+.3f"), ("hits", "words", ".0f")),
    "register": (("effect", "marked − plain", "+.3f"), ("marked", "marked", ".3f"), ("plain", "plain", ".3f")),
}
_RULES: dict[Kind, str] = {
    "naming": "words: how many of the emotion's words are among the most promoted tokens; score: enrichment of them",
    "self": "promotes first-person words and is more active in the first than in the third person of the same text",
    "register": "mean activation on the marked side of contrast pairs less that on the plain side",
}
_LEAD = (
    "What the decoder rows promote through the unembedding, and what the activations do on contrast pairs; q is the "
    "false discovery rate within a family of tests. A candidate is not yet an effect: that is for the judges below."
)
_NO_CONTROL = (
    "No untrained SAE was searched with the same rules, so the counts cannot be read as discoveries: random features "
    "pass some of these tests as well."
)
_CONTROL = (
    "The same rules were put to an untrained SAE of the same shape. What it yields is what the rules find where "
    "nothing was learned; only what exceeds it is a finding about the trained SAE."
)


_MOST: dict[Kind, int] = {"naming": 3, "self": 12, "register": 8}


def counts(catalogue: Catalogue, untrained: Catalogue | None) -> dict[str, tuple[int, int]]:
    """Candidates of each class in the trained and in the untrained SAE, registers apart."""
    found: dict[str, tuple[int, int]] = {}
    for kind in KINDS:
        for name, category in _groups(catalogue, untrained, kind):
            sides = [len(one.of(kind, category)) if one is not None else 0 for one in (catalogue, untrained)]
            found[name] = (sides[0], sides[1])
    return found


def catalogue_section(
    catalogue: Catalogue, untrained: Catalogue | None, promoted: Promoted, *, most: Mapping[Kind, int] = _MOST
) -> "Section":
    """Counts, then up to `most` candidates (by class) of every category."""
    from interp.figures.literary_cells import count_pairs
    from interp.page import Figure, Note, Section

    parts: list[Part] = [Note(_CONTROL if untrained is not None else _NO_CONTROL)]
    if untrained is not None:
        figure = count_pairs(counts(catalogue, untrained), names=("this SAE", "untrained SAE"))
        caption = "Bars on an axis of square roots; the counts stand at their ends."
        parts.append(Figure(figure, "Candidates, of the SAE and of an untrained one", caption))
    parts += [_table(catalogue, untrained, kind, promoted, most[kind]) for kind in KINDS]
    if (words := _words(catalogue)) is not None:
        parts.append(words)
    return Section("Catalogue", parts, lead=_LEAD)


def _words(catalogue: Catalogue) -> "Part | None":
    """Of every list of words: how many the unembedding has a token for, those that count by their first token, and
    those that are left out."""
    from interp.page import Table

    counted, lost, first = (
        catalogue.facts.get(name, {}) for name in ("words", "words_without_token", "words_by_first_token")
    )
    if not counted:
        return None
    sizes = [(one["usable"], len(first.get(name, ())), len(lost.get(name, ()))) for name, one in counted.items()]
    used, by_first, out = map(sum, zip(*sizes, strict=True))
    title = f"Words: {used - by_first:,} of {used + out:,} have a token of their own in this model and count"
    title += f", {by_first:,} count by their first token; the others do not" if by_first else "; the others do not"
    head = ["words of", "count", "left out", "which"]
    rows = [[name, str(n), str(left), ", ".join(lost.get(name, ())) or MISSING]
            for (name, _), (n, _, left) in zip(counted.items(), sizes, strict=True)]  # fmt: skip
    if by_first:
        head = [*head[:2], "by their first token", *head[2:]]
        rows = [[*row[:2], ", ".join(first.get(name, ())) or MISSING, *row[2:]]
                for row, name in zip(rows, counted, strict=True)]  # fmt: skip
    return Table(head, rows, title=title)


def _groups(catalogue: Catalogue, untrained: Catalogue | None, kind: Kind) -> list[tuple[str, str | None]]:
    if kind != "register":
        return [(TITLES[kind], None)]
    held = [c.category for one in (catalogue, untrained) if one is not None for c in one.of(kind)]
    names = dict.fromkeys([*(n for n in catalogue.facts.get("contrasts", {}) if n != "first person"), *held])
    return [(f"Register: {name}", name) for name in names]


def _table(catalogue: Catalogue, untrained: Catalogue | None, kind: Kind, promoted: Promoted, most: int) -> "Part":
    from interp.page import Note, Table

    found = catalogue.of(kind)
    beside = "not searched" if untrained is None else f"{len(untrained.of(kind)):,}"
    title = f"{TITLES[kind]}: {len(found):,} (untrained SAE: {beside})"
    if not found:
        return Note(f"{title}. No feature passes the rule of this class.")
    names = list(dict.fromkeys(c.category for c in found))
    shown = [c for name in names for c in catalogue.of(kind, name)[:most]]
    if len(shown) < len(found):
        title += f"; the first {most} of each category are shown"
    head = ["category", "feature", *(said for _, said, _ in _COLUMNS[kind]), "q", "promotes"]
    return Table(head, [_row(c, kind, promoted) for c in shown], title=f"{title}. {_RULES[kind].capitalize()}.")


def _row(c: Candidate, kind: Kind, promoted: Promoted) -> list[str]:
    from interp.figures.token_labels import visible

    tokens = promoted.get(c.feature, ())
    numbers = [number(c.scores.get(key), form) for key, _, form in _COLUMNS[kind]]
    words = [visible(token, most=20) for token, _ in tokens]
    # Lines break after every third token only: a narrow screen then scrolls sideways instead of stacking tokens.
    lines = [f"{GLUE}·{GLUE}".join(words[i : i + 3]) for i in range(0, len(words), 3)]
    said = " · ".join(lines) or MISSING
    return [c.category, f"#{c.feature}", *numbers, number(c.scores.get("q"), ".2g"), said]
