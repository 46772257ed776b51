"""What each architecture minimises in one step: a function of (state, batch), with everything the step's log needs.

    loss = reconstruction + pressure * penalty + aux_weight * auxiliary          (each in `saes.losses`)

topk, batchtopk and matryoshka_batchtopk choose their features by rank, so only those need a gradient; standard, gated
and jumprelu choose by value and carry a sparsity penalty. Sources: topk 2406.04093, batchtopk 2412.06410, matryoshka
2503.17547, jumprelu 2407.14435, gated 2404.16014, p-annealing 2408.00113 (arXiv).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from midlens_kernels import threshold_select, topk_encode
from torch import Tensor

from saes.codes import Codes
from saes.config import listed
from saes.entries import Entries, entries_above
from saes.frame import Framed
from saes.jump import jump, step
from saes.losses import auxiliary, counted, nested, norm_penalty, reconstruction, row_norms
from saes.recipe import Training
from saes.state import TrainState


class Outcome(NamedTuple):
    """One evaluation of an objective; `loss` carries the gradient, the rest is for the log."""

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    """Reconstruction error of the whole dictionary, as a fraction of the variance."""
    aux: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    """Sparsity penalty without its coefficient; 0 in the topk family."""
    entries: Entries
    values: Float[Tensor, "*entries"]
    """Activations of the entries."""


def objective(state: TrainState, batch: Framed, *, rows: int | None = None) -> Outcome:
    """The objective of the state's architecture on a scaled batch; `rows`: of the batch, if others hold some of it."""
    match state.config.architecture:
        case "topk" | "batchtopk" | "matryoshka_batchtopk":
            return _selecting(state, batch, rows or len(batch.x))
        case "standard":
            return _standard(state, batch)
        case "gated":
            return _gated(state, batch)
        case "jumprelu":
            return _jumprelu(state, batch)
        case other:
            raise ValueError(f"architecture is one of {listed(Training)}, got {other!r}")


def _selecting(state: TrainState, batch: Framed, rows: int) -> Outcome:
    """Features by rank: k per token, or n k in the batch; one dictionary or nested ones."""
    config, sae, team = state.config, state.sae, state.team
    x = team.read(state.read(batch.x))
    k = min(config.active(state.step, state.steps), state.whole.d_sae)
    weight = row_norms(sae.W_dec.detach(), sae.config.sources) if config.decoder_norm == "weighted" else None
    read = (x, sae.W_enc, sae.b_enc)
    if config.architecture == "topk":
        here = min(k, sae.config.d_sae)
        found, of = topk_encode(*read, here, weight=weight, compute=state.compute)
        chosen = team.chosen_per_token(_scores(found, of, weight), k)
        acts, idx, offsets, _ = Codes.of_fixed_k(found if chosen is None else found * chosen, of, sae.config.d_sae)
    else:
        count = k * rows
        here = min(count, len(x) * sae.config.d_sae)
        acts, idx, offsets = threshold_select(*read, here, weight=weight, kept=batch.kept, compute=state.compute)
        chosen = team.chosen(_scores(acts, idx, weight), count)
        acts = acts if chosen is None else acts * chosen
        _follow_threshold(state, _scores(acts, idx, weight))
    entries = Entries(acts, idx, offsets, sae.config.d_sae)
    values = acts * entries.of_tokens(batch.kept)
    target = _target(state, batch)
    if config.architecture == "matryoshka_batchtopk":
        ends = state.level_ends
        measured = (batch.kept, state.frame.variance)
        loss, error = nested(entries, values, sae.W_dec, target, *measured, ends=ends, team=team)
        whole = reconstruction(error.detach(), *measured, team=team)
    else:
        error = (target - team.over_features(entries.decode(values, sae.W_dec))) * batch.kept[:, None]
        loss = whole = reconstruction(error, batch.kept, state.frame.variance, team=team)
    return _with_aux(state, Outcome(loss, whole, loss.new_zeros(()), loss.new_zeros(()), entries, values), x, error)


@torch.no_grad()
def _scores(acts: Tensor, idx: Tensor, weight: Tensor | None) -> Tensor:
    """What features are chosen by: activations, times their weight if that counts."""
    return acts.detach() if weight is None else acts.detach() * weight[idx]


@torch.no_grad()
def _follow_threshold(state: TrainState, scores: Tensor) -> None:
    """The running mean of the smallest positive score chosen: what divides active from inactive after training."""
    lowest = state.team.least(torch.where(scores > 0, scores, torch.inf).amin().double())
    assert state.config.threshold_momentum is not None
    # The mean must end within the last tenth of the run: the first batches' thresholds are far from the last ones'.
    old, momentum = state.memory["threshold"], min(state.config.threshold_momentum, max(0.0, 1 - 10 / state.steps))
    followed = torch.where(old < 0, lowest, old * momentum + lowest * (1 - momentum))
    state.memory["threshold"] = torch.where(lowest.isfinite(), followed, old)


def _standard(state: TrainState, batch: Framed) -> Outcome:
    """ReLU with a norm penalty, whose exponent may fall during the run."""
    config, sae = state.config, state.sae
    entries = _entries(state, batch, torch.zeros_like(sae.b_enc))
    values = entries.pre.relu()
    p, following = config.exponent(state.step, state.steps)
    norms = row_norms(sae.W_dec, sae.config.sources)
    terms = (entries, values, norms, batch.kept, state.frame.variance)
    penalty = norm_penalty(*terms, p=p, team=state.team)
    factor = _annealed_factor(state, terms, p, following) if config.p_end != 1 else 1.0
    return _penalised(state, batch, entries, values, penalty * factor)


def _entries(state: TrainState, batch: Framed, floor: Tensor) -> Entries:
    """The pre-activations above a floor, or all."""
    how = {"dense": state.dense, "compute": state.compute, "team": state.team}
    return entries_above(state.sae, state.read(batch.x), floor, **how)


@torch.no_grad()
def _annealed_factor(
    state: TrainState, terms: tuple[Entries, Tensor, Tensor, Tensor, float], p: float, following: float
) -> Tensor:
    """What keeps the penalty's value where it was when its exponent changes, from the last steps' means.

    `p_recent` holds the penalty of the last ten steps under the present exponent and under the next one.
    """
    memory = state.memory
    changed = memory["p"] != p
    before, after = memory["p_recent"].sum(0)
    ratio = torch.where(after > 0, before / after.clamp(min=1e-30), 1)  # 1 where there is nothing to compare yet
    memory["p_factor"] = torch.where(changed, memory["p_factor"] * ratio, memory["p_factor"])
    memory["p_recent"] = torch.where(changed, 0, memory["p_recent"])  # of the exponents gone by
    memory["p"] = torch.full_like(memory["p"], p)
    now = torch.stack([norm_penalty(*terms, p=exponent, team=state.team).double() for exponent in (p, following)])
    memory["p_recent"] = torch.cat([memory["p_recent"][1:], now[None]])
    return memory["p_factor"].to(terms[1].dtype)


def _gated(state: TrainState, batch: Framed) -> Outcome:
    """A gate and a magnitude with shared directions; the gate learns from a reconstruction of its own."""
    sae, variance, team = state.sae, state.frame.variance, state.team
    entries = _entries(state, batch, torch.zeros_like(sae.b_enc))
    shared = entries.pre - entries.at(sae.b_enc)
    open_ = (entries.pre > 0).to(shared.dtype)
    values = (shared * entries.at(sae.r_mag.exp()) + entries.at(sae.b_mag)).relu() * open_
    gate = entries.pre.relu()
    penalty = norm_penalty(entries, gate, row_norms(sae.W_dec, sae.config.sources), batch.kept, variance, team=team)
    frozen = _target(state, batch, frozen=True) - team.over_features(entries.decode(gate, sae.W_dec.detach()))
    by_gate = reconstruction(frozen * batch.kept[:, None], batch.kept, variance, team=team)
    outcome = _penalised(state, batch, entries, values, penalty)
    return outcome._replace(loss=outcome.loss + by_gate)


def _jumprelu(state: TrainState, batch: Framed) -> Outcome:
    """Learnt thresholds, through straight-through estimators."""
    config, sae, team = state.config, state.sae, state.team
    threshold = state.log_threshold.exp()
    bandwidth, through = state.length(config.bandwidth), config.penalty == "tanh"
    floor = threshold.detach() - bandwidth / 2
    entries = _entries(state, batch, floor)
    at = entries.at(threshold)
    values = jump(entries.pre, at, bandwidth=bandwidth, through=through)
    n = counted(batch.kept, team)
    norms = row_norms(sae.W_dec, sae.config.sources)
    if config.penalty == "tanh":
        assert config.tanh_scale is not None
        size = torch.tanh(config.tanh_scale / state.frame.unit_written * values * entries.at(norms))
        penalty = team.over_both((size * entries.of_tokens(batch.kept)).sum()) / n
    else:
        fires = step(entries.pre, at, bandwidth=bandwidth, through=through)
        penalty = team.over_both((fires * entries.of_tokens(batch.kept)).sum()) / n
        if config.penalty == "target":
            penalty = (penalty / config.k - 1).square()
    outcome = _penalised(state, batch, entries, values, penalty)
    if config.pre_act and state.n_dead:
        loss = outcome.loss + config.pre_act * _pre_act(state, batch, threshold, norms)
        return outcome._replace(loss=loss)
    return outcome


def _pre_act(state: TrainState, batch: Framed, threshold: Tensor, norms: Tensor) -> Tensor:
    """How far dead features stay below their thresholds, in units of the activations' spread."""
    sae, dead = state.sae, state.dead
    z = torch.addmm(sae.b_enc[dead], state.team.read(state.read(batch.x)), sae.encoder[dead].T)
    short = (threshold[dead] - z).relu() * norms[dead]
    total = state.team.over_both((short.sum(1) * batch.kept).sum())
    return total / (counted(batch.kept, state.team) * state.frame.variance**0.5)


def _penalised(state: TrainState, batch: Framed, entries: Entries, values: Tensor, penalty: Tensor) -> Outcome:
    """Reconstruction plus penalty, for architectures that choose by value."""
    sae, config = state.sae, state.config
    written = state.team.over_features(entries.decode(values, sae.W_dec))
    error = (_target(state, batch) - written) * batch.kept[:, None]
    whole = reconstruction(error, batch.kept, state.frame.variance, team=state.team)
    loss = whole + config.pressure(state.step, state.steps) * penalty
    none = whole.new_zeros(())
    return _with_aux(state, Outcome(loss, whole, none, penalty, entries, values), state.read(batch.x), error)


def _target(state: TrainState, batch: Framed, *, frozen: bool = False) -> Tensor:
    """What the features have to write: the activations without bias and skip connection."""
    sae = state.sae
    bias, skip = sae.b_dec, sae.W_skip if sae.config.skip else None
    if frozen:
        bias, skip = bias.detach(), None if skip is None else skip.detach()
    return batch.y - bias if skip is None else batch.y - bias - batch.x.to(skip.dtype) @ skip.T


def _with_aux(state: TrainState, outcome: Outcome, x: Tensor, error: Tensor) -> Outcome:
    """With the auxiliary loss, where there are dead features to revive."""
    config, sae = state.config, state.sae
    assert config.aux_weight is not None and config.k_aux is not None
    if not config.aux_weight or not state.n_dead:
        return outcome
    weight = row_norms(sae.W_dec.detach(), sae.config.sources) if config.decoder_norm == "weighted" else None
    read = (sae.encoder, sae.b_enc, sae.W_dec)
    whole = {"n_dead": state.n_dead, "team": state.team}
    aux = auxiliary(x, error, state.dead, *read, k_aux=config.k_aux, weight=weight, **whole)
    return outcome._replace(loss=outcome.loss + config.aux_weight * aux, aux=aux)
