"""What came of a sweep: `path/sweep.json`, one record per member, and `path/sweep.html`, the Pareto plots.

    L0 (active features per token) against explained variance (better is up and left)
    L0 against delta CE, where the model was run (better is down and left)

Figures are of held-out rows (`saes.evaluate`) where these were given, else the last that training logged, which are of
rows the SAE was trained on. A plot never mixes the two.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.progress import bar
from interp.sealing import digest, write_json
from interp.typed import read_object
from saes.config import SAEConfig
from saes.fitting import Rows, TrainedSites, is_finished
from saes.recipe import TrainConfig
from saes.sweep_config import FILE
from saes.sweep_config import PAGE as PAGE
from saes.sweep_measure import Measure

if TYPE_CHECKING:
    import plotly.graph_objects

_log = logging.getLogger(__name__)
_FORMAT, _VERSION = "midlens-sweep", 1
_RECORD = ("architecture", "d_sae", "config", "status", "error", "training", "held_out", "measured")
_UNFINISHED = {"status": "unfinished", "error": None, "training": None, "held_out": None, "measured": None}
_AXES = {
    "explained_variance": ("explained variance (higher is better)", False),
    "delta_ce": ("ΔCE, nats per token (lower is better)", True),
    "kl": ("KL(clean ‖ spliced), nats per token (lower is better)", True),
    "dead_fraction": ("dead features, share (lower is better)", True),
}


class Summary:
    """The records of a sweep, kept in its folder; `records` by name, in the order in which members came."""

    def __init__(self, path: Path, facts: dict[str, Any], records: dict[str, dict[str, Any]]) -> None:
        self.path, self.facts, self.records = path, facts, records
        self.rows: Any = None
        self.sites: Any = None

    @classmethod
    def load(cls, path: str | Path) -> "Summary":
        """Of a sweep's folder."""
        path = Path(path)
        found = read_object(path / FILE, "sweep")
        if found.get("format") != _FORMAT or found.get("version") != _VERSION:
            raise InputError(f"{path / FILE} is no summary of version {_VERSION} (found {found.get('format')!r})")
        facts: Any = found.get("facts")
        members: Any = found.get("members")
        known = isinstance(facts, dict) and isinstance(facts.get("sites"), list) and isinstance(members, list)
        if not known or not all(isinstance(one, dict) and set(one) == {"name", *_RECORD} for one in members):
            raise InputError(f"{path / FILE} is damaged: its facts or its members are not whole; run the sweep again")
        if not all(isinstance(one["name"], str) and isinstance(one["status"], str) for one in members):
            raise InputError(f"{path / FILE} is damaged: a member has no name or no status; run the sweep again")
        return cls(path, facts, {one["name"]: {key: one[key] for key in _RECORD} for one in members})

    @classmethod
    def open(cls, path: Path, rows: Rows, sites: TrainedSites) -> "Summary":
        """The one in the folder, or a new one; a sweep over other rows or sites is refused."""
        spec = (rows.manifest.get("parts") or [{}])[0].get("spec", {})
        facts = {
            "model": spec.get("model"),
            "sites": list(map(str, sites.read)),
            "site_out": None if sites.written is None else str(sites.written),
            "rows": len(rows),
            "store": digest(rows.manifest),
        }
        summary = cls.load(path) if (path / FILE).exists() else cls(path, facts, {})
        if wrong := [name for name in facts if facts[name] != summary.facts.get(name)]:
            raise InputError(
                f"{path} holds a sweep with another {', '.join(wrong)} (rows of {summary.facts['model']} at "
                f"{', '.join(summary.facts['sites'])}; asked for: {facts['model']} at {', '.join(facts['sites'])}); "
                "give this one another folder"
            )
        summary.rows, summary.sites = rows, sites
        return summary

    def add(self, name: str, config: TrainConfig, shape: SAEConfig) -> None:
        """Take in a member whose folder is claimed: what is known of it, if its SAE is there, or its divergence."""
        config_json = json.loads(json.dumps(dataclasses.asdict(config)))
        record = {"architecture": config.architecture, "d_sae": shape.d_sae, "config": config_json, **_UNFINISHED}
        old = self.records.get(name, record)
        diverged = old["status"] == "diverged" and old["config"] == config_json
        self.records[name] = old if diverged or is_finished(self.path / name) else record

    def has_diverged(self, name: str) -> bool:
        """Whether training it again would diverge again."""
        return self.records[name]["status"] == "diverged"

    def diverged(self, name: str, reason: str) -> None:
        """Record why a member was dropped."""
        self.records[name] |= {"status": "diverged", "error": reason}
        self.write()

    def complete(self, measure: Measure | None, *, show: bool | None = None) -> None:
        """Take in the figures of finished members, evaluate those that are not, and write file and page."""
        done = {name: record for name, record in self.records.items() if is_finished(self.path / name)}
        for name, record in self.records.items():
            if record["status"] == "finished" and name not in done:
                record |= _UNFINISHED
        for name, record in done.items():
            lines = (self.path / name / "training" / "metrics.jsonl").read_text().splitlines()
            record |= {"status": "finished", "error": None, "training": json.loads(lines[-1])}
        if measure is not None:
            waiting = [name for name in done if done[name]["measured"] != measure.key]
            for names in self._trained_together(waiting):
                self._evaluate(names, measure, show=show)
        self.write()
        try:
            write_page(self)
        except ImportError as error:
            _log.warning("%s was not written: %s", self.path / PAGE, error)

    def _trained_together(self, names: Sequence[str]) -> list[list[str]]:
        """In groups of one seed and batch size: what was in memory together may be again."""
        groups: dict[tuple[Any, Any], list[str]] = {}
        for name in names:
            config = self.records[name]["config"]
            groups.setdefault((config["seed"], config["batch_size"]), []).append(name)
        return list(groups.values())

    def _evaluate(self, names: Sequence[str], measure: Measure, *, show: bool | None) -> None:
        effects = measure.losses({name: self.path / name for name in names}, show=show)
        with bar(len(names), "evaluate", unit="SAE", show=show) as progress:
            for name in names:
                figures = measure(self.path / name, effects[name])
                self.records[name] |= {"held_out": figures, "measured": measure.key}
                self.write()
                progress.update(1)

    def write(self) -> None:
        """Write `sweep.json`, whole or not at all."""
        members = [{"name": name, **record} for name, record in self.records.items()]
        write_json(self.path / FILE, {"format": _FORMAT, "version": _VERSION, "facts": self.facts, "members": members})

    @property
    def held_out(self) -> bool:
        """Whether all finished members were evaluated on the same held-out rows."""
        keys = {record["measured"] for record in self.records.values() if record["status"] == "finished"}
        return len(keys) == 1 and None not in keys

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each finished member: on held-out rows if all were evaluated on the same, else as training logged last."""
        kind = "held_out" if self.held_out else "training"
        return {name: r[kind] for name, r in self.records.items() if r["status"] == "finished"}

    def table(self) -> list[tuple[str, ...]]:
        """A line of names, then one per member: name, status, L0, explained variance, dead, delta CE, KL."""
        figures = self.figures()
        lines: list[tuple[str, ...]] = [("SAE", "status", "L0", "explained variance", "dead", "ΔCE", "KL")]
        for name, record in self.records.items():
            found = figures.get(name, {})
            values = [_shown(found.get(key), form) for key, form in _COLUMNS.items()]
            lines.append((name, record["status"], *values))
        return lines

    def text(self) -> str:
        """The table as aligned lines, and why members were dropped."""
        lines = self.table()
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        shown = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        errors = [f"{name}: {record['error']}" for name, record in self.records.items() if record["error"]]
        return "\n".join([*shown, *errors])


_COLUMNS = {"l0": ".1f", "explained_variance": ".4f", "dead_fraction": ".1%", "delta_ce": "+.4f", "kl": ".4f"}


def pareto(sweep: Summary | str | Path, y: str = "explained_variance") -> "plotly.graph_objects.Figure":
    """L0 against `y` (explained_variance, delta_ce, kl or dead_fraction) of every finished member of a sweep.

    One trace per architecture and width; the Pareto front has rings.
    """
    from interp.figures.pareto import pareto_plot

    summary = sweep if isinstance(sweep, Summary) else Summary.load(sweep)
    if y not in _AXES:
        raise InputError(f"y is one of {', '.join(_AXES)}, got {y!r}")
    points = _points(summary, y)
    if not points:
        raise InputError(f"{summary.path} has no finished member with L0 over 0 and a value of {y}")
    title, lower = _AXES[y]
    return pareto_plot(points, x_title="L0, active features per token (log scale)", y_title=title, lower=lower)


def _points(summary: Summary, y: str) -> list[Mapping[str, Any]]:
    points = []
    for name, found in summary.figures().items():
        record = summary.records[name]
        series = f"{record['architecture']}, width {record['d_sae']:,}"
        if found["l0"] > 0 and found.get(y) is not None:
            kind = {"series": series, "colour": record["architecture"], "dash": record["d_sae"]}
            points.append({"name": name, **kind, "x": found["l0"], "y": found[y]})
    return points


def write_page(summary: Summary) -> Path:
    """One offline HTML page: the Pareto plots and the table."""
    from interp.page import Figure, Note, Page, Part, Row, Section, Table

    facts = summary.facts
    where = f"{facts['model']} · {' + '.join(facts['sites'])}" + (
        f" → {facts['site_out']}" if facts["site_out"] else ""
    )
    titles = {"explained_variance": "Sparsity against reconstruction", "delta_ce": "Sparsity against loss"}
    shown = [(y, len(points)) for y in titles if (points := _points(summary, y))]
    rows = "held-out rows" if summary.held_out else "the last rows of training, which the SAEs were trained on"
    caption = "Rings and dashes: the Pareto front, no SAE is both sparser and better. Measured on {}; {} of {} SAEs."
    plots: list[Part] = [
        Figure(pareto(summary, y), titles[y], caption.format(rows, n, len(summary.records))) for y, n in shown
    ]
    head, *lines = ([cell.replace("–", "−") for cell in line] for line in summary.table())  # which counts as a number
    parts: list[Part] = [Row(plots, least=520)] if plots else [Note("No SAE is finished yet.")]
    errors = [Note(f"{name}: {record['error']}") for name, record in summary.records.items() if record["error"]]
    sections = [Section("Pareto", parts, lead=where), Section("SAEs", [Table(head, lines), *errors], lead=where)]
    subtitle = f"{where} · {facts['rows']:,} rows"
    return Page("Sweep of sparse autoencoders", subtitle, sections, footer=where).write(summary.path / PAGE)


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("-", "−")
