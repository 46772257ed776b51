"""How good an SAE is on held-out text: reconstruction of stored rows, and the model's loss with the SAE spliced in.

    explained variance    1 - Σ |x - x̂|² / Σ |x - mean|², float64, over all rows (`saes.reconstruction`)
    loss recovered        (CE zero-ablated - CE spliced) / (CE zero-ablated - CE clean)
    delta CE, KL          CE spliced - CE clean; KL(clean || spliced)                              (`interp.effects`)

Rows of massive norm (attention sinks; over 10 times the median, or the threshold the SAE was trained with) are left out
of every figure but `explained_variance_all`: a few of them hold most of the variance, so that a figure which counts
them says how they are treated and little else.
In the runs behind CE and KL, splicing and ablation replace the same positions and pass the others through unchanged:
position 0 of each sequence, special and template tokens, and massive rows (`saes.splice`).

A transcoder is measured against the site it writes, and spliced in there. A crosscoder reads layers that come after
some it writes: no run can hold its output in the place of all of them, and CE and KL are NaN.

Loss recovered stands near 1 for any usable SAE on the residual stream; delta CE and KL tell them apart.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.batching import Batch, batches
from interp.effects import Edits, Effects, compare
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from saes.belongs import check_belongs as check_belongs
from saes.belongs import places_of
from saes.evaluation import Evaluation as Evaluation
from saes.row_quality import Limits, RowQuality, check_stored, thresholds_of
from saes.row_quality import measure_rows as measure_rows
from saes.row_quality import row_norms as row_norms
from saes.row_quality import threshold_of as threshold_of
from saes.sae import SAE
from saes.splice import replace_from, replace_rows


@torch.no_grad()
def measure_loss(
    sae: SAE,
    model: HookedModel,
    tokens: TokenFile,
    site: Site | str,
    *,
    site_out: Site | str | None = None,
    threshold: float | Limits = math.inf,
    max_tokens: int = 8_000,
    max_length: int = 256,
    token_budget: int = 1_024,
    seed: int = 0,
    force: bool = False,
    show: bool | None = False,
) -> Effects:
    """CE and KL of the model clean, `spliced` and `zero`-ablated, on about `max_tokens` predicted tokens.

    The batches are a seeded sample of the file's windows; with a smaller `token_budget` more lengths mix in it.
    """
    places = places_of(sae, site=site, site_out=site_out)
    if len(places.reads) > 1:
        raise InputError("a crosscoder reads several sites and cannot be spliced into a run: measure its rows alone")
    (source,), (target,) = places
    check_belongs(sae, model=model, site=source, site_out=target if sae.config.is_transcoder else None, force=force)
    limits = dict.fromkeys(places.sites, threshold) if isinstance(threshold, float | int) else threshold
    norms = (limits[source], limits[target])

    def edits(batch: Batch) -> dict[str, Edits]:
        allowed = _content(batch, tokens)
        if source == target:
            spliced = {source: replace_rows(lambda x: sae(x), max_norm=norms[0], allowed=allowed)}
            return {
                "spliced": spliced,
                "zero": {source: replace_rows(torch.zeros_like, max_norm=norms[0], allowed=allowed)},
            }
        runs = {}
        for name, rows in (("spliced", lambda x: sae(x)), ("zero", lambda x: x.new_zeros(len(x), sae.W_dec.shape[1]))):
            remember, write = replace_from(rows, max_norms=norms, allowed=allowed)
            runs[name] = {source: remember, target: write}
        return runs

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
    site: Site | str | Sequence[Site | str],
    *,
    model: HookedModel,
    tokens: TokenFile,
    site_out: Site | str | None = None,
    max_ce_tokens: int = 8_000,
    token_budget: int = 1_024,
    seed: int = 0,
    force: bool = False,
    show: bool | None = False,
) -> Evaluation:
    """Evaluate an SAE on a store of held-out rows and on the held-out text itself, run through the whole model.

    `max_ce_tokens`: three full runs of the model per token; 8,000 tokens give CE to about 0.03 and delta CE, a paired
    difference, far closer. Windows are as long as those the store was made from. An SAE made for another model or site
    is refused unless `force` is given.
    """
    places = places_of(sae, site=site, site_out=site_out)
    check_stored(sae, store, places, force=force)
    check_belongs(sae, model=model, force=force)
    threshold = thresholds_of(sae, store, places.sites)
    rows = measure_rows(sae, store, site, site_out=site_out, threshold=threshold, force=force, show=show)
    effects = None
    if len(places.reads) == 1:
        effects = measure_loss(
            sae,
            model,
            tokens,
            places.reads[0],
            site_out=site_out,
            threshold=threshold,
            max_tokens=max_ce_tokens,
            max_length=store.specs[0].max_length or 256,
            token_budget=token_budget,
            seed=seed,
            force=force,
            show=show,
        )
    return combine(rows, effects, threshold=max(threshold.values()))


def combine(rows: RowQuality, effects: Effects | None, *, threshold: float) -> Evaluation:
    """One record of what was measured on rows and, except for crosscoders, on text."""
    return Evaluation(
        n_tokens=rows.kept.n_tokens,
        n_documents=rows.n_documents,
        explained_variance=rows.kept.explained_variance,
        explained_variance_all=rows.all_rows.explained_variance,
        massive_rows=rows.massive_rows,
        massive_threshold=threshold,
        cosine=rows.kept.cosine,
        l2_ratio=rows.kept.l2_ratio,
        reconstruction_bias=rows.kept.bias,
        l0=int(rows.firing.fires.sum()) / rows.kept.n_tokens,
        dead_fraction=float((rows.firing.fires == 0).double().mean()),
        mse=rows.kept.mse,
        **_losses(effects),
        densities=rows.firing.density,
        parts={"sources": {name: part._asdict() for name, part in rows.sources.items()}} if rows.sources else {},
    )


def _losses(effects: Effects | None) -> dict[str, Any]:
    if effects is None:
        names = ("ce_clean", "ce_spliced", "ce_zero", "delta_ce", "kl", "kl_zero", "loss_recovered")
        return dict.fromkeys(names, math.nan) | {"ce_tokens": 0}
    ce, zero = effects.ce, effects.ce["zero"]
    caused = zero - effects.ce_clean
    return {
        "ce_clean": effects.ce_clean,
        "ce_spliced": ce["spliced"],
        "ce_zero": zero,
        "delta_ce": effects.delta_ce("spliced"),
        "kl": effects.kl["spliced"],
        "kl_zero": effects.kl["zero"],
        "loss_recovered": (zero - ce["spliced"]) / caused if caused else math.nan,
        "ce_tokens": effects.n_tokens,
    }


def names_of(
    sae: SAE,
    store: ActivationStore,
    *,
    model: str | None = None,
    site: str | Site | Sequence[str | Site] | None = None,
) -> tuple[str, list[Site]]:
    """The model's name, by default the one in the store, and the sites read, by default the SAE's own."""
    model = model or store.specs[0].model
    known = sae.config.metadata
    site = site or known.get("hook_names") or known.get("hook_name")
    if model is None or site is None:
        what = "model" if model is None else "site"
        raise InputError(f"{store.path} and the SAE do not say which {what} they belong to: name it")
    return model, [store.site(one) for one in Site.parse_all(site)]


def _content(batch: Batch, tokens: TokenFile) -> Bool[Tensor, "b t"]:
    """Positions that hold neither a special token nor part of a chat template."""
    allowed = ~torch.isin(batch.tokens, torch.tensor(tokens.special_ids, dtype=batch.tokens.dtype))
    if tokens.template is not None:
        place = batch.start[:, None] + torch.arange(batch.tokens.shape[1])
        place = torch.from_numpy(tokens.offsets)[batch.doc][:, None] + place
        template = np.asarray(tokens.template)[place.clamp(0, len(tokens.template) - 1).numpy()]
        allowed &= torch.from_numpy(template == 0)
    return allowed
