"""Symmetries of the game as permutations of tokens: another puzzle of the same difficulty, and its trace stays valid.

    token of (cell, digit)  ->  token of (cell', digit')          control tokens stay
    digit'  any relabelling         cell'  rows within a band, bands, columns within a stack, stacks, transposition

Compose with `first_then`: permutations of tokens form a group of  n! * rows * columns * (2 if boxes are square)
elements, where rows = bands! * (box rows)!^bands. Transposition turns boxes of 2x3 into 3x2, so 6x6 boards lack it.
"""

from math import factorial

import numpy as np
from jaxtyping import Bool, Int, Int8

from interp.errors import InputError
from interp.sudoku.board import Rules, as_grids
from interp.sudoku.tokens import Vocabulary
from interp.sudoku.traces import TraceSet


def random_symmetries(rules: Rules, count: int, rng: np.random.Generator) -> Int[np.ndarray, "b size"]:
    """Uniform symmetries, a row each: `new token = row[token]`."""
    rows, columns = rules.box
    row = _lines(rng, count, rules.n // rows, rows)[:, :, None]
    column = _lines(rng, count, rules.n // columns, columns)[:, None, :]
    turned = rng.integers(2, size=(count, 1, 1)) * int(rows == columns)
    cell = np.where(turned, column * rules.n + row, row * rules.n + column).reshape(count, rules.n_cells, 1)
    digit = rng.permuted(np.tile(np.arange(rules.n), (count, 1)), axis=1)[:, None, :]
    v = Vocabulary(rules)
    controls = np.broadcast_to(np.arange(v.n_placements, v.size), (count, v.size - v.n_placements))
    return np.concatenate([(cell * rules.n + digit).reshape(count, -1), controls], axis=1)


def random_symmetry(rules: Rules, rng: np.random.Generator) -> Int[np.ndarray, " size"]:
    """One uniform symmetry."""
    return random_symmetries(rules, 1, rng)[0]


def n_symmetries(rules: Rules) -> int:
    """Order of the group."""
    lines = [factorial(rules.n // size) * factorial(size) ** (rules.n // size) for size in rules.box]
    return factorial(rules.n) * lines[0] * lines[1] * (2 if rules.box[0] == rules.box[1] else 1)


def inverse(permutation: Int[np.ndarray, " size"]) -> Int[np.ndarray, " size"]:
    """The symmetry that undoes this one."""
    return np.argsort(permutation)


def first_then(first: Int[np.ndarray, " size"], then: Int[np.ndarray, " size"]) -> Int[np.ndarray, " size"]:
    """One symmetry that does what the two do one after the other."""
    return then[first]


def apply(permutation: Int[np.ndarray, "*b size"], tokens: Int[np.ndarray, "b t"]) -> Int[np.ndarray, "b t"]:
    """The tokens renamed: by one permutation, or each row by its own. The type of the tokens is kept."""
    if permutation.ndim == 1:
        return permutation[tokens].astype(tokens.dtype)
    return np.take_along_axis(permutation, tokens.astype(np.int64), axis=1).astype(tokens.dtype)


def apply_to_grids(
    rules: Rules, permutation: Int[np.ndarray, " size"], grids: Int[np.ndarray, "b cells"]
) -> Int8[np.ndarray, "b cells"]:
    """The boards after one symmetry of their rules."""
    grids = as_grids(rules, grids)
    if not is_symmetry(rules, permutation):
        raise InputError(
            f"the permutation of {len(permutation)} tokens is no symmetry of a board of side {rules.n}; "
            "take one from random_symmetry"
        )
    cell = permutation[: rules.n_cells * rules.n : rules.n] // rules.n
    digit = np.concatenate([[0], permutation[: rules.n] % rules.n + 1])
    moved = np.empty_like(grids)
    moved[:, cell] = digit[grids]
    return moved


def apply_to_traces(permutation: Int[np.ndarray, " size"], traces: TraceSet) -> TraceSet:
    """The same solving of other puzzles: reasons and lengths stay."""
    rules = traces.rules
    puzzles, solutions = (apply_to_grids(rules, permutation, grids) for grids in (traces.puzzles, traces.solutions))
    tokens = apply(permutation, traces.tokens)
    return TraceSet(rules, tokens, traces.lengths, traces.n_clues, traces.reasons, puzzles, solutions)


def is_symmetry(rules: Rules, permutation: Int[np.ndarray, " size"]) -> bool:
    """Whether it maps cells to cells and digits to digits, units to units, and leaves the control tokens."""
    v = Vocabulary(rules)
    if not np.array_equal(np.sort(permutation), np.arange(v.size)):
        return False
    placements = permutation[: v.n_placements].reshape(rules.n_cells, rules.n)
    cell, digit = placements[:, 0] // rules.n, placements[0] % rules.n
    whole: Bool[np.ndarray, "cells n"] = placements == cell[:, None] * rules.n + digit
    units = {tuple(unit) for unit in rules.units.tolist()}
    kept = {tuple(unit) for unit in np.sort(cell[rules.units], axis=1).tolist()} == units
    return (
        bool(whole.all()) and kept and np.array_equal(permutation[v.n_placements :], np.arange(v.n_placements, v.size))
    )


def _lines(rng: np.random.Generator, count: int, groups: int, size: int) -> Int[np.ndarray, "b n"]:
    """Where each row (or column) goes: groups change places, and so do the lines of a group."""
    group = rng.permuted(np.tile(np.arange(groups), (count, 1)), axis=1)
    line = rng.permuted(np.tile(np.arange(size), (count, groups, 1)), axis=2)
    return (group[:, :, None] * size + line).reshape(count, -1)
