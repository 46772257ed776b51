"""The circuit study: heads that suppress held digits, neurons that fire for forced moves, margins of forced digits.

    traces of one half    neurons of cells and of (cell, digit) pairs, in the model and in an untrained one of its shape
    traces of the other   what ablating the found neurons does; margins; lens by layer
    some of all           heads

The untrained model is the control that counts for the neurons: random features of a board tell forced moves better than
chance, so that many pairs pass the permutation threshold there too, with much lower AUCs and fewer distinct neurons.

The parts and their methods: `interp.sudoku.head_scores`, `neuron_scan`, `neuron_effects`. After the code published with
arXiv 2605.18847; permutation nulls, AUCs, split halves and intervals are ours.
"""

from dataclasses import dataclass
from typing import Any

from interp.errors import InputError
from interp.sudoku.head_scores import HeadScore as HeadScore
from interp.sudoku.head_scores import HeadScores as HeadScores
from interp.sudoku.head_scores import head_scores as head_scores
from interp.sudoku.model import SudokuModel, build_model
from interp.sudoku.neuron_effects import Margins as Margins
from interp.sudoku.neuron_effects import NeuronAblation as NeuronAblation
from interp.sudoku.neuron_effects import NeuronTokens as NeuronTokens
from interp.sudoku.neuron_effects import margins as margins
from interp.sudoku.neuron_effects import neuron_ablation as neuron_ablation
from interp.sudoku.neuron_effects import neuron_tokens as neuron_tokens
from interp.sudoku.neuron_scan import NeuronScan as NeuronScan
from interp.sudoku.neuron_scan import neuron_scan as neuron_scan
from interp.sudoku.neuron_scan import scan_sample as scan_sample
from interp.sudoku.records import Record
from interp.sudoku.traces import TraceSet


@dataclass(frozen=True)
class CircuitStudy(Record):
    """All parts of the study of one model."""

    heads: HeadScores
    scan: NeuronScan
    untrained: NeuronScan
    """Of a model with new weights, on the same states."""
    tokens: NeuronTokens
    """Of the neurons found for naked singles by (cell, digit)."""
    ablation: NeuronAblation | None
    """None where no neuron was found."""
    margins: Margins


def circuit_study(
    model: SudokuModel,
    traces: TraceSet,
    *,
    per_trace: int = 1,
    draws: int = 100,
    head_puzzles: int = 1000,
    seed: int = 42,
) -> CircuitStudy:
    """Study a model on its own traces."""
    half = len(traces) // 2
    if half < 4:
        raise InputError(f"{len(traces)} traces: expected at least 8, half to find neurons and half to try them on")
    found, tried = traces[:half], traces[half:]
    sample = scan_sample(model, found, per_trace=per_trace, seed=seed)
    scan = neuron_scan(model, sample, draws=draws, seed=seed)
    hf: Any = build_model(model.config, seed=seed)
    fresh = SudokuModel.of(hf.to(model.hooked.device), model.config)
    theirs = scan_sample(fresh, found, per_trace=per_trace, seed=seed)
    return CircuitStudy(
        heads=head_scores(model, traces[:head_puzzles]),
        scan=scan,
        untrained=neuron_scan(fresh, theirs, draws=draws, seed=seed),
        tokens=neuron_tokens(model, scan.naked, sample),
        ablation=neuron_ablation(model, tried, scan.naked, sample, seed=seed) if scan.naked.found.any() else None,
        margins=margins(model, tried),
    )
