"""The losses of SAE training, as pure functions; all are fractions of a variance, so 1 means "explains nothing".

    reconstruction = mean over tokens |y - y^|^2 / variance       variance: of the activations, fixed for a run
    nested         = mean over levels of the reconstruction by the features of that level and those before
    norm penalty   = mean over tokens, sum over features (f_j w_j / sqrt(variance))^p     w: norms of decoder rows
    auxiliary      = |e - e^|^2 / |e|^2 * min(a / k_aux, 1)       e = y - y^, detached

e^ is what the `a` dead features make of the input: `relu(top k_aux of x W_enc[:, dead] + b_enc[dead]) W_dec[dead]`. It
trains nothing but the rows of the dead features, which have no gradient otherwise. Gao et al. 2024, appendix A.2,
https://arxiv.org/abs/2406.04093. Nested (Matryoshka): Bussmann et al. 2025, https://arxiv.org/abs/2503.17547.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from midlens_kernels import topk_decode, topk_encode
from torch import Tensor

from saes.entries import Entries
from saes.team import ALONE, Team


def row_norms(W_dec: Float[Tensor, "f out"], sources: Sequence[int] = ()) -> Float[Tensor, " f"]:
    """Norms of the decoder's rows; of a crosscoder, the sum of each row's norms in its sources."""
    if not sources:
        return torch.linalg.vector_norm(W_dec, dim=1)
    return sum(
        (torch.linalg.vector_norm(block, dim=1) for block in W_dec.split(list(sources), dim=1)), W_dec.new_zeros(())
    )


def reconstruction(
    error: Float[Tensor, "n d"], kept: Float[Tensor, " n"], variance: float, *, team: Team = ALONE
) -> Float[Tensor, ""]:
    """Mean squared error over the kept tokens (weight 1, others 0), as a fraction of the variance."""
    return team.over_tokens((error.square().sum(1) * kept).sum()) / (counted(kept, team) * variance)


def counted(kept: Float[Tensor, " n"], team: Team = ALONE) -> Float[Tensor, ""]:
    """The number of tokens that count, at least 1."""
    return team.over_tokens(kept.sum()).clamp(min=1)


def nested(
    entries: Entries,
    values: Float[Tensor, "*entries"],
    W_dec: Float[Tensor, "f out"],
    target: Float[Tensor, "n out"],
    kept: Float[Tensor, " n"],
    variance: float,
    *,
    ends: Sequence[int],
    team: Team = ALONE,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n out"]]:
    """Mean loss over nested dictionaries, of which level i holds the features below `ends[i]`; and the last error.

    `target` is what features have to write (without bias). Every level's own part is decoded once and added up: sparse
    entries are regrouped by (token, level), so that one pass over the decoder's rows serves all levels.
    """
    n, levels = len(target), len(ends)
    if entries.indices is None:
        starts = [0, *ends[:-1]]
        parts = [values[:, a:b] @ W_dec[a:b] for a, b in zip(starts, ends, strict=True)]
        sums = team.over_features(torch.stack(parts, dim=1)).cumsum(1)
    else:
        bag = entries.rows * levels
        for end in ends[:-1]:  # numbers, not a tensor of them, whose way to a GPU would be waited for
            bag = bag + (entries.indices >= end)
        bag, order = torch.sort(bag, stable=True)
        offsets = torch.searchsorted(bag, torch.arange(n * levels + 1, device=bag.device))
        idx = entries.indices.index_select(0, order)
        parts = topk_decode(values.index_select(0, order), idx, W_dec, offsets=offsets)
        sums = team.over_features(parts.view(n, levels, -1)).cumsum(1)
    errors = (target[:, None] - sums) * kept[:, None, None]
    loss = team.over_tokens((errors.square().sum(2).mean(1) * kept).sum()) / (counted(kept, team) * variance)
    return loss, errors[:, -1]


def norm_penalty(
    entries: Entries,
    values: Float[Tensor, "*entries"],
    norms: Float[Tensor, " f"],
    kept: Float[Tensor, " n"],
    variance: float,
    *,
    p: float = 1.0,
    team: Team = ALONE,
) -> Float[Tensor, ""]:
    """Sum over features of (f w / sqrt(variance))^p, mean over the kept tokens; entries of value 0 count nothing."""
    size = values * entries.at(norms) / variance**0.5
    if p != 1:  # the derivative is infinite at 0
        size = torch.where(size > 0, torch.where(size > 0, size, 1).pow(p), 0)
    return team.over_both((size * entries.of_tokens(kept)).sum()) / counted(kept, team)


def auxiliary(
    centred: Float[Tensor, "n d"],
    error: Float[Tensor, "n out"],
    dead: Int[Tensor, " a"],
    encoder: Float[Tensor, "f d"],
    b_enc: Float[Tensor, " f"],
    W_dec: Float[Tensor, "f out"],
    *,
    k_aux: int,
    weight: Float[Tensor, " f"] | None = None,
    n_dead: int | None = None,
    team: Team = ALONE,
) -> Float[Tensor, ""]:
    """AuxK: how badly the dead features predict the error that the others leave.

    `centred` is what the encoder reads, `error` the residual with zero rows for tokens that do not count; both are
    targets here and get no gradient. Only the rows of dead features are gathered. `weight` counts in the choice of
    the top k_aux, as it does in the choice of the living. `n_dead`: dead features of the whole team's dictionary.
    """
    centred, error = centred.detach(), error.detach()
    n_dead, k = n_dead or len(dead), min(k_aux, len(dead))
    rows, bias, decoder = encoder[dead], b_enc[dead], W_dec[dead]
    if n_dead <= k_aux or not k:  # all are chosen: two dense products, n a <= n k_aux
        predicted = torch.addmm(bias, centred, rows.T).relu() @ decoder
        if n_dead > k_aux:
            team.chosen_per_token(error.new_zeros(len(error), 0), k_aux)  # the others choose among theirs
    else:
        weight = None if weight is None else weight[dead]
        acts, idx = topk_encode(centred, rows.T, bias, k, weight=weight)
        chosen = team.chosen_per_token(acts.detach() if weight is None else acts.detach() * weight[idx], k_aux)
        predicted = topk_decode(acts if chosen is None else acts * chosen, idx, decoder)
    predicted = team.over_features(predicted)
    kept = (error.square().sum(1) > 0).to(error.dtype)
    missed = team.over_tokens(((error - predicted).square().sum(1) * kept).sum())
    tiny = torch.finfo(error.dtype).tiny
    return missed / team.over_tokens(error.square().sum()).clamp(min=tiny) * min(n_dead / k_aux, 1.0)
