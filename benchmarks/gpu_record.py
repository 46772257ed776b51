"""What `gpu.py` writes: one JSON file of runs and rows, whole after every row, and the table made of it.

    {"runs": [{"started", "arguments", "environment", "parts": {part: {"planned", "begun", "ended"}}}],
     "rows": [{"run", "part", "item", "name", "shape", "dtype", "variant", "status", "value", "unit", ...}]}

A row's `value` is the median, `low` and `high` the 20 and 80 per cent quantiles (or the range, where few repeats were
made), `ratio` how many times as fast as `against`. An item begun without a row is where a run stopped or died.
Nothing here needs torch.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "failed", "not timed", "not here", "left out"]
FIELDS = ("name", "shape", "dtype", "variant")
_GIVEN: dict[str, Any] = dict.fromkeys(("value", "unit", "low", "high", "ratio", "against", "peak_bytes"))


class Deadline:
    """A part's time. No item starts that would, by the longest one of its kind so far, end too late."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.longest: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def room(self, kind: str) -> bool:
        """Whether one more item of this kind may start."""
        return self.left > self.longest.get(kind, 0.0)

    def took(self, kind: str, seconds: float) -> None:
        """An item of this kind has ended."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))


class Record:
    """The file; every change is on disk before the method returns."""

    def __init__(self, path: Path, run: int) -> None:
        self.path, self.run = path, run
        self.content: dict[str, Any] = load(path)

    @classmethod
    def new_run(cls, path: Path, arguments: Mapping[str, Any]) -> "Record":
        """A further run in the file: what is there is kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = cls(path, len(load(path)["runs"]))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        record.content["runs"].append({"started": started, "arguments": dict(arguments), "parts": {}})
        record.save()
        return record

    @property
    def this_run(self) -> dict[str, Any]:
        """The run being made."""
        return self.content["runs"][self.run]

    def part(self, name: str) -> dict[str, Any]:
        """What is known of a part of this run besides its rows."""
        return self.this_run["parts"].setdefault(name, {"planned": [], "begun": [], "ended": None})

    def rows(self, part: str | None = None) -> list[dict[str, Any]]:
        """Rows of this run."""
        return [r for r in self.content["rows"] if r["run"] == self.run and part in (None, r["part"])]

    def add(self, part: str, item: str, *, status: Status = "ok", note: str = "", **fields: Any) -> None:
        """One row."""
        given = {"status": status, **_GIVEN, "note": note, **fields}
        self.content["rows"].append({"run": self.run, "part": part, "item": item, **given})
        self.save()

    def save(self) -> None:
        """Written beside, then renamed: a reader, or a kill, finds the old file or the new one."""
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(partial, self.path)

    def left_out(self, part: str) -> list[str]:
        """Items planned that have no row."""
        done = {row["item"] for row in self.rows(part)}
        return [item for item in self.part(part)["planned"] if item not in done]


def load(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if there is none."""
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "rows": []}


def table(records: Iterable[dict[str, Any]]) -> str:
    """All rows of these files as one Markdown table, then what was left out."""
    head = "part what shape dtype variant status median 20–80% ratio against peak,GiB note".split()
    lines = ["| " + " | ".join(name.replace(",", ", ") for name in head) + " |"]
    lines.append("|" + "---|" * 6 + "--:|--:|--:|---|--:|---|")
    gaps: list[str] = []
    for record in records:
        lines += [_line(row) for row in _condensed(record["rows"])]
        gaps += _gaps(record)
    return "\n".join([*lines, *(["", *gaps] if gaps else [])])


def _condensed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks that passed as one row for each operation and kind of check: the worst of them, and how many."""
    kept: list[dict[str, Any]] = []
    passed: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if (row["part"], row["status"]) != ("checks", "ok"):
            kept.append(row)
            continue
        same = passed.setdefault((row["run"], row["name"], row["variant"]), [])
        if not same:
            kept.append({"stands for": same})
        same.append(row)
    return [_summary(row["stands for"]) if "stands for" in row else row for row in kept]


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    worst = max(rows, key=lambda row: row["value"] or 0.0)
    dtypes = ", ".join(dict.fromkeys(row["dtype"].partition(",")[0] for row in rows))
    note = f"worst at {worst['shape']}, {worst['dtype']}" if worst["value"] else ""
    return {**worst, "shape": f"{len(rows)} cases", "dtype": dtypes, "note": note}


def _line(row: dict[str, Any]) -> str:
    unit = row["unit"] or ""
    middle = "" if row["value"] is None else f"{_number(row['value'])} {unit}".strip()
    span = "" if row["low"] is None else f"{_number(row['low'])}–{_number(row['high'])}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
    cells = [row["part"], *(row[name] for name in FIELDS), row["status"]]
    cells += [middle, span, ratio, row["against"] or "", peak, row["note"]]
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"


def _gaps(record: dict[str, Any]) -> list[str]:
    """What each part of each run planned and did not come to."""
    said = []
    for number, run in enumerate(record["runs"]):
        for name, part in run["parts"].items():
            done = {row["item"] for row in record["rows"] if (row["run"], row["part"]) == (number, name)}
            missing = [item for item in part["planned"] if item not in done]
            if missing or part["ended"] != "finished":
                said.append(f"{name}: {part['ended'] or 'interrupted'}; left out: {', '.join(missing) or 'nothing'}")
    return said


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
