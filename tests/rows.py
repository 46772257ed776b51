"""Activations in memory, with what `saes.train` needs of a store; and synthetic ones with a known dictionary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.sites import Site
from saes.tensor_rows import TensorRows

SITE = Site.parse("resid_post.3")
SPEC = {"model": "toy", "revision": "r1", "bos": 1, "max_length": 32, "dtype": "float32"}


class MemoryRows(TensorRows):
    """The same rows at one or several sites of a toy model, ten rows a document."""

    def __init__(self, x: Tensor, sites: Sequence[Site] = (SITE,)) -> None:
        place = torch.arange(len(x))
        super().__init__(dict.fromkeys(sites, x), doc=place // 10, position=place % 10, about=SPEC)
        self.x = x


def sparse_mixture(n: int, *, d: int = 16, f: int = 32, active: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n sums of `active` out of f random unit directions with weights between 1 and 2, and the directions (`f d`)."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(f, d, generator=g), dim=1)
    chosen = torch.rand(n, f, generator=g).topk(active).indices
    weights = torch.zeros(n, f).scatter(1, chosen, 1 + torch.rand(n, active, generator=g))
    return weights @ directions + 0.5, directions
