"""Rows of figures: one JSON line each, with all that its numbers mean nothing without, and a table to read.

    {"measurement": "extraction", "name": "equal lengths, to disk", "unit": "tokens/s",
     "median": ..., "min": ..., "max": ..., "values": [...], ... facts of the measurement ...,
     "environment": {hardware, versions, commit, date, load}, "arguments": {...}}

Each row is on disk before the next measurement begins, so that an interruption costs the measurement it interrupts and
no other.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from interp.bench.measure import Measured, environment, spread
from interp.errors import InputError

PACKAGES = ("midlens", "torch", "triton", "transformers", "safetensors", "numpy")
Row = dict[str, Any]
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def make_row(measurement: str, name: str, unit: str, values: Sequence[float], **facts: Any) -> Row:
    """A row: what was measured, all values with their median and range, and what belongs to them."""
    return {"measurement": measurement, "name": name, "unit": unit, **spread(values), "values": list(values), **facts}


def peak_memory(runs: Sequence[Measured]) -> dict[str, int]:
    """The largest rise of resident memory over runs, and the GPU's peak where there is one."""
    rises = [run.rss_rise for run in runs if run.rss_rise is not None]
    peaks = [run.cuda_peak for run in runs if run.cuda_peak is not None]
    return ({"rss_rise": max(rises)} if rises else {}) | ({"cuda_peak": max(peaks)} if peaks else {})


class Report:
    """The rows of one run of the benchmark, in memory and (with `out`) appended to a file of JSON lines."""

    def __init__(
        self, out: str | Path | None = None, *, arguments: Mapping[str, Any], device: str | torch.device = "cpu"
    ) -> None:
        self.rows: list[Row] = []
        self.out, self._arguments = None if out is None else Path(out), dict(arguments)
        self._environment = environment(PACKAGES, device=device)
        if self.out is not None:
            if self.out.is_dir():
                raise InputError(
                    f"{self.out} is a folder; give a file for the rows, such as {self.out / 'bench.jsonl'}"
                )
            self.out.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> Row:
        """Complete a row and write it down."""
        now = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": os.getloadavg()}
        whole = {**row, "environment": {**self._environment, **now}, "arguments": self._arguments}
        self.rows.append(whole)
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps(whole) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return whole

    def table(self) -> str:
        """The rows in words, as Markdown, under a line about the machine."""
        facts = self._environment
        busy = self.rows[-1]["environment"]["load_average"][0] if self.rows else facts["load_average"][0]
        machine = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores, {facts['torch_threads']} threads"
        head = [f"{machine}; torch {facts['versions']['torch']}; load average {busy:.1f}", ""]
        head += ["| measurement | median (range) | share of the ceiling (range) | limited by | peak memory |"]
        return "\n".join([*head, "|---|---:|---:|---|---|", *map(line, self.rows)])


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    share = row.get("share")
    cells = [
        f"{row['measurement']}: {row['name']}",
        f"{amount(row['median'], row['unit'])} ({amount(row['min'], '')} to {amount(row['max'], '')})",
        "" if share is None else f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%})",
        str(row.get("limited_by", "")),
        _memory(row),
    ]
    return f"| {' | '.join(cells)} |"


def amount(value: float, unit: str) -> str:
    """`47.9 GFLOP/s`, `1.1 GB/s`, `651 tokens/s`, `2.3 x`: four digits at most, then a prefix."""
    for size, prefix in _PREFIXES if unit in ("FLOP/s", "byte/s", "") else ():
        if value >= size:
            return f"{value / size:.3g} {prefix}{'B/s' if unit == 'byte/s' else unit}".rstrip()
    return f"{value:,.0f} {unit}".rstrip() if value >= 100 else f"{value:.3g} {unit}".rstrip()


def _memory(row: Mapping[str, Any]) -> str:
    found = [
        f"{title} {row['memory'][name] / 2**20:,.0f} MiB"
        for name, title in (("rss_rise", "+"), ("cuda_peak", "GPU"), ("stated", "stated"))
        if name in row.get("memory", {})
    ]
    return ", ".join(found).replace("+ ", "+")
