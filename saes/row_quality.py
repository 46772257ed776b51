"""An SAE against the rows of a store: reconstruction and firing, in one pass.

    x = rows of the sites read, side by side      y = rows of the sites written      ŷ = SAE(x), compared with y

One site for an SAE, two for a transcoder, several for a crosscoder (whose figures are over all sources together, and
`sources` has them one by one: a layer of large norm dominates the whole). A crosscoder over two models is measured on
`saes.paired.PairedRows`, its sites being `ModelSite`s; activations in memory are a `saes.tensor_rows.TensorRows`. A row
is massive, and kept apart, where its norm at any of these sites is above that site's limit.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.progress import bar
from interp.sites import Site
from interp.store import ActivationStore
from saes.belongs import Places, check_belongs, limits_of, places_of
from saes.firing import Firing, FiringFitter
from saes.paired import PairedRows
from saes.reconstruction import Reconstruction, ReconstructionFitter
from saes.sae import SAE
from saes.splice import massive_threshold
from saes.tensor_rows import TensorRows

_ROWS = 4096
Limits = Mapping[Any, float]
Stored = ActivationStore | PairedRows | TensorRows


class RowQuality(NamedTuple):
    """What the stored rows say about an SAE."""

    kept: Reconstruction
    """Without massive rows."""
    all_rows: Reconstruction
    firing: Firing
    """Over the kept rows."""
    massive_rows: int
    n_documents: int
    sources: dict[str, Reconstruction]
    """Of a crosscoder: each site by itself, massive rows left out."""


def row_norms(store: Stored, site: Any) -> Float[Tensor, " n"]:
    """The norm of every stored row, in the store's order, float32."""
    parts = [store.rows(site, *span).flatten(1).float().norm(dim=-1) for span in _spans(len(store))]
    norms = torch.cat(parts) if parts else torch.empty(0)
    if not bool(norms.isfinite().all()):
        bad = int((~norms.isfinite()).sum())
        raise InputError(
            f"{bad} of {len(norms)} rows of {store.path} at {site} hold NaN or infinity: expected finite activations. "
            "Extract again in a dtype with more range (bfloat16 or float32)"
        )
    return norms


def threshold_of(sae: SAE, store: ActivationStore, site: Site | str) -> float:
    """The massive-norm threshold the SAE was trained with, else 10 times the median norm of `store`."""
    return thresholds_of(sae, store, [Site.parse(site)])[Site.parse(site)]


def thresholds_of(sae: SAE, store: Stored, sites: Sequence[Any]) -> dict[Any, float]:
    """The same for several sites."""
    known = limits_of(sae, sites)
    return known or {site: massive_threshold(row_norms(store, site)) for site in sites}


@torch.no_grad()
def measure_rows(
    sae: SAE,
    store: Stored,
    site: Any | Sequence[Any],
    *,
    threshold: float | Limits = math.inf,
    site_out: Site | str | None = None,
    force: bool = False,
    show: bool | None = False,
) -> RowQuality:
    """Reconstruct every stored row, and count what fires.

    `threshold`: the norm above which a row is massive, one for all sites or one for each; `force` accepts an SAE made
    for another site.
    """
    places = places_of(sae, site=site, site_out=site_out, paired=isinstance(store, PairedRows))
    check_stored(sae, store, places, force=force)
    limits = dict.fromkeys(places.sites, threshold) if isinstance(threshold, float | int) else threshold
    device = sae.W_dec.device
    kept, massive = ReconstructionFitter(), ReconstructionFitter()
    sources = [ReconstructionFitter() for _ in places.writes] if len(places.writes) > 1 else []
    firing = FiringFitter(sae.config.d_sae, device=device)
    documents: set[int] = set()
    with bar(len(store), "reconstruction", show=show) as progress:
        for start, stop in _spans(len(store)):
            rows = {site: store.rows(site, start, stop).flatten(1).to(device).float() for site in places.sites}
            x, y = (torch.cat([rows[site] for site in sites], 1) for sites in places)
            usual = torch.stack([rows[site].norm(dim=-1) <= limits[site] for site in places.sites]).all(0)
            codes = sae.encode(x)
            y_hat = sae.decode(codes, x)
            kept.update(y[usual], y_hat[usual])
            massive.update(y[~usual], y_hat[~usual])
            for fitter, part, part_hat in zip(sources, *_cut((y[usual], y_hat[usual]), rows, places), strict=False):
                fitter.update(part, part_hat)
            fires = (codes.values > 0) & usual[codes.rows]
            firing.update(codes.indices[fires], codes.values[fires], n_tokens=int(usual.sum()))
            documents.update(store.keys(start, stop).doc.unique().tolist())
            progress.update(stop - start)
    return RowQuality(
        kept=kept.result(),
        all_rows=kept.merge(massive).result(),
        firing=firing.result(),
        massive_rows=massive.n_tokens,
        n_documents=len(documents),
        sources={str(site): fitter.result() for site, fitter in zip(places.writes, sources, strict=False)},
    )


def check_stored(sae: SAE, store: Stored, places: Places, *, force: bool) -> None:
    """Refuse a store of another model, site or width than the SAE's."""
    widths = {site: math.prod(store.manifest["row_shapes"][str(store.site(site))]) for site in places.sites}
    check_belongs(
        sae,
        model=store.manifest["parts"][0]["spec"].get("model"),
        site=places.reads,
        site_out=places.writes[0] if sae.config.is_transcoder else None,
        d=sum(widths[site] for site in places.reads),
        d_out=sum(widths[site] for site in places.writes),
        force=force,
    )


def _cut(both: tuple[Tensor, Tensor], rows: Mapping[Any, Tensor], places: Places) -> list[tuple[Tensor, ...]]:
    """Target and reconstruction, each as one tensor per site written."""
    widths = [rows[site].shape[1] for site in places.writes]
    return [part.split(widths, dim=1) for part in both]


def _spans(n: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*range(0, n, _ROWS), n])) if n else []
