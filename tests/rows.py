"""Activations in memory, with what `saes.train` needs of a store; and synthetic ones with a known dictionary."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.sealing import digest
from interp.sites import Site
from interp.store import ActivationBatch

SITE = Site.parse("resid_post.3")
SPEC = {"model": "toy", "revision": "r1", "bos": 1, "max_length": 32, "dtype": "float32"}


class MemoryRows:
    """Rows of one or several sites; documents and positions count through the rows, ten rows a document."""

    def __init__(self, x: Tensor, sites: Sequence[Site] = (SITE,)) -> None:
        self.x, self.sites = x, list(sites)
        checked = digest([x.shape, x.double().nan_to_num().sum().item(), x.double().nan_to_num().square().sum().item()])
        self.manifest: dict[str, Any] = {"parts": [{"spec": SPEC}], "shards": [checked]}

    def __len__(self) -> int:
        return len(self.x)

    def batches(
        self, sites: Sequence[str | Site], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for start in range(first * size, len(self.x), size):
            rows = order[start : start + size]
            keys = rows.to(torch.int32)
            yield ActivationBatch({Site.parse(s): self.x[rows] for s in sites}, keys, keys // 10, keys % 10)


def sparse_mixture(n: int, *, d: int = 16, f: int = 32, active: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n sums of `active` out of f random unit directions with weights between 1 and 2, and the directions (`f d`)."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(f, d, generator=g), dim=1)
    chosen = torch.rand(n, f, generator=g).topk(active).indices
    weights = torch.zeros(n, f).scatter(1, chosen, 1 + torch.rand(n, active, generator=g))
    return weights @ directions + 0.5, directions
