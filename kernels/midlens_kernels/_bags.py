"""Weighted sums of table rows, and the reverse index that turns a scatter into such sums.

    y[i] = sum over entries j of bag i:  weights[j] * table[indices[j]]

Sparse codes are lists of (token, feature, weight). Grouped by token they decode; grouped by feature they give the
gradient of a weight matrix. `reverse_index` regroups them with one stable sort, so that the gradient needs neither
atomics nor an `m d` temporary, and adds the entries of a feature always in the same order.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class ReverseIndex(NamedTuple):
    """Entries of a sparse batch in the order of their features."""

    entries: Int[Tensor, " m"]  # places in the flattened codes
    offsets: Int[Tensor, " edges"]  # f + 1 of them; entries of feature i: offsets[i] to offsets[i + 1]


def reverse_index(idx: Int[Tensor, " m"], n_features: int) -> ReverseIndex:
    """Group the entries of `idx` by their value; within a feature they keep their order."""
    entries = torch.sort(_short(idx, n_features), stable=True).indices
    ones = torch.ones((), dtype=torch.int64, device=idx.device).expand(len(idx))
    counts = torch.zeros(n_features + 1, dtype=torch.int64, device=idx.device).index_add_(0, idx + 1, ones)
    return ReverseIndex(entries, counts.cumsum(0))


def weighted_bags(
    table: Float[Tensor, "r d"],
    indices: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
) -> Float[Tensor, "n d"]:
    """Bag i sums `weights[j] * table[indices[j]]` for j from `offsets[i]` to `offsets[i + 1]`; empty bags are zero."""
    indices = _short(indices, max(len(table), len(indices)))
    return functional.embedding_bag(
        indices,
        table,
        offsets.to(indices.dtype),
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def bag_sums(values: Float[Tensor, " m"], offsets: Int[Tensor, " bags"]) -> Float[Tensor, " n"]:
    """Bag i sums `values[j]` for j from `offsets[i]` to `offsets[i + 1]`, in float32 where they have 16 bits.

    Bags over a table of one 1: adding to places of the result instead takes atomics on a GPU and rounds every time.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    nowhere = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    return weighted_bags(wide.new_ones(1, 1), nowhere, wide, offsets)[:, 0].to(values.dtype)


def _short(indices: Tensor, limit: int) -> Tensor:
    """32-bit indices where they suffice: sorting them takes half the time, and bags a tenth to a fifth less."""
    return indices.to(torch.int32) if limit < 2**31 else indices


def rows_of(offsets: Int[Tensor, " bags"], m: int) -> Int[Tensor, " m"]:
    """The token of each of the m entries."""
    tokens = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(tokens, offsets.diff().long(), output_size=m)


def feature_rows_gradient(
    tokens: Float[Tensor, "n d"],
    rows: Int[Tensor, " m"],
    idx: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    n_features: int,
) -> Float[Tensor, "f d"]:
    """Row i sums `weights[j] * tokens[rows[j]]` over the entries j of feature i; an absent feature's row is zero."""
    entries, offsets = reverse_index(idx, n_features)
    return weighted_bags(tokens.contiguous(), rows[entries], weights[entries], offsets)
