"""The strongest activations of every feature, at most one per document, kept while a store streams by.

For feature f and document j let a_fj be the largest activation of f in j (at the earliest row where it is reached).
The result holds, for each feature, the K largest a_fj, equal ones in row order. Memory is K entries per feature and a
bounded buffer; no entry that could still be needed is dropped, so the result equals that of sorting the whole stream:
a document leaves the list only when K others are at least as strong, and those can only be replaced by stronger ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError

_BUFFER = 2**20  # entries merged at once: three sorts of a million int64, about 0.3 s on one core
_MAX_ROW = 2**32 - 1


class Ranked(NamedTuple):
    """Top entries of every feature, strongest first; where a feature has fewer than `k`: value 0, row and doc -1."""

    values: Float[Tensor, "f k"]
    rows: Int[Tensor, "f k"]
    docs: Int[Tensor, "f k"]


class Ranking:
    """Fitter of `Ranked`: `update` with batches in any split; rows are numbered once over the whole stream."""

    def __init__(self, n_features: int, k: int, *, device: "torch.device | str" = "cpu") -> None:
        if k < 1:
            raise InputError(f"k={k} examples per feature: expected at least 1")
        self.n_features, self.k = n_features, k
        self._values = torch.zeros(n_features, k, dtype=torch.float32, device=device)
        self._rows = torch.full((n_features, k), -1, dtype=torch.int64, device=device)
        self._docs = self._rows.clone()
        self._buffer: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._buffered = 0

    def update(
        self, features: Int[Tensor, " m"], values: Float[Tensor, " m"], rows: Int[Tensor, " m"], docs: Int[Tensor, " m"]
    ) -> "Ranking":
        """Add activations: feature, value above zero, row of the stream and document of each."""
        values = values.float()
        # Below a full list's last entry nothing can enter; an equal value from an earlier row still can.
        possible = (values > 0) & (values >= self._values[features.long(), -1])
        kept = (features[possible].long(), values[possible], rows[possible].long(), docs[possible].long())
        self._buffer.append(kept)
        self._buffered += len(kept[0])
        if self._buffered >= _BUFFER:
            self._flush()
        return self

    def merge(self, other: "Ranking") -> "Ranking":
        """Add the entries of another ranking over other rows of the same numbering."""
        ranked = other.result()
        feature, place = torch.nonzero(ranked.rows >= 0, as_tuple=True)
        device = self._values.device
        found = (feature, ranked.values[feature, place], ranked.rows[feature, place], ranked.docs[feature, place])
        return self.update(*(column.to(device) for column in found))

    def result(self) -> Ranked:
        """The lists so far, on the CPU."""
        self._flush()
        return Ranked(self._values.cpu().clone(), self._rows.cpu().clone(), self._docs.cpu().clone())

    def _flush(self) -> None:
        if not self._buffered:
            return
        feature, place = torch.nonzero(self._rows >= 0, as_tuple=True)
        held = (feature, self._values[feature, place], self._rows[feature, place], self._docs[feature, place])
        features, values, rows, docs = (torch.cat(parts) for parts in zip(held, *self._buffer, strict=True))
        assert int(rows.max()) <= _MAX_ROW, "row numbers are packed into 32 bits"
        # Bits of a positive float32 order like the float: one sort gives value descending, then row ascending.
        packed = (values.view(torch.int32).long() << 32) | (_MAX_ROW - rows)
        order = torch.argsort(packed, descending=True)
        order = order[_first_of_group(features[order] * (int(docs.max()) + 1) + docs[order])]
        order = order[torch.argsort(features[order], stable=True)]
        place = _place_in_group(features[order])
        order, place = order[place < self.k], place[place < self.k]
        self._values[features[order], place] = values[order]
        self._rows[features[order], place] = rows[order]
        self._docs[features[order], place] = docs[order]
        self._buffer, self._buffered = [], 0


def _first_of_group(groups: Int[Tensor, " m"]) -> Int[Tensor, " m2"]:
    """Index of the first member of each group, in ascending order of index."""
    by_group = torch.argsort(groups, stable=True)
    sorted_groups = groups[by_group]
    first = torch.ones_like(sorted_groups, dtype=torch.bool)
    first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    return by_group[first].sort().values


def _place_in_group(groups: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """0, 1, 2, … inside each run of equal values of a sorted tensor."""
    index = torch.arange(len(groups), device=groups.device)
    start = torch.ones_like(groups, dtype=torch.bool)
    start[1:] = groups[1:] != groups[:-1]
    return index - torch.where(start, index, 0).cummax(0).values
