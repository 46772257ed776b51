"""What training a Sudoku solver costs and reaches: one core, several seeds, puzzles of classes never trained on.

    OMP_NUM_THREADS=1 python benchmarks/sudoku_train.py [--preset 4x4-dense] [--seeds 0 1] [--steps N] [--folder RUNS]

Each seed trains in `RUNS/PRESET-seedN`, then solves `--puzzles` unseen ones by greedy generation. Processor time counts
everything: making puzzles and traces, training, the solving in between; it is known of runs trained here in one go.
Prints a table, and keeps the rows of all seeds in `benchmarks/results/sudoku_train-PRESET.json`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from interp.bench.measure import ROOT, environment
from interp.sudoku.drawing import unseen_puzzles
from interp.sudoku.presets import PRESETS, preset
from interp.sudoku.solving import solve_rate
from interp.sudoku.train import train_sudoku

TEST_SEED = 2**20  # no run's


def one(name: str, folder: Path, *, puzzles: int, device: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Train (or open) a run and measure it."""
    settings, new = preset(name, **changes), not folder.exists()
    start = time.process_time()
    model = train_sudoku(settings, folder, device=device)
    seconds = time.process_time() - start if new else None
    tests = unseen_puzzles(model.rules, puzzles, kind=settings.kind, seed=TEST_SEED)
    found = solve_rate(model, tests.puzzles, tests.solutions)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "seed": settings.seed,
        "steps": settings.steps,
        "puzzles": lines[-1]["puzzles"],
        "cpu_seconds": seconds,
        "excess_loss": lines[-1]["excess"],
        "curve": {line["step"]: line["solved"] for line in lines if "solved" in line},
        **found.to_json(),
        "solved_low": found.interval.low,
        "cell_accuracy": found.cell_accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train Sudoku solvers and measure them.")
    parser.add_argument("--preset", default="4x4-dense", choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--puzzles", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sudoku")
    parser.add_argument("--device")
    options = parser.parse_args()
    changes = {} if options.steps is None else {"steps": options.steps}
    path = ROOT / "benchmarks" / "results" / f"sudoku_train-{options.preset}.json"
    print("| seed | steps | puzzles trained on | processor minutes | solved of unseen | at least (95 %) | cells |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for seed in options.seeds:
        folder = options.folder / f"{options.preset}-seed{seed}"
        row = one(
            options.preset, folder, puzzles=options.puzzles, device=options.device, changes={**changes, "seed": seed}
        )
        row = keep(path, options.preset, row)
        minutes = "-" if row["cpu_seconds"] is None else f"{row['cpu_seconds'] / 60:.1f}"
        print(
            f"| {seed} | {row['steps']:,} | {row['puzzles']:,} | {minutes} | {row['solved']:,} of {row['n']:,} | "
            f"{row['solved_low']:.4f} | {row['cell_accuracy']:.4f} |",
            flush=True,
        )


def keep(path: Path, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Put a seed's row into the file, with what that knows of the training if this call only measured."""
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    row = {**row, "training_environment": environment(("torch", "transformers", "numba"))}
    for old in known:
        if (old["seed"], old["steps"]) == (row["seed"], row["steps"]) and row["cpu_seconds"] is None:
            row |= {key: old[key] for key in ("cpu_seconds", "training_environment")}
    runs = sorted([old for old in known if old["seed"] != row["seed"]] + [row], key=lambda run: run["seed"])
    path.write_text(json.dumps({"preset": name, "runs": runs}, indent=1) + "\n")
    return row


if __name__ == "__main__":
    main()
