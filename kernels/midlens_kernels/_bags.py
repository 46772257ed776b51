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
    ordered, entries = torch.sort(idx, stable=True)
    edges = torch.arange(n_features + 1, device=idx.device, dtype=idx.dtype)
    return ReverseIndex(entries, torch.searchsorted(ordered, edges))


def weighted_bags(
    table: Float[Tensor, "r d"],
    indices: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
    offsets: Int[Tensor, " bags"],
) -> Float[Tensor, "n d"]:
    """Bag i sums `weights[j] * table[indices[j]]` for j from `offsets[i]` to `offsets[i + 1]`; empty bags are zero."""
    return functional.embedding_bag(
        indices,
        table,
        offsets.to(indices.dtype),
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


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
