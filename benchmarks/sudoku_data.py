"""Sudoku data: puzzles, solutions, traces, replays and forced moves per second of one core; lengths of the traces.

    python benchmarks/sudoku_data.py [--puzzles 20000]

Rates are by processor time, compiling left out (the first call of each size warms up), and the plain-Python kernels
that run where numba is missing beside the compiled ones; replays and forced moves are NumPy either way. The figures of
arXiv 2605.18847 that can be compared are those that follow from its code and figures: 198,253,000 trace tokens for 2.7
million puzzles, 24.3 to 24.7 clues (digit presences), and 80,919 positions of 6,400 puzzles outside branches that have
exactly one naked single, which is the next token. The order in which its solver takes forced moves is not published.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from interp.bench.measure import environment
from interp.sudoku.board import Rules, candidates
from interp.sudoku.generate import generate
from interp.sudoku.generate_files import summary
from interp.sudoku.jit import numba
from interp.sudoku.replay import forced_moves, replay
from interp.sudoku.solve import check_puzzles
from interp.sudoku.traces import Order, TraceSet, make_traces

PUBLISHED = {"trace_tokens_mean": 198_253_000 / 2_700_000, "clues_mean": [24.3, 24.7], "lone_naked": 80_919 / 6_400}


def rate(count: int, call: Callable[[], Any]) -> float:
    """Items per second of processor time."""
    begun = time.process_time()
    call()
    return count / (time.process_time() - begun)


def rates(n: int, count: int) -> dict[str, float]:
    """Items per second of one core for each step."""
    rules = Rules.of(n)
    make_traces(rules, generate(rules, 2, seed=0).puzzles, seed=0)
    made = generate(rules, count, seed=1)
    traces = make_traces(rules, made.puzzles, seed=1, max_length=300)
    boards = replay(rules, traces.tokens).boards.reshape(-1, rules.n_cells)
    return {
        "minimal puzzles": rate(count, lambda: generate(rules, count, seed=2)),
        "dense puzzles": rate(count, lambda: generate(rules, count, seed=2, kind="dense")),
        "solutions, checked to be the only ones": rate(count, lambda: check_puzzles(rules, made.puzzles)),
        "traces, puzzles checked": rate(count, lambda: make_traces(rules, made.puzzles, seed=2, max_length=300)),
        "traces replayed": rate(len(traces), lambda: replay(rules, traces.tokens)),
        "boards, forced moves": rate(len(boards), lambda: forced_moves(rules, boards)),
    }


def lone_naked(traces: TraceSet) -> float:
    """Positions a puzzle, outside branches, where the board has exactly one naked single and the next token is it."""
    found = 0
    for start in range(0, len(traces), 1000):
        part = traces[start : start + 1000]
        states = replay(traces.rules, part.tokens)
        at = np.argwhere(states.depth[:, :-1] == 0)
        at = at[at[:, 1] >= part.n_clues[at[:, 0]]]
        masks = candidates(traces.rules, states.boards[at[:, 0], at[:, 1]])
        naked = (masks.sum(axis=2) == 1)[:, :, None] & masks
        token = np.where(naked.reshape(len(at), -1).sum(axis=1) == 1, naked.reshape(len(at), -1).argmax(axis=1), -1)
        found += int((token == part.tokens[at[:, 0], at[:, 1] + 1]).sum())
    return found / len(traces)


def lengths(count: int, order: Order) -> dict[str, Any]:
    """What traces of minimal 9x9 puzzles look like."""
    rules = Rules.of(9)
    traces = make_traces(rules, generate(rules, count, seed=3).puzzles, seed=3, order=order)
    return {"order": order, **summary(traces), "lone_naked": lone_naked(traces[: min(count, 6400)])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puzzles", type=int, default=20_000, help="9x9 puzzles for lengths, a fifth for rates")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sudoku_data.json")
    o = parser.parse_args()
    if numba() is None:
        parser.error("numba is not installed; this measures the kernels it compiles")
    speed: dict[str, dict[str, Any]] = {}
    for n, share in ((4, 1), (6, 2), (9, 5)):
        compiled = rates(n, o.puzzles // share)
        with patch.dict(sys.modules, {"numba": None}):
            plain = rates(n, {4: 400, 6: 100, 9: 20}[n])
        speed[f"{n}x{n}"] = {"compiled": compiled, "plain Python": plain}
        for name, value in compiled.items():
            print(f"{n}x{n}  {name:40} {value:12,.0f} /s   without numba {plain[name]:10,.0f} /s", flush=True)
    shapes = [lengths(o.puzzles, order) for order in ("random", "naked-first")]
    for shape in shapes:
        print(json.dumps(shape))
    print("published", json.dumps(PUBLISHED))
    facts = {"environment": environment(("numpy", "numba")), "puzzles": o.puzzles, "rates": speed}
    o.out.write_text(json.dumps({**facts, "lengths": shapes, "published": PUBLISHED}, indent=1) + "\n")


if __name__ == "__main__":
    main()
