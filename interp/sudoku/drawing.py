"""The batches of a run: batch `step` is a function of (settings, step), whatever was drawn before.

    online   new puzzles -> those not held out -> traces -> packed rows            (4x4, 6x6: takes milliseconds)
    pool     base traces, drawn with replacement -> a random symmetry -> clues shuffled -> packed rows    (9x9)

A symmetry renames digits, permutes rows, columns, bands and stacks, and may transpose; on traces it is a permutation
of tokens, under which a trace stays one. Every document drawn gets its own. Both kinds of batch hold no puzzle of the
held-out side (`interp.sudoku.splitting`). The paper makes six passes over a fixed list of puzzles instead.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from interp.errors import InputError
from interp.feeding import Feed
from interp.sudoku.board import Rules
from interp.sudoku.generate import Kind, PuzzleSet, generate
from interp.sudoku.generate_files import PuzzleConfig, write_puzzles
from interp.sudoku.objectives import next_tokens, open_moves, predicted
from interp.sudoku.packing import Rows, pack, place
from interp.sudoku.recipe import SudokuTraining
from interp.sudoku.splitting import HELD_OUT, held_out
from interp.sudoku.symmetry import apply, random_symmetries
from interp.sudoku.traces import TraceSet, make_traces
from interp.to_device import to_device

_PUZZLES, _TRACES, _POOL, _AUGMENT, _TEST = range(5)  # which random numbers


class Batch(NamedTuple):
    """What a step learns from."""

    rows: Rows
    where: Int[Tensor, " n"]
    """Positions in the flattened rows at which something is predicted."""
    targets: Shaped[Tensor, "n ..."]
    """What: tokens `n`, or all right tokens as booleans `n v`."""
    documents: int

    def to(self, device: torch.device) -> "Batch":
        """On a device; towards a GPU without waiting for it."""
        rows = Rows(*(None if x is None else to_device(x, device) for x in self.rows))  # type: ignore[arg-type]
        return Batch(rows, to_device(self.where, device), to_device(self.targets, device), self.documents)


def fresh_puzzles(rules: Rules, count: int, *, kind: Kind, unseen: bool, seed: int, workers: int = 1) -> PuzzleSet:
    """`count` new puzzles of one side of the split: the held-out one if `unseen`, else that of training."""
    share, found, have = HELD_OUT if unseen else 1 - HELD_OUT, [], 0
    for attempt in itertools.count():
        wanted = int((count - have) / share * 1.05) + 16
        made = generate(rules, wanted, kind=kind, seed=_number(seed, _PUZZLES, attempt), workers=workers)
        kept = held_out(rules, made.puzzles) == unseen
        found.append((made.puzzles[kept], made.solutions[kept]))
        have += int(kept.sum())
        if have >= count:
            break
    puzzles, solutions = (np.concatenate(part)[:count] for part in zip(*found, strict=True))
    return PuzzleSet(puzzles, solutions)


def unseen_puzzles(rules: Rules, count: int, *, kind: Kind, seed: int = 0, workers: int = 1) -> PuzzleSet:
    """Puzzles to test on: no symmetry takes any of them into a puzzle that training has seen."""
    return fresh_puzzles(rules, count, kind=kind, unseen=True, seed=_number(seed, _TEST), workers=workers)


@dataclass(frozen=True)
class Drawing:
    """The batches of one run."""

    settings: SudokuTraining
    pool: TraceSet | None = None

    def __post_init__(self) -> None:
        assert (self.pool is not None) == (self.settings.pool > 0), "a pool exactly where the settings have one"

    def batch(self, step: int) -> Batch:
        """Batch `step`, counted from 0."""
        traces = self._new(step) if self.pool is None else self._augmented(self.pool, step)
        return to_batch(traces, self.settings)

    def batches(self, first: int) -> Iterator[Batch]:
        """From batch `first` on, without end; the next ones are made while one is used."""
        with Feed(self.batch) as feed:
            feed.start(itertools.count(first))
            while True:
                yield feed.take()

    @property
    def _documents(self) -> int:
        """So many documents always fill the rows: none is shorter than a board with END_CLUES and SUCCESS."""
        model = self.settings.model
        return self.settings.rows * (model.n_ctx // (model.rules.n_cells + 2))

    def _new(self, step: int) -> TraceSet:
        settings, rules = self.settings, self.settings.model.rules
        seed = _number(settings.seed, _PUZZLES, step)
        puzzles = fresh_puzzles(rules, self._documents, kind=settings.kind, unseen=False, seed=seed)
        return _traces(settings, puzzles, seed=_number(settings.seed, _TRACES, step))

    def _augmented(self, pool: TraceSet, step: int) -> TraceSet:
        generator = np.random.default_rng([self.settings.seed, _AUGMENT, step])
        drawn = pool[generator.integers(len(pool), size=self._documents)]
        return augmented(drawn, generator)


def augmented(traces: TraceSet, generator: np.random.Generator) -> TraceSet:
    """The traces under random symmetries, their clues in a new order; puzzles and solutions are left out (empty)."""
    m = len(traces)
    tokens = apply(random_symmetries(traces.rules, m, generator), traces.tokens)
    keys = generator.random((m, int(traces.n_clues.max(initial=0))), dtype=np.float32)
    columns = np.arange(keys.shape[1])
    keys = np.where(columns < traces.n_clues[:, None], keys, 1 + columns)  # what is no clue stays where it is
    tokens[:, : keys.shape[1]] = np.take_along_axis(tokens, keys.argsort(axis=1), axis=1)
    nothing = np.zeros((m, 0), np.int8)
    return TraceSet(traces.rules, tokens, traces.lengths, traces.n_clues, traces.reasons, nothing, nothing)


def to_batch(traces: TraceSet, settings: SudokuTraining) -> Batch:
    """The first documents that fit into the rows, packed, with their targets."""
    model = settings.model
    words, n_ctx, rows = model.vocabulary, model.n_ctx, settings.rows
    places = place(traces.lengths, n_ctx, rows=rows)
    traces = traces[: len(places)]
    packed = pack(traces.tokens, traces.lengths, places, n_ctx=n_ctx, rows=rows, pad=words.pad)
    where = predicted(traces)
    if settings.objective == "single":
        targets = next_tokens(traces, where)
    else:
        targets = open_moves(traces, where, singles=settings.singles, size=words.size)
    return Batch(packed, where.flat(places, n_ctx), torch.from_numpy(targets), len(places))


def pool_for(settings: SudokuTraining, folder: Path, *, workers: int = 1) -> TraceSet | None:
    """The base traces of a run, made in parts below `folder` or read from there; without those held out."""
    if not settings.pool:
        return None
    config = PuzzleConfig(
        n=settings.model.n,
        count=settings.pool,
        kind=settings.kind,
        seed=_number(settings.seed, _POOL),
        singles=settings.singles,
        order=settings.order,
        max_length=settings.model.n_ctx,
    )
    traces = write_puzzles(config, folder / "pool", workers=workers)
    pool = traces[~held_out(traces.rules, traces.puzzles)]
    if not len(pool):
        raise InputError(f"pool={settings.pool}: all its puzzles are held out from training; make the pool larger")
    return pool


def _traces(settings: SudokuTraining, puzzles: PuzzleSet, *, seed: int) -> TraceSet:
    """Traces of the puzzles whose trace the model has positions for; refused if it has not for most."""
    traces = make_traces(
        settings.model.rules,
        puzzles.puzzles,
        seed=seed,
        singles=settings.singles,
        order=settings.order,
        max_length=settings.model.n_ctx,
    )
    if 2 * len(traces) < len(puzzles.puzzles):
        raise InputError(
            f"{len(puzzles.puzzles) - len(traces)} of {len(puzzles.puzzles)} traces are longer than the model's "
            f"{settings.model.n_ctx} positions: raise n_ctx, or choose easier puzzles"
        )
    return traces


def _number(*stream: int) -> int:
    """A seed for a stream of random numbers of its own."""
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1))
