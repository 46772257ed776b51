"""Activations of several sites in memory, each its own, with what `saes.train` needs of a store."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.sites import Site
from interp.store import ActivationBatch


class Sites:
    """Rows of several sites, each with activations of its own, as training reads them."""

    def __init__(self, acts: Mapping[str, Tensor]) -> None:
        self.acts = {Site.parse(site): x for site, x in acts.items()}
        self.manifest: dict[str, Any] = {"shards": [[str(site), len(x)] for site, x in self.acts.items()]}
        self.stops_after: int | None = None
        """Batches until it raises KeyboardInterrupt, as if someone had pressed the keys."""

    def __len__(self) -> int:
        return len(next(iter(self.acts.values())))

    def batches(self, sites: Any, size: int, *, seed: int, first: int = 0, epoch: int = 0) -> Iterator[ActivationBatch]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for start in range(first * size, len(self), size):
            if self.stops_after == 0:
                raise KeyboardInterrupt
            self.stops_after = None if self.stops_after is None else self.stops_after - 1
            rows = order[start : start + size]
            keys = rows.to(torch.int32)
            yield ActivationBatch({s: self.acts[s][rows] for s in map(Site.parse, sites)}, keys, keys // 10, keys % 10)
