"""Production `threshold_select` in plain PyTorch: a running selection over chunks of tokens, sparse backward.

Of each chunk the `count` best entries join the `count` best so far, and the better half stays. Within a chunk only the
members of the `count` best groups are looked at (`midlens_kernels._groups`). Tokens that do not count rank last: their
maxima and their candidates are minus infinity.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._groups import GROUP, group_maxima, largest, left_over, members
from midlens_kernels._sparse_product import entries, pre_activations

PIECE = 2**22  # pre-activations looked at together where groups do not pay: bounds the copies this takes


class _Entries(NamedTuple):
    scores: Tensor  # what ranks
    values: Tensor  # what is returned: pre-activations, 0 for tokens that do not count
    places: Tensor  # in the flattened n f

    def best(self, count: int) -> "_Entries":
        at = largest(self.scores, min(count, len(self.scores)))
        return _Entries(*(t[at] for t in self))


def _of_groups(pre: Tensor, count: int, weight: Tensor | None, dropped: Tensor | None) -> _Entries:
    """The `count` best entries, by way of the `count` best groups."""
    n, f = pre.shape
    g = f // GROUP
    maxima = group_maxima(pre, weight)
    if dropped is not None:
        maxima.masked_fill_(dropped[:, None], -torch.inf)
    chosen = largest(maxima.view(-1), count)
    rest = torch.arange(n, device=pre.device)[:, None] * f + left_over(f, pre.device)
    places = torch.cat([members(chosen // g * f + chosen % g, f).view(-1), rest.view(-1)])
    scores = values = pre.view(-1).index_select(0, places)
    if weight is not None:
        scores = values * weight[places % f]
    if dropped is not None:
        out = dropped[places // f]
        scores, values = scores.masked_fill(out, -torch.inf), values.masked_fill(out, 0)
    return _Entries(scores, values, places).best(count)


def _of_all(pre: Tensor, count: int, weight: Tensor | None, dropped: Tensor | None) -> _Entries:
    """The `count` best entries, by looking at every one."""
    scores = pre if weight is None else pre * weight
    if dropped is not None:
        scores = scores.masked_fill(dropped[:, None], -torch.inf)
        pre = pre.masked_fill(dropped[:, None], 0)
    at = largest(scores.view(-1), min(count, pre.numel()))
    return _Entries(scores.view(-1)[at], pre.view(-1)[at], at)


def _found(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    count: int,
    weight: Tensor | None,
    dropped: Tensor | None,
    compute: torch.dtype | None,
) -> Iterator[_Entries]:
    """The best entries of each part of the batch."""
    f = len(b_enc)
    for first, pre in pre_activations(x, W_enc, b_enc, compute):
        grouped = 4 * count <= len(pre) * (f // GROUP)
        pick, rows = (_of_groups, len(pre)) if grouped else (_of_all, max(1, PIECE // f))
        for start in range(0, len(pre), rows):
            at = first + start
            part = pre[start : start + rows]
            out = None if dropped is None else dropped[at : at + len(part)]
            scores, values, places = pick(part, count, weight, out)
            yield _Entries(scores, values.to(x.dtype), places + at * f)


@torch.no_grad()
def _select(count: int, parts: Iterator[_Entries], none: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the `count` best of all parts and their places, ascending."""
    best = _Entries(none, none, none.long())
    for part in parts:
        both = _Entries(*(torch.cat(pair) for pair in zip(best, part, strict=True))) if len(best.scores) else part
        best = both.best(count)
    places, order = best.places.sort()
    return best.values[order], places


def threshold_select_cpu(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    count: int,
    *,
    weight: Float[Tensor, " f"] | None = None,
    kept: Float[Tensor, " n"] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Encode tokens to `count` entries; pre-activations live only for one chunk."""
    f = len(b_enc)
    dropped = None if kept is None else kept == 0
    parts = _found(x, W_enc, b_enc, count, weight, dropped, compute) if count else iter(())
    values, places = _select(count, parts, x.new_empty(0))
    idx = places % f
    offsets = torch.searchsorted(places, torch.arange(len(x) + 1, device=x.device) * f)
    return entries(x, W_enc, b_enc, values, idx, offsets).relu(), idx, offsets
