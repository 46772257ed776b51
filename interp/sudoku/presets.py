"""Settings by name."""

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
