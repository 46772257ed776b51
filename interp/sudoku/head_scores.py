"""Which heads keep the digits that a row, column or box already holds from being played there.

    suppression(head, unit) = mean over (empty cell of the unit, digit the unit holds) of (ablated - clean logit)

at END_CLUES, the head's output there replaced by its mean over puzzles: positive where the head pushes such moves down.
Each head's unit is chosen on one half of the puzzles and measured on the other; its control is the mean over the other
units of the same kind, as the published code sets columns 1-3 against 4-6. Beside it stands the direct logit
attribution of each head on the empty cells of a unit, split by whether the unit holds the digit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution import direct_logit_attribution
from interp.errors import InputError
from interp.model import Edit
from interp.probe_metrics import Estimate
from interp.sites import Point, Site
from interp.sudoku.board import Rules
from interp.sudoku.labels import filled, substructure
from interp.sudoku.model import SudokuModel
from interp.sudoku.reads import BATCH, States, at_read, clue_states, mean_of, read
from interp.sudoku.records import Record
from interp.sudoku.traces import TraceSet


@dataclass(frozen=True)
class HeadScore(Record):
    """One head on the unit it suppresses most."""

    layer: int
    head: int
    unit: int
    target: Estimate
    control: Estimate
    """The other units of the same kind (rows, columns or boxes)."""
    difference: Estimate
    """Target less control, puzzle by puzzle."""


@dataclass(frozen=True)
class HeadScores(Record):
    """Every head's suppression and attribution at END_CLUES."""

    n: int
    heads: tuple[HeadScore, ...]
    suppression: Float[np.ndarray, "l h u"]
    """Of every unit, over all puzzles."""
    present: Float[np.ndarray, "l h u"]
    """Direct logit attribution on digits that the unit holds, mean over its empty cells."""
    absent: Float[np.ndarray, "l h u"]
    """The same on digits that it lacks."""


def head_scores(model: SudokuModel, traces: TraceSet, *, attribution_puzzles: int = 1000) -> HeadScores:
    """Scores of all heads, from traces that are read at END_CLUES."""
    rules, states = model.rules, clue_states(traces)
    if len(states) < 4:
        raise InputError(
            f"{len(states)} puzzles: expected at least 4, half to choose each head's unit and half to test"
        )
    layers, heads = model.config.n_layers, model.config.n_heads
    sites = [Site(Point.Z, layer) for layer in range(layers)]
    clean, found = read(model, states, sites)
    held = moves_in(rules, states.boards, present=True)
    table = np.full((layers, heads, len(states), 3 * rules.n), np.nan)
    for site in sites:
        assert site.layer is not None
        for head in range(heads):
            ablated, _ = read(model, states, edits=_mean_edit(Site(Point.Z, site.layer, head), states, found[site]))
            table[site.layer, head] = _by_unit(rules, ablated - clean, held)
    first = np.arange(len(states)) % 2 == 0
    chosen = [_score(rules, table[i, j], i, j, first) for i in range(layers) for j in range(heads)]
    some = states[: min(len(states), attribution_puzzles)]
    present, absent = head_attribution(model, some)
    return HeadScores(len(states), tuple(chosen), _mean_over(table, 2), present, absent)


def moves_in(
    rules: Rules, boards: Int[np.ndarray, "m cells"], *, present: bool
) -> Bool[np.ndarray, "m units n digits"]:
    """Per unit: its empty cells x the digits it holds (or, not `present`, lacks)."""
    empty = ~filled(rules, boards)[:, rules.units]
    digits = substructure(rules, boards)
    return empty[..., None] & (digits if present else ~digits)[:, :, None]


def _by_unit(
    rules: Rules, values: Float[Tensor, "m v"], mask: Bool[np.ndarray, "m units n digits"]
) -> Float[np.ndarray, "m units"]:
    """Mean of a value per placement over the moves of each unit; NaN where a unit has none."""
    grid = values[:, : rules.n_cells * rules.n].double().numpy().reshape(len(values), rules.n_cells, rules.n)
    total, size = np.where(mask, grid[:, rules.units], 0.0).sum((2, 3)), mask.sum((2, 3))
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def _mean_over(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Mean of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    size = there.sum(axis)
    return np.where(size > 0, np.where(there, values, 0.0).sum(axis) / np.maximum(size, 1), np.nan)


def _mean_edit(site: Site, states: States, z: Float[Tensor, "n h e"]):
    mean = z[:, site.head].mean(0)

    def edits(part: slice) -> dict[Site, Edit]:
        return {site: at_read(lambda x: mean.to(x).expand_as(x), states.at[part])}

    return edits


def _score(rules: Rules, table: Float[np.ndarray, "m u"], layer: int, head: int, first: np.ndarray) -> HeadScore:
    unit = int(np.nan_to_num(_mean_over(table[first], 0), nan=-np.inf).argmax())
    kind = unit // rules.n
    same = [u for u in range(kind * rules.n, (kind + 1) * rules.n) if u != unit]
    rest = table[~first]
    target, control = rest[:, unit], _mean_over(rest[:, same], 1)
    return HeadScore(layer, head, unit, mean_of(target), mean_of(control), mean_of(target - control))


def head_attribution(
    model: SudokuModel, states: States, *, batch: int = BATCH
) -> tuple[Float[np.ndarray, "l h u"], Float[np.ndarray, "l h u"]]:
    """Mean direct logit attribution of each head on the empty cells of each unit: digits held, digits lacking."""
    rules, shape = model.rules, (model.config.n_layers, model.config.n_heads)
    masks = [moves_in(rules, states.boards, present=present) for present in (True, False)]
    sums = [np.zeros((*shape, 3 * rules.n)) for _ in masks]
    targets = torch.arange(rules.n_cells * rules.n)
    for start in range(0, len(states), batch):
        part = states[start : start + batch]
        at = torch.from_numpy(part.at)
        tokens = torch.from_numpy(part.traces.tokens[part.row, : int(at.max()) + 1].astype(np.int64))
        found = direct_logit_attribution(model.hooked, tokens, targets, lengths=at + 1)
        heads = found.of("attn").double().cpu().numpy().reshape(len(part), rules.n_cells, rules.n, *shape)
        for total, mask in zip(sums, masks, strict=True):
            total += np.einsum("bucnlh,bucn->lhu", heads[:, rules.units], mask[start : start + batch].astype(float))
    sizes = [mask.sum((0, 2, 3)) for mask in masks]
    present, absent = (
        np.where(size > 0, total / np.maximum(size, 1), np.nan) for total, size in zip(sums, sizes, strict=True)
    )
    return present, absent
