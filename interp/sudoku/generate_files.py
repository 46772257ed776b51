"""A folder of puzzles with their traces, made in parts, so that a run that was stopped goes on where it was.

FOLDER/puzzles.json                 the settings
FOLDER/traces-NNNNN.safetensors     puzzles, solutions and traces of one part (a TraceSet)
FOLDER/summary.json                 what came out; there when all parts are

Part p holds the puzzles p * part, p * part + 1, ... of the seed: the folder is a function of the settings alone.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InputError
from interp.progress import bar
from interp.sealing import differences, only_writer, read_json, write_json
from interp.sudoku.board import Rules
from interp.sudoku.generate import Kind, generate
from interp.sudoku.replay import Singles
from interp.sudoku.traces import Order, Reason, TraceSet, make_traces

FORMAT = 1  # another number when the same settings give other puzzles or traces


@dataclass(frozen=True)
class PuzzleConfig:
    """What `write_puzzles` makes; `max_length=300` is the context of the published model."""

    n: int = 9
    count: int = 10_000
    kind: Kind = "minimal"
    seed: int = 0
    singles: Singles = "naked+hidden"
    order: Order = "random"
    shuffle_clues: bool = True
    max_length: int | None = 300
    part: int = 10_000

    def __post_init__(self) -> None:
        for name in ("count", "part", "max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")


def write_puzzles(config: PuzzleConfig, out: str | Path, *, workers: int = 1, show: bool | None = None) -> TraceSet:
    """Make what is missing in the folder, and return all of it. A folder of other settings is refused."""
    out, settings = Path(out), {"format": FORMAT, **asdict(config)}
    rules = Rules.of(config.n)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _claim(out, settings)
        parts = []
        with bar(config.count, "puzzles", unit="puzzle", show=show) as progress:
            for number in range(_n_parts(settings)):
                parts.append(_part(rules, config, number, _part_path(out, number), workers))
                progress.update(min(config.part, config.count - number * config.part))
        traces = TraceSet.joined(parts)
        write_json(out / "summary.json", summary(traces) | {"left_out": config.count - len(traces)})
    return traces


def load_puzzles(folder: str | Path) -> TraceSet:
    """All traces of a finished folder."""
    folder = Path(folder)
    read_json(folder / "summary.json", "folder of Sudoku puzzles")
    settings = read_json(folder / "puzzles.json", "folder of Sudoku puzzles")
    return TraceSet.joined([TraceSet.load(_part_path(folder, number)) for number in range(_n_parts(settings))])


def summary(traces: TraceSet) -> dict[str, Any]:
    """Numbers of clues and lengths of traces: trace tokens are those behind END_CLUES."""
    tokens = traces.lengths - traces.n_clues - 1
    p50, p95, p99 = np.percentile(traces.lengths, [50, 95, 99]).tolist()
    return {
        "puzzles": len(traces),
        "clues_mean": float(traces.n_clues.mean()),
        "trace_tokens_mean": float(tokens.mean()),
        "length": {"p50": p50, "p95": p95, "p99": p99, "max": int(traces.lengths.max())},
        "no_guess": float((traces.reasons != Reason.GUESS).all(axis=1).mean()),
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / "puzzles.json"
    if path.exists():
        found = read_json(path, "folder of Sudoku puzzles")
        if differ := differences(found, settings):
            raise InputError(
                f"{out} holds puzzles made with other settings ({differ}); give the same settings, or another folder"
            )
    elif others := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
        raise InputError(f"{out} holds other files ({', '.join(others[:3])}); give a new or an empty folder")
    else:
        write_json(path, settings)


def _part(rules: Rules, c: PuzzleConfig, number: int, path: Path, workers: int) -> TraceSet:
    """One part, from its file if that is there."""
    if path.exists():
        return TraceSet.load(path)
    first = number * c.part
    size = min(c.part, c.count - first)
    puzzles = generate(rules, size, kind=c.kind, seed=c.seed, first=first, workers=workers).puzzles
    style: dict[str, Any] = {"singles": c.singles, "order": c.order, "shuffle_clues": c.shuffle_clues}
    traces = make_traces(rules, puzzles, seed=c.seed, **style, max_length=c.max_length, first=first, workers=workers)
    if not len(traces):
        raise InputError(
            f"none of the {size} traces of part {number} has at most max_length={c.max_length} tokens; give more"
        )
    traces.save(path)
    return traces


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"traces-{number:05d}.safetensors"


def _n_parts(settings: dict[str, Any]) -> int:
    return math.ceil(settings["count"] / settings["part"])
