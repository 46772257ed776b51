"""Settings by name; what they cost and reach is measured by `benchmarks/sudoku_train.py`.

    4x4-dense   3 layers, width 48       92,400 weights     a core, minutes
    6x6-dense   3 layers, width 128     656,512 weights     a core; not trained to its end here
    9x9-paper   8 layers, width 576      43.6 M weights     a GPU; not trained here

4x4-dense, three seeds: 460,800 puzzles in 2.4 minutes of processor time (on a machine busy with other work), then 1,996
or 1,997 of 2,000 puzzles solved of classes never trained on (benchmarks/results/sudoku_train-4x4-dense.json).

9x9-paper has the paper's shape, loss, batch, rate, decay and warm-up (arXiv 2605.18847), without clipping. Other than
there, puzzles come from a pool under random symmetries instead of six passes over 2.7 million; forced moves are made
naked singles first, which comes nearest to the published traces; weight decay spares biases and norms; the number of
steps is inferred from the paper's token budget. Dense boards and their settings are our own.
"""

import dataclasses
from typing import Any

from interp.errors import InputError
from interp.sudoku.model import SudokuModelConfig
from interp.sudoku.recipe import SudokuTraining

_4X4 = SudokuModelConfig(n=4, d_model=48, n_layers=3, n_heads=4, d_mlp=192, n_ctx=18)
_6X6 = SudokuModelConfig(n=6, d_model=128, n_layers=3, n_heads=4, d_mlp=512, n_ctx=38)
_9X9 = SudokuModelConfig(n=9, d_model=576, n_layers=8, n_heads=8, d_mlp=3456, n_ctx=300)

PRESETS: dict[str, SudokuTraining] = {
    "4x4-dense": SudokuTraining(
        model=_4X4,
        rows=128,
        steps=3600,
        lr=6e-3,
        betas=(0.9, 0.98),
        warmup=50,
        log_every=100,
        checkpoint_every=500,
        solve_every=500,
        solve_puzzles=500,
    ),
    "6x6-dense": SudokuTraining(
        model=_6X6,
        rows=64,
        steps=6000,
        lr=4e-3,
        betas=(0.9, 0.98),
        warmup=100,
        log_every=50,
        checkpoint_every=250,
        solve_every=500,
        solve_puzzles=200,
    ),
    "9x9-paper": SudokuTraining(
        model=_9X9,
        kind="minimal",
        order="naked-first",
        objective="single",
        rows=512,
        steps=11_000,
        lr=1e-3,
        warmup=50,
        weight_decay=0.1,
        clip=None,
        compute="bfloat16",
        pool=200_000,
        log_every=20,
        checkpoint_every=200,
        solve_every=1000,
    ),
}


def preset(name: str, **changes: Any) -> SudokuTraining:
    """A preset, with fields of `SudokuTraining` changed by name."""
    if name not in PRESETS:
        raise InputError(f"{name!r} is no preset of Sudoku training; expected one of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(SudokuTraining)}
    if unknown := sorted(set(changes) - known):
        raise InputError(f"{', '.join(unknown)}: no such setting; expected some of {', '.join(sorted(known))}")
    return dataclasses.replace(PRESETS[name], **changes)
