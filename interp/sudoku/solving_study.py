"""What was trained and how well it solves: curves of training, unseen puzzles solved, some of them move by move."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from interp.errors import InputError
from interp.loop import read_metrics
from interp.stats import Interval, wilson
from interp.sudoku.drawing import unseen_puzzles
from interp.sudoku.generate import Kind
from interp.sudoku.model import SudokuModel
from interp.sudoku.records import Record
from interp.sudoku.solving import own_traces, report
from interp.sudoku.traces import TraceSet

TEST_SEED = 2**20
"""Of puzzles to test on; the number of no run."""


@dataclass(frozen=True)
class Example(Record):
    """One puzzle as the model solved it."""

    puzzle: Int[np.ndarray, " cells"]
    solution: Int[np.ndarray, " cells"]
    tokens: Int[np.ndarray, " t"]
    """Clues, END_CLUES, the model's moves."""
    n_clues: int
    reasons: Int[np.ndarray, " t"]
    """Codes of `interp.sudoku.traces.Reason`."""


@dataclass(frozen=True)
class Curve(Record):
    """Lines of `metrics.jsonl`; `solved` is NaN where nothing was solved."""

    step: Int[np.ndarray, " k"]
    puzzles: Int[np.ndarray, " k"]
    excess: Float[np.ndarray, " k"]
    """Loss above its floor: the mean log of how many moves are right."""
    solved: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class SolvingStudy(Record):
    """Unseen puzzles: no symmetry takes one of them into a puzzle of training."""

    n: int
    """The board's side."""
    kind: str
    parameters: int
    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    puzzles: int
    solved: int
    invalid: int
    cells: int
    right_cells: int
    curve: Curve
    examples: tuple[Example, ...]

    @property
    def rate(self) -> float:
        """Share of puzzles solved."""
        return self.solved / self.puzzles

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson(self.solved, self.puzzles)


def solving_study(
    model: SudokuModel,
    *,
    kind: Kind,
    puzzles: int,
    seed: int = TEST_SEED,
    examples: int = 3,
    folder: Path | None = None,
) -> SolvingStudy:
    """Solve unseen puzzles; curves come from the run in `folder`, if that is one."""
    traces = tested(model, kind=kind, puzzles=puzzles, seed=seed)
    found, config = report(traces), model.config
    return SolvingStudy(
        n=config.n,
        kind=kind,
        parameters=sum(p.numel() for p in model.hooked.hf.parameters()),
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_model=config.d_model,
        d_mlp=config.d_mlp,
        puzzles=found.n,
        solved=found.solved,
        invalid=found.invalid,
        cells=found.cells,
        right_cells=found.right_cells,
        curve=read_curve(folder),
        examples=_examples(traces, examples),
    )


def tested(model: SudokuModel, *, kind: Kind, puzzles: int, seed: int) -> TraceSet:
    """The model's own traces of unseen puzzles."""
    if puzzles < 1:
        raise InputError(f"{puzzles} puzzles to test on; expected 1 or more")
    made = unseen_puzzles(model.rules, puzzles, kind=kind, seed=seed)
    return own_traces(model, made.puzzles, seed=seed, solutions=made.solutions)


def read_curve(folder: Path | None) -> Curve:
    """From a run's `metrics.jsonl`; empty without one."""
    path = None if folder is None else folder / "metrics.jsonl"
    lines = [] if path is None else read_metrics(path)
    columns = {name: [line.get(name) for line in lines] for name in ("step", "puzzles", "excess", "solved")}
    return Curve.from_json(columns)


def _examples(traces: TraceSet, count: int) -> tuple[Example, ...]:
    """The puzzles with the most empty cells, the earliest first among equals."""
    chosen = np.argsort(traces.n_clues, kind="stable")[:count]
    return tuple(
        Example(
            puzzle=traces.puzzles[i].astype(np.int64),
            solution=traces.solutions[i].astype(np.int64),
            tokens=traces.tokens[i, : traces.lengths[i]].astype(np.int64),
            n_clues=int(traces.n_clues[i]),
            reasons=traces.reasons[i, : traces.lengths[i]].astype(np.int64),
        )
        for i in chosen
    )
