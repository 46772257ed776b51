"""One training step: a function of (state, batch). The state is advanced in place, only here.

Where the decoder's rows keep unit norm, what of the gradient is parallel to a row is removed before Adam sees it, and
norms are renewed after. Rows of massive norm stay in the batch with weight zero, so that no shape depends on the data;
in the topk family nothing waits for the device. Features that have not fired for `dead_after_tokens` are listed by
`refresh`, at logging steps, which also decides whether the next steps treat activations as sparse or dense.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saes.objectives import objective
from saes.recipe import PENALISED
from saes.state import TrainState as TrainState

DENSE = 1 / 16  # of the features active: beyond, dense products are faster than gathering rows
_CHUNK = 2**24  # elements of a temporary


class StepLog(NamedTuple):
    """Figures of one step, still on the device."""

    loss: Float[Tensor, ""]
    """Reconstruction error as a fraction of the variance."""
    aux: Float[Tensor, ""]
    """Auxiliary loss, unweighted; 0 where there was none."""
    penalty: Float[Tensor, ""]
    """Sparsity penalty without its coefficient; 0 where there is none."""
    l0: Float[Tensor, ""]
    """Active features per token."""
    massive: Float[Tensor, ""]
    """Rows left out for their norm."""


def step(state: TrainState, x: Float[Tensor, "n d"], y: Float[Tensor, "n out"] | None = None) -> StepLog:
    """Learn from the activations `x` (and those of a transcoder's second site, `y`), as they come from the model.

    Every process of a team is given the whole batch, and takes its tokens from it."""
    team, mine = state.team, state.team.tokens(len(x))
    batch = state.frame.scaled(x[mine], None if y is None else y[mine])
    outcome = objective(state, batch, rows=len(x))
    outcome.loss.backward()
    _descend(state)
    with torch.no_grad():
        entries, n = outcome.entries, team.over_tokens(batch.kept.sum())
        active = (outcome.values > 0) * entries.of_tokens(batch.kept)
        fired = team.over_tokens(entries.per_feature(active))
        state.silent = torch.where(fired > 0, 0, state.silent + n.long())
        state.seen, state.massive = state.seen + n.long(), state.massive + (len(x) - n).long()
        state.l0 = team.over_both(active.sum()) / n.clamp(min=1)
        loss, aux, penalty = (q.detach() for q in (outcome.reconstruction, outcome.aux, outcome.penalty))
        return StepLog(loss, aux, penalty, state.l0, len(x) - n)


@torch.no_grad()
def _descend(state: TrainState) -> None:
    """One step of Adam; decoder rows of unit norm, if the recipe wants them."""
    W_dec, unit = state.sae.W_dec, state.config.decoder_norm == "unit"
    state.team.sum_gradients(state.parameters)
    rows = max(1, _CHUNK // W_dec.shape[1])
    if unit:
        assert W_dec.grad is not None
        for gradient, row in zip(W_dec.grad.split(rows), W_dec.split(rows), strict=True):
            gradient.addcmul_((gradient * row).sum(1, keepdim=True), row, value=-1)
    state.team.clip(state.parameters, state.config.clip)
    for group in state.adam.param_groups:
        group["lr"] = state.rate(state.step) * group["factor"]
    state.adam.step()
    state.adam.zero_grad()
    if unit:
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
    state.step += 1


def refresh(state: TrainState) -> None:
    """List the dead features anew, and choose between sparse and dense (waits for the device)."""
    state.dead = (state.silent >= state.config.silence(state.steps, state.batch_size)).nonzero()[:, 0]
    state.count_dead()
    if state.config.architecture in PENALISED:
        state.dense = bool(state.l0 > DENSE * state.whole.d_sae) or state.sae.b_dec.device.type != "cpu"
