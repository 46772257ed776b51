"""Is a model's world of cells or of units? What cell-state probes decide, and what they cannot.

Perfect probes for units and candidates follow from a cell-wise code as well. Only the cell-state probe has a ceiling
under one hypothesis and none under the other. But noise lowers it under both, so a low value alone says nothing. What a
noisy cell-wise code cannot do is to give away units well and cells badly. Hence the comparison, our own:

    for either code, in the model's width:  x = code P / deviation + s * noise
        a(s) = AUC of its substructure probes      c(s) = accuracy of its cell-state probes
    matched at the model's own AUC a:   S = c_sub(a^-1),  K = c_cell(a^-1)
    position = (model's cell-state accuracy - S) / (K - S)       0: substructure, 1: cell-wise

The verdict is "substructure" or "cell-wise" if the position's whole interval lies within a third of 0 or 1 or beyond,
else "undecided": it may be of both, or of neither. It is "undecided" whatever the position if the noiseless ceilings of
the two codes are nearer than `min_gap` (boards so sparse that units give the cells away: 1.00 on minimal 4x4 boards), or
S and K are (activations that tell of neither).

A substructure code read by a deeper layer may carry products of its bits, which tell more of the cells than the bits
do; the noise is isotropic, a model's is not. So "undecided" is no defect of a model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.probe_metrics import Counts, Estimate
from interp.stats import bootstrap_ratio
from interp.sudoku.probe_records import Crossing, CrossingRow, CurvePoint, Verdict

NOISES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Deviations of the noise in the reference codes; between them the curve is taken for straight."""


def noisy(code: Float[Tensor, "m d"], noise: float, *, seed: int) -> Float[Tensor, "m d"]:
    """The code centred, at a mean square of 1 per entry, with noise of a deviation per entry."""
    code = code - code.mean(0)
    code = code / code.pow(2).mean().sqrt().clamp_min(1e-12)
    maker = torch.Generator().manual_seed(seed)
    return code + noise * torch.randn(code.shape, generator=maker).to(code)


def matched(points: Sequence[CurvePoint], code: str, auc: float) -> float:
    """Cell-state accuracy of a code whose noise leaves this AUC; the curve's ends beyond them."""
    own = sorted((point.substructure_auc, point.cell_state) for point in points if point.code == code)
    return float(np.interp(auc, [a for a, _ in own], [c for _, c in own]))


def decide(
    name: tuple[str, str, int], cell_state: Estimate, auc: float, points: Sequence[CurvePoint], *, min_gap: float
) -> Verdict:
    """The verdict on one layer; `name` is (model, source, layer)."""
    ceilings = {point.code: point.cell_state for point in points if point.noise == 0}
    low, high = matched(points, "substructure", auc), matched(points, "cell", auc)
    gap = max(high - low, 1e-9)
    position = Estimate(*((value - low) / gap for value in cell_state))
    if ceilings["cell"] - ceilings["substructure"] < min_gap:
        verdict, reason = (
            "undecided",
            (
                f"no power: a substructure code already gives {ceilings['substructure']:.3f} of the cells, a cell-wise one "
                f"{ceilings['cell']:.3f}; the boards are too sparse"
            ),
        )
    elif high - low < min_gap:
        verdict, reason = (
            "undecided",
            (f"at a substructure AUC of {auc:.3f} both codes give as much of the cells ({low:.3f} and {high:.3f})"),
        )
    else:
        verdict = "substructure" if position.high < 1 / 3 else "cell-wise" if position.low > 2 / 3 else "undecided"
        reason = (
            f"cell states {cell_state.value:.3f}; at a substructure AUC of {auc:.3f} a substructure code gives "
            f"{low:.3f}, a cell-wise one {high:.3f}: {position.value:.2f} of the way"
        )
    return Verdict(*name, cell_state, auc, low, high, position, verdict, reason)


Sides = dict[str, Counts]
"""Counts of a model's test puzzles by target: cell states' accuracy, exact match of the others."""


def crossing(
    trained: dict[tuple[str, int], Sides],
    random: dict[tuple[str, int], Sides],
    ceiling: Counts,
    *,
    draws: int = 500,
    seed: int = 0,
) -> Crossing:
    """Compare models before and after training, by (model, layer); all on the same puzzles, drawn together."""
    layers = sorted({layer for _, layer in trained})
    names = sorted({model for model, _ in trained})

    def row(models: Sequence[str], label: str, layer: int) -> CrossingRow:
        def difference(target: str) -> Estimate:
            pairs = [(trained[name, layer][target], random[name, layer][target]) for name in models]
            return _paired(pairs, draws, seed)

        above = _paired([(trained[name, layer]["cell state"], ceiling) for name in models], draws, seed)
        return CrossingRow(
            label, layer, difference("cell state"), difference("substructure"), difference("candidates"), above
        )

    rows = [row([name], name, layer) for name in names for layer in layers]
    if len(names) > 1:
        rows += [row(names, "all", layer) for layer in layers]
    crossed = [layer for layer in layers if all(_crosses(one) for one in rows if one.layer == layer)]
    holds = len(names) > 1 and bool(crossed)
    return Crossing(tuple(rows), tuple(crossed), holds, _statement(rows, crossed, len(names)))


def _crosses(row: CrossingRow) -> bool:
    return row.cell_state.high < 0 < min(row.substructure.low, row.candidates.low)


def _paired(pairs: Sequence[tuple[Counts, Counts]], draws: int, seed: int) -> Estimate:
    """Mean difference of two ratios with the same counts."""
    counted = pairs[0][0].counted
    assert all((one.counted == counted).all() and (two.counted == counted).all() for one, two in pairs)
    used = counted > 0
    sums = np.mean([one.right - two.right for one, two in pairs], axis=0)[used]
    return Estimate(
        float(sums.sum() / counted[used].sum()), *bootstrap_ratio(sums, counted[used], draws=draws, seed=seed)
    )


def _statement(rows: Sequence[CrossingRow], crossed: Sequence[int], models: int) -> str:
    if not crossed:
        return (
            "In no layer does training lower what cell-state probes read and raise what unit and candidate probes read"
        )
    best = max((row for row in rows if row.layer in crossed), key=lambda row: (row.model == "all", row.substructure))

    def said(estimate: Estimate) -> str:
        return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"

    seeds = f"in all {models} models" if models > 1 else "in the one model given (two are needed for the claim)"
    return (
        f"Training lowers cell states and raises units and candidates {seeds}, in layer "
        f"{', '.join(map(str, crossed))}; in layer {best.layer}: cell states {said(best.cell_state)}, to "
        f"{said(best.from_ceiling)} of the substructure ceiling; units exactly {said(best.substructure)}, candidates "
        f"exactly {said(best.candidates)}"
    )
