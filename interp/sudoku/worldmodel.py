"""Is a model's world of cells or of units? What cell-state probes decide, and what they cannot.

Perfect probes for units and candidates follow from a cell-wise code as well. Only the cell-state probe has a ceiling
under one hypothesis and none under the other. But damage lowers it under both, so a low value alone says nothing. What
a damaged cell-wise code cannot do is to give away units well and cells badly. Hence the comparison, our own:

    for either code, damaged by t:   a(t) = AUC of its substructure probes,   c(t) = accuracy of its cell-state probes
    matched at the model's own a:    S = c_sub(a^-1(a)),   K = c_cell(a^-1(a))
    position = (model's cell-state accuracy - S) / (K - S)            0: substructure, 1: cell-wise

Damage is isotropic noise on the code projected to the model's width, or the loss of a share of its bits (of whole cells
for the cell-wise code); S is the larger of the two, K the smaller. The verdict is "substructure" if the whole interval
of the position is below 1/3, "cell-wise" if above 2/3, else "undecided": of both, or of neither. It is "undecided"
whatever the position if the undamaged ceilings of the codes are nearer than `min_gap` (boards so sparse that units give
the cells away, as on minimal 4x4 boards), or S and K are (activations that tell of neither).

All this is about what is *linear* in a layer. A nonlinear function of the unit bits can tell more of the cells than the
bits do, so "cell-wise" in a late layer does not say that the model went from clues to cells without units.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.probe_metrics import Counts, Estimate
from interp.stats import bootstrap_ratio
from interp.sudoku.board import Rules
from interp.sudoku.oracle import cell_code, random_projection, substructure_code
from interp.sudoku.probe_records import Crossing, CrossingRow, CurvePoint, Verdict

CURVE = tuple(
    (code, damage, amount)
    for code in ("substructure", "cell")
    for damage, amounts in (("noise", (0.0, 0.5, 1.0, 2.0, 4.0)), ("loss", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)))
    for amount in amounts
)
"""Codes, damages and amounts; between amounts the curves are taken for straight."""


def damaged(
    rules: Rules, boards: Int[np.ndarray, "m cells"], d: int, code: str, damage: str, amount: float, *, seed: int
) -> Float[Tensor, "m e"]:
    """A code of boards with noise in d dimensions, or with a share of its bits (or cells) left out."""
    whole = substructure_code(rules, boards) if code == "substructure" else cell_code(rules, boards)
    if damage == "noise":
        return noisy(random_projection(whole, d, seed=seed), amount, seed=seed + 1)
    parts = whole.reshape(len(whole), -1, 1 if code == "substructure" else rules.n)
    order = np.random.default_rng(seed).permutation(parts.shape[1])
    kept = np.sort(order[round(amount * parts.shape[1]) :])
    return parts[:, kept].reshape(len(whole), -1) if len(kept) else whole.new_zeros(len(whole), 1)


def noisy(code: Float[Tensor, "m d"], noise: float, *, seed: int) -> Float[Tensor, "m d"]:
    """The code centred, at a mean square of 1 per entry, with noise of a deviation per entry."""
    code = code - code.mean(0)
    code = code / code.pow(2).mean().sqrt().clamp_min(1e-12)
    maker = torch.Generator().manual_seed(seed)
    return code + noise * torch.randn(code.shape, generator=maker).to(code)


def matched(points: Sequence[CurvePoint], code: str, auc: float) -> tuple[float, ...]:
    """Cell-state accuracy of the code damaged to this AUC, for each kind of damage; beyond a curve's ends, its end."""
    found = []
    for damage in dict.fromkeys(point.damage for point in points):
        own = sorted((p.substructure_auc, p.cell_state) for p in points if (p.code, p.damage) == (code, damage))
        found.append(float(np.interp(auc, [a for a, _ in own], [c for _, c in own])))
    return tuple(found)


def decide(
    name: tuple[str, str, int], cell_state: Estimate, auc: float, points: Sequence[CurvePoint], *, min_gap: float
) -> Verdict:
    """The verdict on one layer; `name` is (model, source, layer)."""
    ceilings = {code: max(p.cell_state for p in points if p.code == code) for code in ("substructure", "cell")}
    low, high = max(matched(points, "substructure", auc)), min(matched(points, "cell", auc))
    position = Estimate(*((value - low) / max(high - low, 1e-9) for value in cell_state))
    verdict = "undecided"
    if ceilings["cell"] - ceilings["substructure"] < min_gap:
        reason = (
            f"no power: a substructure code already gives {ceilings['substructure']:.3f} of the cells, a cell-wise "
            f"one {ceilings['cell']:.3f}; the boards are too sparse"
        )
    elif high - low < min_gap:
        reason = f"at a substructure AUC of {auc:.3f} both codes give as much of the cells ({low:.3f} and {high:.3f})"
    else:
        verdict = "substructure" if position.high < 1 / 3 else "cell-wise" if position.low > 2 / 3 else "undecided"
        reason = (
            f"cell states {cell_state.value:.3f}; at a substructure AUC of {auc:.3f} a substructure code gives "
            f"{low:.3f}, a cell-wise one {high:.3f}: {position.value:.2f} of the way"
        )
    return Verdict(*name, cell_state, auc, low, high, position, verdict, reason)


Sides = dict[str, Counts]
"""Counts of a model's test puzzles by target: cell states' accuracy, exact match of the others."""
CROSSED = ("cell state", "substructure", "candidates")


def crossing(
    reference: str,
    trained: dict[tuple[str, int], Sides],
    before: dict[tuple[str, int], Sides],
    ceiling: Counts,
    *,
    draws: int = 500,
    seed: int = 0,
) -> Crossing:
    """Compare models after and before training, by (model, layer); all on the same puzzles, drawn together."""
    layers = sorted({layer for _, layer in trained})
    names = list(dict.fromkeys(model for model, _ in trained))

    def row(models: Sequence[str], label: str, layer: int) -> CrossingRow:
        def difference(target: str) -> Estimate:
            return _paired(
                [(trained[name, layer][target], before[name, layer][target]) for name in models], draws, seed
            )

        above = _paired([(trained[name, layer]["cell state"], ceiling) for name in models], draws, seed)
        cells, units, candidates = (difference(target) for target in CROSSED)
        return CrossingRow(label, reference, layer, cells, units, candidates, above)

    rows = [row([name], name, layer) for name in names for layer in layers]
    if len(names) > 1:
        rows += [row(names, "all", layer) for layer in layers]
    raised = [k for k in layers if all(min(r.substructure.low, r.candidates.low) > 0 for r in rows if r.layer == k)]
    crossed = [k for k in raised if all(r.cell_state.high < 0 for r in rows if r.layer == k)]
    said = _statement(reference, rows, raised, crossed, len(names))
    return Crossing(reference, tuple(rows), tuple(raised), tuple(crossed), len(names) > 1 and bool(crossed), said)


def _paired(pairs: Sequence[tuple[Counts, Counts]], draws: int, seed: int) -> Estimate:
    """Mean difference of two ratios with the same counts."""
    counted = pairs[0][0].counted
    assert all((one.counted == counted).all() and (two.counted == counted).all() for one, two in pairs)
    used = counted > 0
    sums = np.mean([one.right - two.right for one, two in pairs], axis=0)[used]
    return Estimate(
        float(sums.sum() / counted[used].sum()), *bootstrap_ratio(sums, counted[used], draws=draws, seed=seed)
    )


def _statement(
    reference: str, rows: Sequence[CrossingRow], raised: Sequence[int], crossed: Sequence[int], models: int
) -> str:
    against = {"random": "a random-initialised model", "uniform": "an untrained model with uniform attention"}[
        reference
    ]
    who = f"{models} models" if models > 1 else "one model (two are needed for a claim)"
    if not raised:
        return f"Against {against}, in no layer do unit and candidate probes both read more; {who}."
    shown = max((r for r in rows if r.layer in (crossed or raised)), key=lambda r: (r.model == "all", r.substructure))

    def said(estimate: Estimate) -> str:
        return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"

    cells = f"falls there in {_listed(crossed)}" if crossed else "falls in none of them"
    return (
        f"Against {against}, training raises what unit and candidate probes read exactly in {_listed(raised)}; what "
        f"cell-state probes read {cells}; {who}. In layer {shown.layer}: units {said(shown.substructure)}, candidates "
        f"{said(shown.candidates)}, cell states {said(shown.cell_state)}, which is {said(shown.from_ceiling)} from the "
        f"substructure ceiling."
    )


def _listed(layers: Sequence[int]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))
