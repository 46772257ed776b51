"""The page's sections on the circuit: heads that suppress held digits, neurons of forced moves, margins."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.page.numbers import number
from interp.sudoku.board import Rules
from interp.sudoku.jobs import CircuitFindings
from interp.sudoku.neuron_pages import NeuronPage
from interp.sudoku.ranking import Ranking
from interp.sudoku.tokens import Vocabulary
from interp.sudoku_report.numbers import interval, short_unit, unit_name

if TYPE_CHECKING:
    from interp.page import Part, Section


def circuit_sections(circuits: dict[str, CircuitFindings], side: int | None) -> "list[Section | None]":
    """Heads, neurons; the board's side is that of the other results, or what fits the number of units."""
    sides = {name: side or one.study.heads.suppression.shape[2] // 3 for name, one in circuits.items()}
    rules = {name: Rules.of(n) for name, n in sides.items()}
    return [_heads(circuits, rules), _neurons(circuits, rules), _margins(circuits)]


def _heads(circuits: dict[str, CircuitFindings], rules: dict[str, Rules]) -> "Section":
    from interp.page import Row, Section, Table

    figures: list[Part] = []
    rows = []
    for name, one in circuits.items():
        scores = one.study.heads
        figures += [_grid(name, one, rules[name], what) for what in ("suppression", "attribution")]
        for head in sorted(scores.heads, key=lambda head: -head.difference.value):
            values = [interval(x, "+.3f") for x in (head.target, head.control, head.difference)]
            rows.append([name, f"{head.layer + 1}.{head.head + 1}", unit_name(rules[name], head.unit), *values])
    head = ["model", "layer.head", "unit", "suppression", "other units of the kind", "difference"]
    lead = (
        "Does a head keep digits that a unit already holds from being played there? Its output at END_CLUES is "
        "replaced by its mean over puzzles; the score is the rise of the logits of held digits on the unit's empty "
        "cells, positive where the head had pushed them down. Each head's unit is chosen on one half of the puzzles "
        "and measured on the other. Attribution is what the head writes directly to the logits of held digits, less "
        "that to lacking ones. Layers and heads count from 1."
    )
    return Section("Heads", [Row(figures, least=520), Table(head, rows, title="Each head's unit [95 %]")], lead=lead)


def _grid(name: str, one: CircuitFindings, rules: Rules, what: str) -> "Part":
    from interp.figures.sudoku_grids import number_grid
    from interp.page import Figure

    scores = one.study.heads
    values = scores.suppression if what == "suppression" else scores.present - scores.absent
    layers, heads, units = values.shape
    names = [f"{layer + 1}.{head + 1}" for layer in range(layers) for head in range(heads)]
    columns = [short_unit(rules, unit) for unit in range(units)]
    titles: dict[str, Any] = {"x_title": "unit", "y_title": "layer.head"}
    plot = number_grid(values.reshape(-1, units), rows=names, columns=columns, signed=True, form=".1f", **titles)
    said = {
        "suppression": ("Suppression", f"Rise of held digits' logits without the head, {scores.n:,} puzzles."),
        "attribution": ("Direct attribution", "To digits the unit holds, less that to digits it lacks."),
    }[what]
    return Figure(plot, f"{said[0]} · {name}", f"{said[1]} R row, C column, B box.")


def _neurons(circuits: dict[str, CircuitFindings], rules: dict[str, Rules]) -> "Section":
    from interp.page import Row, Section, Table

    parts: list[Part] = [Table(_SCAN_COLUMNS, _scan_rows(circuits), title="Neurons of the last MLP, by what they tell")]
    for name, one in circuits.items():
        if one.study.scan.naked.tested:
            parts.append(_auc_grid(name, one, rules[name]))
        for page in one.neurons[:3]:
            parts.append(Row(_page(name, page, rules[name]), least=520))
    parts.append(
        Table(_ABLATION_COLUMNS, _ablation_rows(circuits), title="The predicted cell's neurons at their means")
    )
    lead = (
        "Neurons that fire where a cell has one candidate left (the paper's scan), and where it has just this one "
        "(per cell and digit). Each pair's best neuron of all is held against the best of a permutation of puzzles, "
        "and the same scan is run on a model with random weights. A neuron may fire for a single and write against "
        "it: the sign of its logit weight says which. The paper's rule, a gap of 3.0 activation units, depends on a "
        "model's scale."
    )
    return Section("Naked-single neurons", parts, lead=lead)


_SCAN_COLUMNS = [
    "model",
    "scan",
    "tested",
    "found",
    "distinct neurons",
    "mean best AUC",
    "threshold",
    "found, random weights",
    "mean best AUC, random weights",
]
_SCANS = {"cells": "cell has one candidate", "naked": "naked single (cell, digit)", "forced": "naked or hidden single"}


def _scan_rows(circuits: dict[str, CircuitFindings]) -> list[list[str]]:
    rows = []
    for name, one in circuits.items():
        for scan, said in _SCANS.items():
            own: Ranking = getattr(one.study.scan, scan)
            fresh: Ranking = getattr(one.study.untrained, scan)
            found = [str(own.tested), str(int(own.found.sum())), str(own.distinct), number(own.mean_auc)]
            rows.append(
                [name, said, *found, number(own.threshold), str(int(fresh.found.sum())), number(fresh.mean_auc)]
            )
        gaps, cells = one.study.scan.gaps, str(len(one.study.scan.gaps.gap))
        largest = number(float(np.nanmax(gaps.gap)) if np.isfinite(gaps.gap).any() else math.nan, ".2f")
        said = f"gap ≥ 3.0, as published (largest: {largest})"
        rows.append([name, said, cells, str(len(gaps.kept)), *["−"] * 5])
    return rows


def _auc_grid(name: str, one: CircuitFindings, rules: Rules) -> "Part":
    from interp.figures.sudoku_grids import number_grid
    from interp.page import Figure

    scan = one.study.scan.naked
    values = scan.auc.reshape(rules.n_cells, rules.n).T
    columns = [f"R{cell // rules.n + 1}C{cell % rules.n + 1}" for cell in range(rules.n_cells)]
    best = scan.best.reshape(rules.n_cells, rules.n).T
    notes = [
        [f"neuron {n}, AUC {number(a)}" for n, a in zip(ns, many, strict=True)]
        for ns, many in zip(best.tolist(), values.tolist(), strict=True)
    ]
    digits = [str(digit + 1) for digit in range(rules.n)]
    titles: dict[str, Any] = {"x_title": "cell", "y_title": "digit"}
    plot = number_grid(values, rows=digits, columns=columns, bounds=(0.5, 1), notes=notes, **titles)
    return Figure(plot, f"Best neuron's AUC for each naked single · {name}", "Threshold by permutation: see the table.")


def _page(name: str, page: NeuronPage, rules: Rules) -> "list[Part]":
    from interp.figures.sudoku_grids import firing_board
    from interp.figures.sudoku_groups import count_boxes
    from interp.page import Figure

    token = Vocabulary(rules).describe(page.token)
    names = ["filled", *(str(count) for count in range(1, len(page.by_count))), f"single {token}"]
    quantiles = np.vstack([page.by_count, page.single])
    boxes = count_boxes(names, quantiles, x_title=f"candidates of {token[:4]}", y_title="activation")
    which = f"{name} · neuron {page.layer + 1}.{page.neuron}, {token}"
    said = f"AUC {number(page.auc)} for the single. Boxes: quartiles; whiskers: 5th to 95th percentile."
    board = firing_board(rules, page.where, token=page.token, title="deviations")
    about = (
        "Mean activation where (cell, digit) is a naked single less elsewhere, in deviations; digits of a cell laid "
        "out like a box, its own pair framed in green."
    )
    return [Figure(boxes, which, said), Figure(board, f"Where it fires · neuron {page.layer + 1}.{page.neuron}", about)]


_ABLATION_COLUMNS = [
    "model",
    "states",
    "neurons a state",
    "logit drop",
    "probability drop",
    "other singles' logits",
    "difference",
    "random neurons",
    "logit weight on own token",
    "on others",
]


def _ablation_rows(circuits: dict[str, CircuitFindings]) -> list[list[str]]:
    rows = []
    for name, one in circuits.items():
        done, tokens = one.study.ablation, one.study.tokens
        weights = [number(float(x.mean()) if len(x) else math.nan, "+.2f") for x in (tokens.own, tokens.other)]
        if done is None:
            rows.append([name, "0", *["−"] * 6, *weights])
            continue
        values = [
            interval(x, "+.2f")
            for x in (done.drop, done.probability_drop, done.others, done.difference, done.control_drop)
        ]
        rows.append([name, f"{done.n:,}", number(done.neurons, ".1f"), *values, *weights])
    return rows


def _stage(site: str) -> str:
    """`blocks.0.hook_resid_mid` is the stream behind the attention of block 1."""
    block, point = site.split(".")[1:3]
    return f"{'attention' if point.endswith('mid') else 'MLP'} {int(block) + 1}"


def _margins(circuits: dict[str, CircuitFindings]) -> "Section":
    from interp.figures.sudoku_curves import Line, interval_curves, margin_histogram
    from interp.page import Figure, Row, Section

    parts: list[Part] = []
    nan = math.nan
    for name, one in circuits.items():
        found = one.study.margins
        bars = margin_histogram(
            found.edges, found.counts, x_title="forced digit − best other digit of its cell, logits", y_title="states"
        )
        said = (
            f"{found.n:,} states with one naked single left that the model plays; median "
            f"{number(found.median, '.1f')}, above 0 in {interval(found.positive)}. Before the last MLP the forced "
            f"digit leads its cell in {interval(found.before_last_mlp)} of all naked singles."
        )
        at = [float(i) for i in range(len(found.stages))]
        lines = [
            Line(title, [(x, float(y), nan, nan) for x, y in zip(at, values, strict=True)])
            for title, values in (("forced digit", found.forced), ("best other digit", found.rival))
        ]
        lens = interval_curves(lines, x_title="stream", y_title="mean lens logit", ticks=at, height=320)
        lens.update_xaxes(ticktext=[_stage(stage) for stage in found.stages])
        parts.append(
            Row(
                [
                    Figure(bars, f"Margins · {name}", said),
                    Figure(lens, f"Lens by layer · {name}", "The final norm and unembedding on each stream."),
                ],
                least=520,
            )
        )
    return Section("Margins", parts, lead="By how much a forced digit leads the other digits of its cell, and where.")
