"""What the neurons of forced moves do: their tokens, what is lost without them, and the forced cell layer by layer.

    own          logit weight of the neuron on its token, other: on the other placements (final norm's gain folded)
    spatial      mean |weight on the cell's tokens| / mean |weight on other cells' tokens|
    specificity  drop of the predicted single's logit / drop of the other singles' logits, its cell's neurons at their
                 means at the reading position, in the last MLP only

States for the ablation: of each trace the first with two naked singles or more, one of which is the model's top token.
States for the margins: exactly one naked single, which is the top token. The neurons, and the means that stand for
them, come from other traces than those they are tried on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.lens import Lens, logit_lens
from interp.model import Edit
from interp.offload import here
from interp.probe_metrics import Estimate
from interp.sites import Point, Site
from interp.sudoku.model import SudokuModel
from interp.sudoku.neuron_scan import Sample, last_neurons
from interp.sudoku.ranking import Ranking
from interp.sudoku.reads import States, at_read, mean_of, read, solving_states
from interp.sudoku.records import Record
from interp.sudoku.replay import forced_moves
from interp.sudoku.traces import TraceSet

BINS = 40


@dataclass(frozen=True)
class NeuronTokens(Record):
    """What found neurons read and write, one entry per (cell, digit) pair.

    A neuron may fire for its single and write against it: which of the two it does is the sign of `own`.
    """

    token: Int[np.ndarray, " k"]
    neuron: Int[np.ndarray, " k"]
    fires: Float[np.ndarray, " k"]
    """Mean activation where the pair is a naked single."""
    rests: Float[np.ndarray, " k"]
    """Mean activation elsewhere."""
    own: Float[np.ndarray, " k"]
    cell: Float[np.ndarray, " k"]
    """On the cell's other digits."""
    other: Float[np.ndarray, " k"]
    other_std: Float[np.ndarray, " k"]
    spatial: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class NeuronAblation(Record):
    """The predicted cell's neurons at their means, mean over states."""

    n: int
    neurons: float
    """Ablated per state, on average."""
    drop: Estimate
    """Of the predicted single's logit."""
    probability_drop: Estimate
    others: Estimate
    """Of the other naked singles' logits."""
    difference: Estimate
    specificity: Estimate
    """Ratio of the two mean drops; its interval from puzzles drawn together."""
    control_drop: Estimate
    """Of the same logit, with equally many random other neurons at their means."""


@dataclass(frozen=True)
class Margins(Record):
    """Forced digit against the best other digit of its cell, where one naked single is left and is the model's move."""

    n: int
    edges: Float[np.ndarray, " k1"]
    counts: Int[np.ndarray, " k"]
    median: float
    positive: Estimate
    """Share of states in which the forced digit leads its cell."""
    before_last_mlp: Estimate
    """Share of all (state, naked single) pairs, states outside branches, in which it leads before the last MLP."""
    stages: tuple[str, ...]
    """The streams that the lens reads, in order."""
    forced: Float[np.ndarray, " s"]
    """Mean lens logit of the forced placement."""
    rival: Float[np.ndarray, " s"]
    """Mean over states of the largest of its cell's other digits."""


def neuron_tokens(model: SudokuModel, scan: Ranking, sample: Sample) -> NeuronTokens:
    """Logit weights of the best neurons of the found (cell, digit) pairs, centred over the vocabulary."""
    rules = model.rules
    token = np.flatnonzero(scan.found)
    neuron = scan.best[token]
    layer = last_neurons(model).layer
    assert layer is not None
    weight = here(model.hooked.anatomy.at(model.hooked.hf, layer, model.hooked.anatomy.mlp_post), "weight")
    assert weight is not None
    logits = Lens.of(model.hooked).logits(weight.detach()[torch.from_numpy(neuron)].float())
    reach = logits[:, : rules.n_cells * rules.n].double().cpu().numpy()
    cells = np.arange(reach.shape[1]) // rules.n
    single = forced_moves(rules, sample.states.boards, singles="naked")[:, token]
    acts = sample.neurons[:, torch.from_numpy(neuron)].double().numpy()
    rows: list[list[float]] = []
    for row, t, act, on in zip(reach, token, acts.T, single.T, strict=True):
        mine = cells == t // rules.n
        siblings = mine & (np.arange(len(row)) != t)
        rest = np.arange(len(row)) != t
        spatial = np.abs(row[mine]).mean() / np.abs(row[~mine]).mean()
        fires = act[on].mean(), act[~on].mean()
        rows.append([*fires, row[t], row[siblings].mean(), row[rest].mean(), row[rest].std(), spatial])
    columns = np.array(rows, np.float64).reshape(-1, 7).T
    return NeuronTokens(token, neuron, *columns)


def neuron_ablation(
    model: SudokuModel, traces: TraceSet, scan: Ranking, sample: Sample, *, states: int = 1000, seed: int = 42
) -> NeuronAblation:
    """Ablate the found neurons of the predicted cell; `sample` gives the means."""
    rules, site = model.rules, last_neurons(model)
    chosen, clean, single = _several_singles(model, traces)
    chosen, clean, single = chosen[:states], clean[:states], single[:states]
    move = clean.argmax(-1)
    token = np.flatnonzero(scan.found)
    of_cell = np.zeros((rules.n_cells, scan.neurons), bool)
    of_cell[token // rules.n, scan.best[token]] = True
    hit = torch.from_numpy(of_cell)[move // rules.n]
    used = hit.any(1).numpy()
    if not used.any():
        raise InputError(
            f"no neuron was found for the cells that {len(chosen)} states predict: there is none to ablate"
        )
    chosen, clean, single, move, hit = chosen[used], clean[used], single[used], move[used], hit[used]
    mean = sample.neurons.mean(0)
    ablated = _with_means(model, chosen, site, hit, mean)
    control = _with_means(model, chosen, site, _random_like(hit, seed), mean)
    rows = torch.arange(len(move))
    drop = clean[rows, move] - ablated[rows, move]
    loss = clean.softmax(-1)[rows, move] - ablated.softmax(-1)[rows, move]
    rest = single.clone()
    rest[rows, move] = False
    others = torch.where(rest, (clean - ablated)[:, : rest.shape[1]], 0.0).sum(1) / rest.sum(1)
    return NeuronAblation(
        n=len(move),
        neurons=float(hit.sum(1).double().mean()),
        drop=mean_of(drop.numpy()),
        probability_drop=mean_of(loss.numpy()),
        others=mean_of(others.numpy()),
        difference=mean_of((drop - others).numpy()),
        specificity=ratio_of(drop.double().numpy(), others.double().numpy(), seed=seed),
        control_drop=mean_of((clean[rows, move] - control[rows, move]).numpy()),
    )


def ratio_of(
    top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"], *, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Σ top / Σ bottom, of any sign, with its percentile interval; the two of a case are drawn together."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(top), (draws, len(top)))
    ratios = top[picked].sum(1) / bottom[picked].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def _several_singles(model: SudokuModel, traces: TraceSet) -> tuple[States, Float[Tensor, "n v"], Bool[Tensor, "n p"]]:
    """The first fitting state of each trace, its logits and its naked singles."""
    states = solving_states(traces)
    single = forced_moves(model.rules, states.boards, singles="naked")
    several = single.sum(1) >= 2
    states, single = states[several], single[several]
    # The trace is the model's own greedy one, so that its next token is its top token.
    next_single = np.pad(single, ((0, 0), (0, 5)))[np.arange(len(states)), states.next_token]
    states, single = states[next_single], single[next_single]
    first = np.flatnonzero(np.diff(states.row, prepend=-1))
    states, single = states[first], torch.from_numpy(single[first])
    clean, _ = read(model, states)
    own = clean.argmax(-1).numpy() == states.next_token
    return states[own], clean[own], single[own]


def _with_means(
    model: SudokuModel, states: States, site: Site, hit: Bool[Tensor, "n m"], mean: Float[Tensor, " m"]
) -> Float[Tensor, "n v"]:
    def edits(part: slice) -> dict[Site, Edit]:
        chosen = hit[part]
        return {site: at_read(lambda x: torch.where(chosen.to(x.device), mean.to(x), x), states.at[part])}

    return read(model, states, edits=edits)[0]


def _random_like(hit: Bool[Tensor, "n m"], seed: int) -> Bool[Tensor, "n m"]:
    """For each row equally many neurons, none of those hit."""
    keys = torch.rand(hit.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(hit, 2.0)
    return keys.argsort(1).argsort(1) < hit.sum(1, keepdim=True)


def margins(model: SudokuModel, traces: TraceSet, *, states: int = 5000) -> Margins:
    """Margins and the lens by layer for lone naked singles."""
    rules, layers = model.rules, model.config.n_layers
    every = solving_states(traces)
    single = forced_moves(rules, every.boards, singles="naked")
    lone = (single.sum(1) == 1) & (single.argmax(1) == every.next_token)
    streams = [Site(point, layer) for layer in range(layers) for point in (Point.RESID_MID, Point.RESID_POST)]
    chosen = every[lone][:states]
    logits, found = read(model, chosen, streams)
    own = logits.argmax(-1).numpy() == chosen.next_token
    token = torch.from_numpy(chosen.next_token[own])
    final = _forced_and_rival(logits[own], token, rules.n)
    margin = (final[0] - final[1]).double().numpy()
    edges = np.linspace(min(0.0, float(margin.min())), float(margin.max()) + 1e-6, BINS + 1)
    by_stage = [
        _forced_and_rival(logit_lens(model.hooked, found[s][own]).float().cpu(), token, rules.n) for s in streams
    ]
    return Margins(
        n=len(margin),
        edges=edges,
        counts=np.histogram(margin, edges)[0],
        median=float(np.median(margin)),
        positive=mean_of(margin > 0),
        before_last_mlp=_leads(model, every[:states], single[:states], streams[-2]),
        stages=tuple(str(site) for site in streams),
        forced=np.array([float(f.mean()) for f, _ in by_stage]),
        rival=np.array([float(r.mean()) for _, r in by_stage]),
    )


def _forced_and_rival(
    logits: Float[Tensor, "n v"], token: Int[Tensor, " n"], n: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The logit of each placement, and the largest of the other digits of its cell."""
    cell = (token // n * n)[:, None] + torch.arange(n)
    values = logits.gather(1, cell)
    mine = cell == token[:, None]
    return values[mine], values.masked_fill(mine, -torch.inf).max(1).values


def _leads(model: SudokuModel, states: States, single: Bool[np.ndarray, "n p"], stream: Site) -> Estimate:
    """Share of naked singles that lead their cell in the lens of a stream; states are the cases."""
    _, found = read(model, states, [stream])
    logits = logit_lens(model.hooked, found[stream]).float().cpu()
    state, token = (torch.from_numpy(x) for x in np.nonzero(single))
    if not len(state):
        return Estimate(np.nan, np.nan, np.nan)
    forced, rival = _forced_and_rival(logits[state], token, model.rules.n)
    right = np.bincount(state.numpy(), (forced > rival).numpy(), len(states))
    size = np.bincount(state.numpy(), minlength=len(states)).astype(float)
    return ratio_of(right[size > 0], size[size > 0])
