"""Operating statistics of a whole corpus from one 2e x 2e Gram matrix per head, summed as tokens stream by.

    G = Σ_tokens [q k]^T [q k] / N      (2e x 2e)          the spectra of q k^T / N over all N tokens follow from G

Without RoPE q = x^T P and k = x^T K, so that matrix is X M X^T / N over the concatenated corpus, with the nonzero
spectra of Σ^{1/2} M Σ^{1/2}, Σ = X^T X / N: what the kernel does to the inputs that occur. With RoPE q and k are
rotated at their places within their own sequences before they are summed: the N x N matrix then scores every token
against every other of the corpus, also in other sequences, as if each stood where it stands in its own. Either way it
is a statement about the distribution of queries and keys, not about one attention matrix (that is
`interp.attention.operating`).

The means of q and k are kept beside the scatter around them (Chan, Golub and LeVeque 1983), so gauges lose no digits
to large means; here a mean is that of the corpus. The Gram matrix itself loses half the digits: singular values below
1e-8 Σ_j |q_j| |k_j| / N (j: columns) are noise, however many tokens were summed, and count as zero in every rank. What
a head does below that cannot be seen this way; the per-sequence statistics reach 1e-15.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from midlens_kernels.bilinear_spectrum import BilinearSpectrum, gram_spectrum
from torch import Tensor

from interp.attention.bilinear import Spectrum
from interp.attention.operating import GAUGES, Gauge, split_columns
from interp.attention.passes import Tokens, batches_of, compared
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sites import Point, Site
from interp.store import ActivationStore

LOST = 1e-8
"""Singular values below this part of Σ_j |q_j| |k_j| / N are noise."""
_CHUNK = 4096  # rows of a store at a time


class CorpusGram:
    """Gram matrices of one layer's heads; `update` adds tokens, `merge` another corpus, `spectrum` reads them."""

    def __init__(self, heads: int, e: int, *, device: torch.device | str = "cpu") -> None:
        self.n = 0
        """Tokens added."""
        self.mean = torch.zeros(heads, 2 * e, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(heads, 2 * e, 2 * e, dtype=torch.float64, device=device)
        """Σ ([q k] - mean)^T ([q k] - mean)."""

    def update(self, q: Float[Tensor, "n h e"], k: Float[Tensor, "n g e"], *, scale: float = 1.0) -> "CorpusGram":
        """Add tokens: their queries (multiplied by `scale`) and the keys of their groups."""
        heads, width = self.mean.shape
        if len(q) != len(k) or q.shape[1] != heads or 2 * q.shape[-1] != width or heads % k.shape[1]:
            raise InputError(
                f"q {tuple(q.shape)} and k {tuple(k.shape)} do not fit {heads} heads of width {width // 2}: expected "
                "n x h x e and n x g x e with g a divisor of h"
            )
        if not len(q):
            return self
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
        rows = torch.cat([scale * q.double(), k.double()], -1).transpose(0, 1).to(self.mean.device)
        mean = rows.mean(1)
        rows = rows - mean[:, None]
        return self._add(len(q), mean, rows.mT @ rows)

    def merge(self, other: "CorpusGram") -> "CorpusGram":
        """Add what another one has seen."""
        if other.mean.shape != self.mean.shape:
            raise InputError(
                f"cannot merge {tuple(other.mean.shape)} into {tuple(self.mean.shape)} (heads, 2e): expected equal ones"
            )
        device = self.mean.device
        return self._add(other.n, other.mean.to(device), other.scatter.to(device))

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> "CorpusGram":
        if n:
            total, gap = self.n + n, mean - self.mean
            self.scatter = self.scatter + scatter + (self.n * n / total) * gap[:, :, None] * gap[:, None, :]
            self.mean = self.mean + (n / total) * gap
            self.n = total
        return self

    def gram(self, gauge: Gauge = "raw") -> Float[Tensor, "h two_e two_e"]:
        """[q k]^T [q k] / N, without the mean of k (`key_centred`) or of both (`double_centred`)."""
        if gauge not in GAUGES:
            raise InputError(f"gauge must be one of {', '.join(GAUGES)}, got {gauge!r}")
        if not self.n:
            raise InputError("no token was added yet: call update first")
        kept = self.mean.clone()
        e = kept.shape[-1] // 2
        kept[:, e if gauge == "key_centred" else 0 if gauge == "double_centred" else 2 * e :] = 0
        return self.scatter / self.n + kept[:, :, None] * kept[:, None, :]

    def spectrum(self, gauge: Gauge = "raw") -> BilinearSpectrum:
        """Both spectra of q k^T / N, as if they had been computed from all tokens at once."""
        return gram_spectrum(self.gram(gauge).cpu())  # LAPACK: see `Bilinear.core`

    def parts(self, gauge: Gauge = "raw") -> tuple[Spectrum, Spectrum]:
        """Routing and filtering of q k^T / N, with what a Gram matrix loses as the floor of their ranks."""
        gram, found = self.gram(gauge).cpu(), self.spectrum(gauge)
        norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        q, k = norms.chunk(2, dim=-1)
        floor = LOST * (q * k).sum(-1)
        magnitude = found.filtering.abs().sort(dim=-1, descending=True).values
        return (
            Spectrum(found.routing, found.routing, found.routing_energy, True, floor),
            Spectrum(magnitude, found.filtering, found.filtering_energy, False, floor),
        )


def corpus_grams(
    model: HookedModel,
    tokens: Tokens,
    *,
    lengths: Int[Tensor, " b"] | None = None,
    layers: Sequence[int] | None = None,
    skip_first: bool = False,
    max_tokens: int | None = None,
    max_length: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> dict[int, CorpusGram]:
    """Run tokens through the model, several layers a pass; `skip_first` leaves out position 0 of each sequence."""
    spec = model.cfg
    fed = batches_of(model, tokens, lengths=lengths, max_tokens=max_tokens, max_length=max_length, seed=seed)
    grams: dict[int, CorpusGram] = {}
    shown = None if progress else False
    for layer, q, k in compared(model, fed, layers, label="corpus interaction", show=shown):
        gram = grams.setdefault(layer, CorpusGram(spec.n_heads, spec.d_head, device=q.device))
        gram.update(q[int(skip_first) :], k[int(skip_first) :], scale=spec.scale(layer))
    return grams


def store_grams(
    store: ActivationStore, layers: Sequence[int], *, scale: float = 1.0, progress: bool = True
) -> dict[int, CorpusGram]:
    """From stored `rot_q` and `rot_k` (`q` and `k` where no `rot_q` is stored) of `layers`, all rows of the store.

    A store does not hold the model's scale; ranks and fractions do not depend on it.
    """
    grams: dict[int, CorpusGram] = {}
    with bar(len(store) * len(layers), "corpus interaction", unit="row", show=None if progress else False) as shown:
        for layer in layers:
            rotary = Site(Point.ROT_Q, layer) in store.sites
            pair = (Point.ROT_Q, Point.ROT_K) if rotary else (Point.Q, Point.K)
            sites = [store.site(Site(point, layer)) for point in pair]
            for start in range(0, len(store), _CHUNK):
                stop = min(start + _CHUNK, len(store))
                q, k = (store.rows(site, start, stop) for site in sites)
                gram = grams.setdefault(layer, CorpusGram(q.shape[1], q.shape[2]))
                gram.update(q, k, scale=scale)
                shown.update(stop - start)
    return grams


def corpus_rows(grams: Mapping[int, CorpusGram], *, gauges: Sequence[Gauge] = GAUGES) -> list[dict[str, Any]]:
    """One row per head: `corpus_<gauge>_routing_fraction`, `_routing_<rank>`, `_filtering_<rank>`, `corpus_tokens`."""
    rows: list[dict[str, Any]] = []
    for layer in sorted(grams):
        gram = grams[layer]
        columns = {
            f"corpus_{gauge}_{name}": value.tolist()
            for gauge in gauges
            for name, value in split_columns(*gram.parts(gauge)).items()
        }
        rows += [
            {"layer": layer, "head": h, "corpus_tokens": gram.n} | {name: columns[name][h] for name in columns}
            for h in range(len(gram.mean))
        ]
    return rows
