"""Results of a small study: a planted solver (no training), few puzzles; made once for all tests of a run."""

import functools
from typing import Any

from interp.sudoku.circuit import circuit_study
from interp.sudoku.generate import generate
from interp.sudoku.interventions import fit_substructure, patch_study
from interp.sudoku.jobs import CircuitFindings
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model
from interp.sudoku.neuron_pages import neuron_pages
from interp.sudoku.neuron_scan import scan_sample
from interp.sudoku.probe_records import ProbeConfig
from interp.sudoku.probe_study import probe_study
from interp.sudoku.solving import own_traces
from interp.sudoku.solving_study import solving_study
from interp.sudoku.study_files import Result
from interp.sudoku.traces import TraceSet
from tests.planted_solver import planted_solver

NAME = "planted"
TINY: dict[str, Any] = {"n": 4, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 24, "n_ctx": 18}


@functools.cache
def planted() -> tuple[SudokuModel, TraceSet]:
    """The solver, and its own traces of dense puzzles."""
    model = planted_solver(neurons=0.05)
    puzzles = generate(model.rules, 240, kind="dense", seed=3)
    return model, own_traces(model, puzzles.puzzles, seed=1, solutions=puzzles.solutions)


def tiny_model(seed: int = 0) -> SudokuModel:
    """Random weights."""
    config = SudokuModelConfig(**TINY)
    return SudokuModel.of(build_model(config, seed=seed), config)


@functools.cache
def results() -> tuple[Result, ...]:
    """One result of every part."""
    model, traces = planted()
    probes = fit_substructure(model, traces[:120])
    study = circuit_study(model, traces, draws=5, head_puzzles=40)
    pages = neuron_pages(model, study.scan, scan_sample(model, traces[:120]), count=2)
    config = ProbeConfig(puzzles=200, probes=("logistic",), draws=20, tol=1e-2)
    both = {"tiny0": tiny_model(0), "tiny1": tiny_model(1)}
    values: dict[str, Any] = {
        "solving": solving_study(model, kind="dense", puzzles=40, examples=2),
        "probes": probe_study(both, config, show=False),
        "interventions": patch_study(model, traces[120:], probes, samples=30, draws=2),
        "circuit": CircuitFindings(study, pages),
    }
    return tuple(Result(part, NAME, {"weights": "0123", "seeds": [1, 2]}, value) for part, value in values.items())


def value(part: str) -> Any:
    """That of `results` of one part."""
    return next(one.value for one in results() if one.part == part)


def renamed(name: str) -> list[Result]:
    """The same results of a model of another name."""
    return [Result(one.part, name, {"note": name}, one.value) for one in results()]
