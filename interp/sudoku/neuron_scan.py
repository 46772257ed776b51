"""Which neurons of the last MLP fire where a cell, or a digit in a cell, is forced.

    by cell           positive: the cell has one candidate                                  q = cells
    by cell, digit    positive: the cell has this one candidate (a naked single)            q = cells x digits
    forced            positive: (cell, digit) is a naked or a hidden single

Each pair's best neuron is held against the best of a permutation (`interp.sudoku.ranking`). The scan published with
arXiv 2605.18847 is by cell: mean activation by candidate count (0 = filled), bins of 30 states or more, gap = mean at
count 1 less the largest other mean, kept at gap >= 3.0 with a positive mean. That threshold depends on the model's
scale; beside it stand the gap in standard deviations of the neuron, and AUCs. States are those behind a placement.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.sites import Point, Site
from interp.sudoku.board import candidates
from interp.sudoku.model import SudokuModel
from interp.sudoku.ranking import Ranking, ranking
from interp.sudoku.reads import States, read, sampled, solving_states
from interp.sudoku.records import Record
from interp.sudoku.replay import forced_moves
from interp.sudoku.traces import TraceSet

MIN_STATES = 30
GAP = 3.0


class Sample(NamedTuple):
    """States in blocks of equally many per trace, and the last MLP's neurons there."""

    states: States
    neurons: Float[Tensor, "n m"]
    block: int


class CellNeuron(NamedTuple):
    """A neuron and the cell it was kept for."""

    cell: int
    neuron: int


@dataclass(frozen=True)
class GapScan(Record):
    """Per cell, the neuron with the largest gap."""

    neuron: Int[np.ndarray, " q"]
    gap: Float[np.ndarray, " q"]
    """In units of the activation."""
    standard_neuron: Int[np.ndarray, " q"]
    standard_gap: Float[np.ndarray, " q"]
    """Largest gap in standard deviations of its neuron over all states, and which neuron that is."""
    kept: tuple[CellNeuron, ...]
    """Every gap of 3.0 or more with a positive mean at count 1: the published rule."""
    means: Float[np.ndarray, "q c"]
    """Mean activation of the neuron of `standard_gap` by candidate count; NaN in bins of too few states."""


@dataclass(frozen=True)
class NeuronScan(Record):
    """All scans of the last block's MLP neurons."""

    layer: int
    states: int
    gaps: GapScan
    cells: Ranking
    naked: Ranking
    """By (cell, digit), in the order of the placement tokens."""
    forced: Ranking


def last_neurons(model: SudokuModel) -> Site:
    """The last block's MLP, behind the activation."""
    return Site(Point.MLP_POST, model.config.n_layers - 1)


def scan_sample(model: SudokuModel, traces: TraceSet, *, per_trace: int = 1, seed: int = 42) -> Sample:
    """`per_trace` states of each trace and their activations."""
    states = sampled(solving_states(traces), per_trace=per_trace, seed=seed)
    site = last_neurons(model)
    return Sample(states, read(model, states, [site])[1][site], per_trace)


def neuron_scan(model: SudokuModel, sample: Sample, *, draws: int = 100, seed: int = 0) -> NeuronScan:
    """Scan a sample for neurons of cells and of (cell, digit) pairs."""
    rules, states, x = model.rules, sample.states, sample.neurons
    count = candidates(rules, states.boards).sum(-1)
    labels = {
        "cells": count == 1,
        "naked": forced_moves(rules, states.boards, singles="naked"),
        "forced": forced_moves(rules, states.boards, singles="naked+hidden"),
    }
    ranked = {
        name: ranking(x, torch.from_numpy(y), block=sample.block, draws=draws, seed=seed) for name, y in labels.items()
    }
    return NeuronScan(layer=model.config.n_layers - 1, states=len(states), gaps=gap_scan(x, count, rules.n), **ranked)


def gap_scan(x: Float[Tensor, "n m"], count: Int[np.ndarray, "n q"], digits: int) -> GapScan:
    """Gaps of every (cell, neuron) from candidate counts; a cell without 30 states at count 1 has none (-1, NaN)."""
    wide, spread = x.double(), x.double().std(0).clamp_min(1e-12)
    raw, standard, means = [], [], []
    for column in count.T:
        hot = torch.from_numpy(column[:, None] == np.arange(digits + 1)).double()
        size = hot.sum(0)
        mean = torch.where((size >= MIN_STATES)[:, None], hot.T @ wide / size[:, None].clamp_min(1), torch.nan)
        others = torch.cat([mean[:1], mean[2:]]).nan_to_num(-torch.inf).max(0).values
        raw.append(torch.where(others.isinf(), torch.nan, mean[1] - others))
        standard.append(raw[-1] / spread)
        means.append(mean)
    gaps, scaled = torch.stack(raw), torch.stack(standard)
    at_one = torch.stack([mean[1] for mean in means])
    neuron, gap = _best(gaps)
    best, size = _best(scaled)
    shown = np.stack([mean[:, max(0, i)].numpy() for mean, i in zip(means, best.tolist(), strict=True)])
    kept = torch.nonzero((gaps >= GAP) & (at_one > 0)).tolist()
    return GapScan(neuron, gap, best, size, tuple(CellNeuron(*pair) for pair in kept), shown)


def _best(values: Float[Tensor, "q m"]) -> tuple[Int[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    told: Bool[Tensor, " q"] = ~values.isnan().any(1)
    top = values.nan_to_num(-torch.inf).max(1)
    return torch.where(told, top.indices, -1).numpy(), torch.where(told, top.values, torch.nan).numpy()
