"""How good an SAE is on held-out text: reconstruction of stored rows, and the model's loss with the SAE spliced in.

    explained variance    1 - Σ |x - x̂|² / Σ |x - mean|², float64, over all rows (`saes.reconstruction`)
    loss recovered        (CE zero-ablated - CE spliced) / (CE zero-ablated - CE clean)
    delta CE, KL          CE spliced - CE clean; KL(clean || spliced)                              (`interp.effects`)

Rows of massive norm (attention sinks; over 10 times the median, or the threshold the SAE was trained with) are left out
of every figure but `explained_variance_all`: a few of them hold most of the variance, so that a figure which counts
them says how they are treated and little else.
In the runs behind CE and KL, splicing and ablation replace the same positions and pass the others through unchanged:
position 0 of each sequence, special and template tokens, and massive rows (`saes.splice`).

`Evaluation.save` writes one JSON file: the scalars by name, and `densities`, one number per feature.
"""

import itertools
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batching import Batch, batches
from interp.effects import Effects, compare
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sealing import read_json, write_sealed
from interp.sites import Site
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from saes.firing import Firing, FiringFitter
from saes.reconstruction import Reconstruction, ReconstructionFitter
from saes.sae import SAE
from saes.splice import massive_threshold, replace_rows

_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one SAE; see the module's docstring for what each leaves out."""

    n_tokens: int
    """Held-out rows measured, massive ones not counted."""
    n_documents: int
    explained_variance: float
    explained_variance_all: float
    """With the massive rows counted."""
    massive_rows: int
    massive_threshold: float
    """Norm above which a row is massive."""
    cosine: float
    """Between a row and its reconstruction, mean over rows."""
    l0: float
    """Active features per row."""
    dead_fraction: float
    """Features that fired on none of the `n_tokens` rows."""
    mse: float
    """Squared error summed over the width, per row."""
    ce_clean: float
    ce_spliced: float
    ce_zero: float
    delta_ce: float
    kl: float
    """KL(clean || spliced)."""
    kl_zero: float
    """KL(clean || zero-ablated)."""
    loss_recovered: float
    ce_tokens: int
    """Predicted tokens behind CE and KL."""
    densities: Float[Tensor, " f"]
    """Fires per row of each feature, float64."""

    def scalars(self) -> dict[str, float | int]:
        """Every figure but the densities, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "densities"}

    def text(self) -> str:
        """The scalars as lines of name and value."""
        return "\n".join(
            f"{name:22} {value:,}" if isinstance(value, int) else f"{name:22} {value:.6g}"
            for name, value in self.scalars().items()
        )

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        write_sealed(Path(path), json.dumps(self.scalars() | {"densities": self.densities.tolist()}) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote; the numbers come back exactly."""
        found: Any = read_json(Path(path), "evaluation")
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or set(found) != names:
            keys = set(found) if isinstance(found, dict) else set()
            raise InputError(
                f"{path} is no evaluation of this version (missing: {sorted(names - keys)}, unknown: "
                f"{sorted(keys - names)}); evaluate the SAE again"
            )
        found["densities"] = torch.tensor(found["densities"], dtype=torch.float64)
        return cls(**found)


class RowQuality(NamedTuple):
    """What the stored rows say about an SAE."""

    kept: Reconstruction
    """Without massive rows."""
    all_rows: Reconstruction
    firing: Firing
    """Over the kept rows."""
    massive_rows: int
    n_documents: int


def row_norms(store: ActivationStore, site: Site | str) -> Float[Tensor, " n"]:
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


@torch.no_grad()
def measure_rows(
    sae: SAE, store: ActivationStore, site: Site | str, *, threshold: float, show: bool | None = False
) -> RowQuality:
    """Reconstruct every stored row, and count what fires."""
    device = sae.W_dec.device
    kept, massive = ReconstructionFitter(), ReconstructionFitter()
    firing = FiringFitter(sae.config.d_sae, device=device)
    documents: set[int] = set()
    with bar(len(store), "reconstruction", show=show) as progress:
        for start, stop in _spans(len(store)):
            x = store.rows(site, start, stop).flatten(1).to(device).float()
            codes = sae.encode(x)
            x_hat = sae.decode(codes)
            usual = x.norm(dim=-1) <= threshold
            kept.update(x[usual], x_hat[usual])
            massive.update(x[~usual], x_hat[~usual])
            row = torch.repeat_interleave(torch.arange(len(x), device=device), codes.offsets.diff())
            fires = (codes.values > 0) & usual[row]
            firing.update(codes.indices[fires], codes.values[fires], n_tokens=int(usual.sum()))
            documents.update(store.keys(start, stop).doc.unique().tolist())
            progress.update(stop - start)
    return RowQuality(kept.result(), kept.merge(massive).result(), firing.result(), massive.n_tokens, len(documents))


@torch.no_grad()
def measure_loss(
    sae: SAE,
    model: HookedModel,
    tokens: TokenFile,
    site: Site | str,
    *,
    threshold: float = math.inf,
    max_tokens: int = 8_000,
    max_length: int = 256,
    token_budget: int = 1_024,
    seed: int = 0,
    show: bool | None = False,
) -> Effects:
    """CE and KL of the model clean, `spliced` and `zero`-ablated, on about `max_tokens` predicted tokens.

    The batches are a seeded sample of the file's windows; with a smaller `token_budget` more lengths mix in it.
    """
    site = Site.parse(site)

    def edits(batch: Batch) -> dict[str, dict[Site, Any]]:
        allowed = _content(batch, tokens)
        spliced = replace_rows(lambda x: sae(x), max_norm=threshold, allowed=allowed)
        return {
            "spliced": {site: spliced},
            "zero": {site: replace_rows(torch.zeros_like, max_norm=threshold, allowed=allowed)},
        }

    sample, found = [], 0
    for batch in batches(tokens, token_budget=max(token_budget, max_length), max_length=max_length, seed=seed):
        if found >= max_tokens:
            break
        sample.append(batch)
        found += int((batch.lengths - 1).sum())
    return compare(model, sample, edits, max_tokens=max_tokens, show=show)


def evaluate(
    sae: SAE,
    store: ActivationStore,
    site: Site | str,
    *,
    model: HookedModel,
    tokens: TokenFile,
    max_ce_tokens: int = 8_000,
    token_budget: int = 1_024,
    seed: int = 0,
    show: bool | None = False,
) -> Evaluation:
    """Evaluate an SAE on a store of held-out rows and on the held-out text itself, run through the whole model.

    `max_ce_tokens`: three full runs of the model per token; 8,000 tokens give CE to about 0.03 and delta CE, a paired
    difference, far closer. Windows are as long as those the store was made from.
    """
    threshold = threshold_of(sae, store, site)
    rows = measure_rows(sae, store, site, threshold=threshold, show=show)
    effects = measure_loss(
        sae,
        model,
        tokens,
        site,
        threshold=threshold,
        max_tokens=max_ce_tokens,
        max_length=store.specs[0].max_length or 256,
        token_budget=token_budget,
        seed=seed,
        show=show,
    )
    return combine(rows, effects, threshold=threshold)


def combine(rows: RowQuality, effects: Effects, *, threshold: float) -> Evaluation:
    """One record of what was measured on rows and on text."""
    ce, zero = effects.ce, effects.ce["zero"]
    caused = zero - effects.ce_clean
    return Evaluation(
        n_tokens=rows.kept.n_tokens,
        n_documents=rows.n_documents,
        explained_variance=rows.kept.explained_variance,
        explained_variance_all=rows.all_rows.explained_variance,
        massive_rows=rows.massive_rows,
        massive_threshold=threshold,
        cosine=rows.kept.cosine,
        l0=int(rows.firing.fires.sum()) / rows.kept.n_tokens,
        dead_fraction=float((rows.firing.fires == 0).double().mean()),
        mse=rows.kept.mse,
        ce_clean=effects.ce_clean,
        ce_spliced=ce["spliced"],
        ce_zero=zero,
        delta_ce=effects.delta_ce("spliced"),
        kl=effects.kl["spliced"],
        kl_zero=effects.kl["zero"],
        loss_recovered=(zero - ce["spliced"]) / caused if caused else math.nan,
        ce_tokens=effects.n_tokens,
        densities=rows.firing.density,
    )


def names_of(
    sae: SAE, store: ActivationStore, *, model: str | None = None, site: str | Site | None = None
) -> tuple[str, Site]:
    """The model's name, by default the one in the store, and the site, by default the SAE's own."""
    model = model or store.specs[0].model
    site = site or sae.config.metadata.get("hook_name")
    if model is None or site is None:
        what = "model" if model is None else "site"
        raise InputError(f"{store.path} and the SAE do not say which {what} they belong to: name it")
    return model, store.site(site)


def threshold_of(sae: SAE, store: ActivationStore, site: Site | str) -> float:
    """The massive-norm threshold the SAE was trained with, else 10 times the median norm of `store`."""
    known = sae.config.metadata.get("midlens_training", {}).get("massive_norm")
    return float(known) if known is not None else massive_threshold(row_norms(store, site))


def _spans(n: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*range(0, n, _ROWS), n])) if n else []


def _content(batch: Batch, tokens: TokenFile) -> Bool[Tensor, "b t"]:
    """Positions that hold neither a special token nor part of a chat template."""
    allowed = ~torch.isin(batch.tokens, torch.tensor(tokens.special_ids, dtype=batch.tokens.dtype))
    if tokens.template is not None:
        place = batch.start[:, None] + torch.arange(batch.tokens.shape[1])
        place = torch.from_numpy(tokens.offsets)[batch.doc][:, None] + place
        template = np.asarray(tokens.template)[place.clamp(0, len(tokens.template) - 1).numpy()]
        allowed &= torch.from_numpy(template == 0)
    return allowed
