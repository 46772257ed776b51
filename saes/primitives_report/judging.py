"""The page's section on the judges: agreement, unusable answers, known texts, and labels shuffled."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp.page.numbers import MISSING, number
from interp.stats import fleiss_kappa, wilson
from saes.primitives.results import Coverage, Sample
from saes.primitives_report.numbers import interval

if TYPE_CHECKING:
    from interp.page import Part, Section, Tile

Known = Mapping[str, tuple[int, int]]
_LEAD = (
    "Agreement is over all texts, those of the controls included; an answer that cannot be read is a category of its "
    "own. Judges that share a bias agree without being right, which only texts of known emotion can show."
)


def pairwise(
    samples: list[Sample], judges: tuple[str, ...]
) -> tuple[Float[np.ndarray, "j j"], Float[np.ndarray, "j j"]]:
    """Share of texts on which two judges give the same answer, and Fleiss' kappa of the two; NaN on the diagonal."""
    same, kappa = (np.full((len(judges), len(judges)), math.nan) for _ in range(2))
    for a, b in combinations(range(len(judges)), 2):
        pairs = [(one.votes.get(judges[a]), one.votes.get(judges[b])) for one in samples]
        if pairs:
            same[a, b] = same[b, a] = np.mean([x == y for x, y in pairs])
            options = list(dict.fromkeys(x for pair in pairs for x in pair))
            kappa[a, b] = kappa[b, a] = fleiss_kappa(
                np.array([[(x == option) + (y == option) for option in options] for x, y in pairs])
            )
    return same, kappa


def judge_section(coverage: Coverage, known: Known | None) -> "Section":
    """Tiles and a row for each judge, then how far each two agree."""
    from interp.page import Metrics, Note, Section

    judges, samples = tuple(coverage.judges), [one for cell in coverage.cells for one in cell.samples]
    parts: list[Part] = [Metrics(_tiles(coverage)), _each(judges, samples, known)]
    if lost := [(judge, bad, n) for judge, (bad, n) in coverage.unusable.items() if 2 * bad > n]:
        each = ", ".join(f"{judge} ({bad:,} of {n:,})" for judge, bad, n in lost)
        parts.append(Note(f"Most answers were unusable, because they could not be read or named no option: {each}. "
                          "Each counts as a miss, so these judges can hardly pass a text."))  # fmt: skip
    if not known:
        parts.append(Note("No judge was tried on texts of known emotion, so nothing here says which of them is right."))
    if len(judges) > 1 and samples:
        parts.append(_grids(judges, samples))
    return Section("Judges", parts, lead=_LEAD)


def _tiles(coverage: Coverage) -> "list[Tile]":
    from interp.page import Tile

    tiles = [
        Tile("Fleiss' kappa", number(coverage.kappa, ".2f"), "1: all judges always agree; 0: as often as by chance")
    ]
    if (mixed := coverage.shuffled) is not None and mixed.answers:
        steered = [one for cell in coverage.cells if (one := cell.condition("steered")) is not None]
        hits, answers = sum(one.hits for one in steered), sum(one.answers for one in steered)
        right = number(hits / answers if answers else None, ".2f")
        note = (
            f"of answers name the emotion when emotions are dealt out at random to the steered texts, {mixed.draws} "
            f"times; with the right ones {right}. Then {mixed.strict:.2g} of "
            f"{mixed.cells} emotions pass strictly, with the right ones {coverage.passes('strict')}"
        )
        tiles.append(Tile("Shuffled labels", number(mixed.hits / mixed.answers, ".2f"), note))
    failed, asked = (sum(pair[i] for pair in coverage.unusable.values()) for i in (0, 1))
    note = f"of {asked:,} under all conditions, forced choices and yes or no; each counts as a miss"
    tiles.append(Tile("Unusable answers", f"{failed:,}", note))
    return tiles


def _each(judges: tuple[str, ...], samples: list[Sample], known: Known | None) -> "Part":
    from interp.page import Table

    rows = []
    for judge in judges:
        votes, yes = [one.votes.get(judge) for one in samples], [one.yes.get(judge) for one in samples]
        usable = [vote for vote in votes if vote is not None]
        common = max(dict.fromkeys(usable), key=usable.count, default=None)
        share = f"{common} ({usable.count(common) / len(usable):.0%})" if common is not None else MISSING
        right, tried = (known or {}).get(judge, (0, 0))
        rows.append(
            [
                judge,
                f"{len(votes):,}",
                f"{len(votes) - len(usable):,}",
                f"{yes.count(None):,}",
                share,
                f"{right} of {tried} {interval(wilson(right, tried))}" if tried else "not tried",
            ]
        )
    head = ["judge", "texts", "unusable choices", "unusable yes or no", "commonest answer",
            "right on known texts [95 %]"]  # fmt: skip
    return Table(head, rows, title="Each judge")


def _grids(judges: tuple[str, ...], samples: list[Sample]) -> "Part":
    from interp.figures.sudoku_grids import number_grid
    from interp.figures.token_labels import plotly_text
    from interp.page import Figure, Row

    labels = [plotly_text(judge, most=24) for judge in judges]
    figures = []
    for values, title, caption in zip(
        pairwise(samples, judges),
        ("Same answer", "Fleiss' kappa of each two"),
        (
            "Share of texts on which two judges choose the same.",
            "1: always the same; 0: as often as by chance.",
        ),
        strict=True,
    ):
        if np.isfinite(values).any():
            grid = number_grid(
                values, rows=labels, columns=labels, x_title="judge", y_title="judge", signed="kappa" in title
            )
            figures.append(Figure(grid, title, caption))
    return Row(figures, least=390)
