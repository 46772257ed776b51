"""How often and how strongly each feature fires: a streaming count, with a histogram on fixed logarithmic edges.

    density_f = fires_f / tokens          mean_f = Σ activation / fires_f          over activations > 0

The edges are the same for every feature and every run, a quarter of an octave apart (ratio 2^¼), so that the result
does not depend on the order or the split of the stream, and merging two counts is adding them. Axis `c`: bins.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOW, _HIGH, _PER_OCTAVE = -12, 20, 4  # activations below 2^-12 and above 2^20 share one bin each
EDGES: Float[Tensor, " c"] = torch.cat(
    [
        torch.zeros(1),
        2.0 ** (torch.arange(_LOW * _PER_OCTAVE, _HIGH * _PER_OCTAVE + 1) / _PER_OCTAVE),
        torch.full((1,), torch.inf),
    ]
)
"""Bin `i` holds activations in `[EDGES[i], EDGES[i + 1])`."""
N_BINS = len(EDGES) - 1


class Firing(NamedTuple):
    """Counts over a stream of tokens."""

    n_tokens: int
    fires: Int[Tensor, " f"]
    density: Float[Tensor, " f"]
    """Fires per token, float64."""
    mean: Float[Tensor, " f"]
    """Mean activation over fires, float64; 0 for a feature that never fired."""
    maximum: Float[Tensor, " f"]
    histogram: Int[Tensor, "f c"]

    def bins(self, feature: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """One feature's histogram cut to its occupied range, and its edges: one more than there are bins."""
        occupied = torch.nonzero(self.histogram[feature])[:, 0].tolist()
        if not occupied:
            return (), ()
        first, last = occupied[0], occupied[-1] + 1
        edges = EDGES[first : last + 1].tolist()
        if last == N_BINS:
            edges[-1] = float(self.maximum[feature])
        return tuple(self.histogram[feature, first:last].tolist()), tuple(edges)


class FiringFitter:
    """Accumulates `Firing` over batches of activations given as (feature, value) pairs."""

    def __init__(self, n_features: int, *, device: "torch.device | str" = "cpu") -> None:
        self.n_features = n_features
        self._n_tokens = 0
        self._fires = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._sum = torch.zeros(n_features, dtype=torch.float64, device=device)
        self._maximum = torch.zeros(n_features, dtype=torch.float32, device=device)
        self._histogram = torch.zeros(n_features, N_BINS, dtype=torch.int32, device=device)
        self._edges = EDGES[1:-1].to(device)

    def update(self, features: Int[Tensor, " m"], values: Float[Tensor, " m"], *, n_tokens: int) -> "FiringFitter":
        """Add the activations above zero of `n_tokens` tokens, flattened."""
        values = values.float()
        self._n_tokens += n_tokens
        self._fires += torch.bincount(features, minlength=self.n_features)
        self._sum += torch.bincount(features, weights=values.double(), minlength=self.n_features)
        self._maximum.scatter_reduce_(0, features.long(), values, "amax")
        cells = features.long() * N_BINS + torch.bucketize(values, self._edges, right=True)
        self._histogram.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        return self

    def merge(self, other: "FiringFitter") -> "FiringFitter":
        """Add what another fitter counted over other tokens."""
        self._n_tokens += other._n_tokens
        self._fires += other._fires
        self._sum += other._sum
        self._maximum = torch.maximum(self._maximum, other._maximum)
        self._histogram += other._histogram
        return self

    def result(self) -> Firing:
        """The counts so far, on the CPU."""
        fires = self._fires.cpu()
        return Firing(
            n_tokens=self._n_tokens,
            fires=fires,
            density=fires.double() / max(self._n_tokens, 1),
            mean=self._sum.cpu() / fires.clamp(min=1),
            maximum=self._maximum.cpu().clone(),
            histogram=self._histogram.cpu().clone(),
        )
