"""Sections of the page on surgery and on trained twins, from the files that these leave."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.attention_report.twins import twins_section
from interp.errors import InputError
from interp.sealing import read_json

if TYPE_CHECKING:
    from interp.page import Part, Section

Row = dict[str, Any]
_WAYS = {
    ("position", "raw"): "position, raw",
    ("position", "key_centred"): "position, key-centred",
    ("kernel", "raw"): "kernel",
}


def result_sections(results: Sequence[str | Path]) -> list["Section"]:
    """A section for each file, in their order."""
    return [_section(Path(path)) for path in results]


def _section(path: Path) -> "Section":
    record = read_json(path, "result of surgery or of twins")
    kinds: dict[str, Callable[[Any], Section]] = {"all_heads": surgery_section, "twins": twins_section}
    for key, section in kinds.items():
        if isinstance(record, dict) and key in record:
            try:
                return section(record)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise InputError(f"{path} is no whole result ({type(error).__name__}: {error!s:.80})") from error
    raise InputError(
        f"{path} is no result that a page can show; expected the JSON file of `midlens attention surgery` or `cascade`"
    )


def surgery_section(record: dict[str, Any]) -> "Section":
    """Perplexity against planes and modes kept, a table of what removing a whole part costs, single heads."""
    from interp.page import Row as SideBySide
    from interp.page import Section

    clean, *rows = record["all_heads"]
    model = record.get("model") or record.get("environment", {}).get("arguments", {}).get("model", "a model")
    heads = record.get("heads", "all")
    which = "all heads" if heads == "all" else f"heads {' '.join(heads)}"
    figures = [_sweep(clean, rows, kept) for kept in ("planes", "modes") if any(row[kept] is not None for row in rows)]
    parts: list[Part] = [SideBySide(figures, least=520)] if figures else []
    parts += [_removals(clean, rows), *_single(record.get("single_heads") or [])]
    lead = (
        f"{model}, {which} operated on; {clean['n_tokens']:,} predicted tokens of {clean['n_documents']:,} documents, "
        "intervals of 95 % by bootstrap over documents. Taking a constant from all keys changes no attention, so that "
        "perplexity without any cut is the same in both gauges, but it changes what a cut removes. Which of the two "
        "parts looks more important is a statement about the gauge as well."
    )
    return Section(f"Surgery on {model}", parts, lead=lead)


def _sweep(clean: Row, rows: Sequence[Row], kept: str) -> "Part":
    from interp.figures.attention_curves import curves
    from interp.page import Figure

    series: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for row in sorted((row for row in rows if row[kept] is not None), key=lambda row: row[kept]):
        name = _way(row)
        series.setdefault(name, []).append((row[kept], row["perplexity"]))
        bands.setdefault(name, []).append((row[kept], row["perplexity_low"], row["perplexity_high"]))
    other = "mode" if kept == "planes" else "plane"
    plot = curves(
        series,
        bands=bands,
        x_title=f"{'routing planes' if kept == 'planes' else 'filtering modes'} kept (log scale)",
        y_title="perplexity (log scale)",
        log_x=all(x > 0 for points in series.values() for x, _ in points),
        log_y=True,
        level=(clean["perplexity"], f"unchanged, {clean['perplexity']:.1f}"),
    )
    title = "Perplexity by planes kept" if kept == "planes" else "Perplexity by modes kept"
    return Figure(plot, title, f"The strongest are kept in each head, beside every {other}.")


def _removals(clean: Row, rows: Sequence[Row]) -> "Part":
    from interp.page import Table

    whole = [row for row in rows if row["planes"] is None and row["modes"] is None]
    names = {(1, 1): "everything kept", (1, 0): "filtering alone", (0, 1): "routing alone"}
    lines = []
    for (alpha, beta), title in names.items():
        for row in whole:
            if (row["alpha"], row["beta"]) == (alpha, beta):
                lines.append([title, _way(row), *_cells(row)])
    return Table(
        ["kept", "where", "perplexity", "from", "to", "ΔCE, nats"],
        [["no surgery", "", *_cells(clean)], *lines],
        title="Whole parts",
    )


def _single(rows: Sequence[Row]) -> list["Part"]:
    """The heads where removing a part costs most."""
    from interp.page import Table

    costly = sorted(rows[1:], key=lambda row: -row["delta_ce"])[:12]
    lines = [
        [row["heads"], _way(row), "routing" if row["beta"] == 0 else "filtering", f"{row['delta_ce']:+.4f}"]
        for row in costly
    ]
    head = ["head", "where", "removed", "ΔCE, nats"]
    return [Table(head, lines, title="Single heads where removing a part costs most")] if lines else []


def _cells(row: Row) -> list[str]:
    values = [f"{row[name]:,.1f}" for name in ("perplexity", "perplexity_low", "perplexity_high")]
    return [*values, f"{row['delta_ce']:+.3f}".replace("-", "−")]


def _way(row: Row) -> str:
    return _WAYS.get((row["level"], row["gauge"]), f"{row['level']}, {row['gauge']}")
