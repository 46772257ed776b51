"""What fires where in a store: one pass over all rows, then lookups of single activations.

A pass encodes the store some thousand rows at a time. What fired is remembered up to a limit of memory (12 bytes an
entry: 77 MB for 200,000 tokens at k 32), since the windows around examples soon ask for most of a small store again; of
a large store, the few rows asked for are encoded again. Rows of massive norm count as rows on which nothing fires.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.sites import Site
from interp.store import ActivationStore
from saes.belongs import check_belongs
from saes.sae import SAE

_ROWS = 4096
_ENTRY_BYTES = 12


class Fires(NamedTuple):
    """Activations above zero: row of the store, feature and value of each, in ascending order of rows; on the CPU."""

    rows: Int[Tensor, " m"]
    features: Int[Tensor, " m"]
    values: Float[Tensor, " m"]


class FireLog:
    """The activations of one SAE on one site of a store."""

    def __init__(
        self,
        sae: SAE,
        store: ActivationStore,
        site: Site | str,
        *,
        threshold: float = math.inf,
        cache_bytes: int = 2**30,
        force: bool = False,
    ) -> None:
        """An SAE made for another model or site than the store's is refused unless `force` is given."""
        self.sae, self.store, self.site = sae, store, store.site(site)
        width = math.prod(store.manifest["row_shapes"][str(self.site)])
        for spec in store.specs:
            check_belongs(sae, model=spec.model, site=self.site, d=width, force=force)
        self.threshold = threshold
        self.n_rows_kept = 0
        """Rows of the last pass that are not massive."""
        self._room = cache_bytes
        self._cache: dict[int, Fires] = {}

    def __iter__(self) -> Iterator[tuple[int, int, Fires]]:
        """All rows in order, as (start, stop, what fired on them)."""
        self.n_rows_kept = 0
        for start in range(0, len(self.store), _ROWS):
            stop = min(start + _ROWS, len(self.store))
            fires, kept = self._encode(self.store.rows(self.site, start, stop), torch.arange(start, stop))
            self.n_rows_kept += kept
            size = len(fires.rows) * _ENTRY_BYTES
            if start not in self._cache and size <= self._room:
                compact = (fires.rows.to(torch.int32) if stop < 2**31 else fires.rows, fires.features.to(torch.int32))
                self._cache[start] = Fires(*compact, fires.values)
                self._room -= size
            yield start, stop, fires

    def lookup(self, rows: Int[Tensor, " q"], features: Int[Tensor, " q"]) -> Float[Tensor, " q"]:
        """The activation of `features[i]` on `rows[i]`, 0 where it did not fire."""
        values = torch.zeros(len(rows))
        order = torch.argsort(rows, stable=True)
        span = rows[order] // _ROWS
        cuts = (torch.nonzero(span.diff())[:, 0] + 1).tolist()
        for queries in torch.tensor_split(order, cuts):
            if len(queries):
                fires = self._fires_of(rows[queries])
                values[queries] = _find(fires, rows[queries], features[queries], self.sae.config.d_sae)
        return values

    def _fires_of(self, rows: Tensor) -> Fires:
        """What fired on `rows`, all of one span."""
        cached = self._cache.get(int(rows[0]) // _ROWS * _ROWS)
        if cached is not None:
            return cached
        wanted = np.unique(rows.numpy())
        acts = self.store.gather([self.site], wanted).acts[self.site]
        return self._encode(acts, torch.from_numpy(wanted))[0]

    @torch.no_grad()
    def _encode(self, acts: Tensor, rows: Tensor) -> tuple[Fires, int]:
        x = acts.flatten(1).to(self.sae.W_dec.device).float()
        usual = x.norm(dim=-1) <= self.threshold
        codes = self.sae.encode(x)
        row = codes.rows
        kept = (codes.values > 0) & usual[row]
        where = rows[row[kept].cpu()]
        return Fires(where, codes.indices[kept].long().cpu(), codes.values[kept].float().cpu()), int(usual.sum())


def _find(fires: Fires, rows: Tensor, features: Tensor, n_features: int) -> Tensor:
    """Values of (row, feature) pairs in a list of entries."""
    if not len(fires.rows):
        return torch.zeros(len(rows))
    keys, order = (fires.rows.long() * n_features + fires.features.long()).sort()
    wanted = rows.long() * n_features + features.long()
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, fires.values[order[place]], 0.0)
