"""Tables of an evaluation: every point, AxBench's score, texts to read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.page.numbers import MISSING, number
from interp.steering.evaluation import UNSTEERED, Estimate, Point, SteeringEvaluation

if TYPE_CHECKING:
    from interp.page import Part, Section

_COLUMNS = "point, score, change, KL, ΔCE, p, wrong way, silent, perplexity, repetition, zlib, tokens, accuracy".split(
    ", "
)


def said(one: Estimate, form: str = "+.2f") -> str:
    """A value with its interval."""
    return f"{number(one.value, form)} [{number(one.low, form)}, {number(one.high, form)}]"


def every_point(found: SteeringEvaluation) -> "Section":
    """All numbers, a table for each judge and kind of prompt."""
    from interp.page import Section, Table

    parts: list[Part] = [
        Table(
            _COLUMNS, [_row(point, judge, kind) for point in found.points], title=f"{kind} prompts, judged by {judge}"
        )
        for judge in found.judges
        for kind in found.points[0].sets
    ]
    return Section("Every point", parts)


def _row(point: Point, judge: str, kind: str) -> list[str]:
    one = point.sets[kind]
    change, steered = one.change[judge], point.method != UNSTEERED
    return [
        point.name,
        said(one.mean[judge]),
        said(change.mean) if steered else MISSING,
        number(point.kl.value, ".3g"),
        number(point.delta_ce.value, "+.3f"),
        number(change.p, ".2g") if steered else MISSING,
        f"{100 * change.wrong_way.value:.0f} %" if steered else MISSING,
        str(one.silent[judge]),
        number(one.perplexity.value, ".1f"),
        number(one.repetition.value, ".2f"),
        number(one.zlib.value, ".2f"),
        number(one.n_tokens, ".0f"),
        number(point.accuracy.correct.value, ".2f") if point.accuracy else MISSING,
    ]


def axbench_table(found: SteeringEvaluation) -> "Part":
    """The score of each method where a judge rated."""
    from interp.page import Table

    rows = []
    for method, one in found.axbench.items():
        values = [number(value, ".2f") for value in (one["score"], *one["interval"])]
        rows.append([method, f"{one['factor']:g}", *values, str(one["n"])])
    title = f"AxBench's score (0 to 2), rated by {found.facts['rater']}, strength chosen on other prompts"
    return Table(["method", "β", "score", "from", "to", "prompts"], rows, title=title)


def texts(found: SteeringEvaluation, chosen: Mapping[str, Point]) -> "Section | None":
    """Steered texts beside the unsteered one and the baselines'."""
    from interp.page import Section, Table

    names = [point.name for point in chosen.values()]
    parts: list[Part] = []
    for sample in found.samples:
        rows = [[name, sample["texts"][name].strip() or "(nothing)"] for name in names if name in sample["texts"]]
        parts.append(Table(["", "text"], rows, title=f"{sample['set']} prompt: {sample['prompt']}"))
    lead = "Generated texts as they are, at the strengths of the summary. The prompts are drawn, not picked."
    return Section("Texts", parts, lead=lead) if parts else None
