"""What chance alone gives: heads with random factors, and a head's own singular values in random orientation.

    gaussian   P, K with independent N(0, 1) entries, d x e              once per shape: scale-free metrics
    matched    M' = U Σ V^T, Σ the singular values of M = left right^T, U and V independent and uniform (Haar)
               among orthonormal d x k, k = min(d, e)                    per head

Whatever is measured depends on inner products of the factors only, so neither is drawn in d dimensions:

    gaussian   of a Gaussian d x c matrix the triangle R of its QR decomposition has independent entries, N(0, 1) above
               the diagonal and χ(d - i), i = 0, 1, ..., on it (Bartlett 1933). With c = 2e: the core of [P K].
    matched    turn space so that U = [I; 0]. V = G T^-1 for a Gaussian G, G = V T its QR decomposition with a positive
               diagonal. The first k rows of G are Gaussian, and of the other d - k only the triangle R matters, which
               is Bartlett's: V is the orthonormal factor of [G_1; R], 2k x k, and M' is [Σ; 0] V^T there.

A draw costs O(e^3) whatever d is, and the spectra of a draw what those of a head cost. Where d < 2e (gaussian) or
d < 2k (matched) the remaining rows are fewer than the columns and are drawn as they are.

A head far from the matched null has an orientation of queries against keys that its singular values do not explain;
far from the Gaussian one, it differs in some way from initial weights. In the manner of Li 2026
(qk-spectral-fingerprint).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attention.bilinear import Bilinear
from interp.attention.metrics import core_metrics
from interp.attention.ranks import Ranks
from interp.attention.threads import one_thread
from interp.errors import InputError

METRICS = ("routing_fraction", "routing_filtering_ratio", "rotation_share", "henrici")
ABSCISSAE = ("spectral_abscissa", "numerical_abscissa")
PARTS = ("routing", "filtering")
_PIECE = 2**21  # numbers of cores at a time (16 MiB)
_RANKS = tuple(f"{part}_{name}" for part in PARTS for name in Ranks._fields)


class Null(NamedTuple):
    """Mean and standard deviation (unbiased, over draws) of every metric and rank."""

    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    def z(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(measured - mean) / std of what both have; NaN where the draws do not differ (a rank may be a constant)."""
        both = {name: measured[name] for name in self.mean if name in measured}
        return {
            name: (value - self.mean[name]) / torch.where(self.std[name] > 0, self.std[name], torch.nan)
            for name, value in both.items()
        }


def measures(m: Bilinear) -> dict[str, Tensor]:
    """Everything that one core tells: metrics, and all ranks of both parts as `<part>_<rank>`."""
    ranks = {part: getattr(m, part)().ranks()._asdict() for part in PARTS}
    return core_metrics(m) | {f"{part}_{name}": rank for part, of in ranks.items() for name, rank in of.items()}


@one_thread()
def matched_null(m: Bilinear, draws: int = 20, seed: int | tuple[int, ...] = 0, *, d: int | None = None) -> Null:
    """Of every head `*h`, each with draws of its own. `d`: the dimension of the space that holds the factors' columns.

    (By default the number of rows; those of a model with LayerNorm are orthogonal to 1 and have d - 1 dimensions.)
    """
    _check(draws)
    sigma, d = _singular_values(*m.core), m.left.shape[-2] if d is None else d
    heads, k = sigma.shape[:-1], min(d, sigma.shape[-1])
    root = seed if isinstance(seed, tuple) else (seed,)
    found = []
    for head, values in enumerate(sigma[..., :k].reshape(-1, k)):
        cores = matched_cores(values, draws, d, np.random.default_rng((*root, head)))
        found.append(_null(measures(Bilinear(*cores)), (*METRICS, *ABSCISSAE, *_RANKS)))
    pairs = zip(*found, strict=True)
    return Null(*({name: torch.stack([one[name] for one in of]).reshape(heads) for name in of[0]} for of in pairs))


@lru_cache(maxsize=64)
@one_thread()
def gaussian_null(d: int, e: int, draws: int = 100, seed: int = 0) -> Null:
    """Of a shape; kept. Abscissae are left out: they scale with the head."""
    _check(draws)
    if d < 1 or e < 1:
        raise InputError(f"d and e must be 1 or more, got d={d}, e={e}")
    rng = np.random.default_rng(seed)
    size = max(1, _PIECE // (4 * e * e))
    counts = [min(size, draws - begun) for begun in range(0, draws, size)]
    found = [measures(Bilinear(*_triangle(d, 2 * e, count, rng).split(e, -1))) for count in counts]
    return _null({name: torch.cat([one[name] for one in found]) for name in found[0]}, (*METRICS, *_RANKS))


def _null(found: Mapping[str, Tensor], names: Sequence[str]) -> Null:
    """Of draws along the only axis; what differs by rounding alone does not differ."""
    mean, std = ({name: getattr(found[name], of)() for name in names} for of in ("mean", "std"))
    return Null(mean, {name: torch.where(std[name] > 1e-9 * found[name].abs().amax(), std[name], 0) for name in names})


def matched_cores(
    sigma: Float[Tensor, " k"], draws: int, d: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "draws p k"], Float[Tensor, "draws p k"]]:
    """Factors [Σ; 0] and V of the draws of one head in p = min(d, 2k) dimensions, k <= d."""
    k = len(sigma)
    top = torch.from_numpy(rng.standard_normal((draws, k, k)))
    both = torch.cat([top, _triangle(d - k, k, draws, rng)], -2) if d > k else top
    V, T = torch.linalg.qr(both)
    V = V * torch.where(T.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
    left = torch.nn.functional.pad(torch.diag(sigma), (0, 0, 0, both.shape[-2] - k))
    return left.expand_as(V), V


def _singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Of a b^T, the largest min(p, e), from triangles: |a b^T| = |R_a R_b^T|."""
    triangles = [torch.linalg.qr(x, mode="r").R for x in (a, b)]
    return torch.linalg.svdvals(triangles[0] @ triangles[1].mT)


def _triangle(d: int, columns: int, count: int, rng: np.random.Generator) -> Float[Tensor, "count r columns"]:
    """The triangle of Gaussian d x columns matrices, in distribution; the matrices where they have fewer rows."""
    drawn = torch.from_numpy(rng.standard_normal((count, min(d, columns), columns)))
    if d < columns:
        return drawn
    chi = torch.from_numpy(np.sqrt(rng.chisquare(np.arange(d, d - columns, -1), (count, columns))))
    return drawn.triu(1) + torch.diag_embed(chi)


def _check(draws: int) -> None:
    if draws < 2:
        raise InputError(f"a null needs 2 draws or more for a standard deviation, got {draws}")
