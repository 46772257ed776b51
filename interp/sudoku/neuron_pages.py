"""The best neurons of a scan one by one: activation by candidate count of the cell, and where on the board each fires.

by count     quantiles .05 .25 .5 .75 .95 of the activation, by candidates of the neuron's cell (0: filled)
where        for every (cell, digit): (mean where it is a naked single - mean elsewhere) / deviation
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.sudoku.board import candidates
from interp.sudoku.model import SudokuModel
from interp.sudoku.neuron_scan import MIN_STATES, NeuronScan, Sample
from interp.sudoku.records import Record
from interp.sudoku.replay import forced_moves

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class NeuronPage(Record):
    """One neuron, chosen for one (cell, digit)."""

    layer: int
    neuron: int
    token: int
    auc: float
    by_count: Float[np.ndarray, "c 5"]
    """NaN for counts of fewer than 30 states."""
    single: Float[np.ndarray, " 5"]
    """The same quantiles where the (cell, digit) is a naked single."""
    where: Float[np.ndarray, "cells n"]
    """NaN for pairs of fewer than 10 naked singles."""


def neuron_pages(model: SudokuModel, scan: NeuronScan, sample: Sample, *, count: int = 6) -> tuple[NeuronPage, ...]:
    """The `count` highest AUCs by (cell, digit), each neuron and each cell once."""
    rules, x = model.rules, sample.neurons.double().numpy()
    single = forced_moves(rules, sample.states.boards, singles="naked")
    held = candidates(rules, sample.states.boards).sum(-1)
    pages: list[NeuronPage] = []
    order = np.argsort(-np.nan_to_num(scan.naked.auc, nan=-1.0), kind="stable")
    for token in (int(t) for t in order if scan.naked.best[t] >= 0):
        neuron, cell = int(scan.naked.best[token]), token // rules.n
        if len(pages) == count:
            break
        if any(page.neuron == neuron or page.token // rules.n == cell for page in pages):
            continue
        acts = x[:, neuron]
        pages.append(
            NeuronPage(
                layer=scan.layer,
                neuron=neuron,
                token=token,
                auc=float(scan.naked.auc[token]),
                by_count=np.stack([_quantiles(acts[held[:, cell] == c], MIN_STATES) for c in range(rules.n + 1)]),
                single=_quantiles(acts[single[:, token]], 1),
                where=_where(acts, single).reshape(rules.n_cells, rules.n),
            )
        )
    return tuple(pages)


def _quantiles(values: Float[np.ndarray, " k"], least: int) -> Float[np.ndarray, " 5"]:
    return np.quantile(values, QUANTILES) if len(values) >= least else np.full(len(QUANTILES), np.nan)


def _where(acts: Float[np.ndarray, " n"], single: np.ndarray) -> Float[np.ndarray, " q"]:
    size = single.sum(0).astype(float)
    enough = (size >= 10) & (len(acts) - size >= 10)
    total = acts @ single
    on, off = total / np.maximum(size, 1), (acts.sum() - total) / np.maximum(len(acts) - size, 1)
    return np.where(enough, (on - off) / max(float(acts.std()), 1e-12), np.nan)
