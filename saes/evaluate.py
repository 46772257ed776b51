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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.batching import Batch, batches
from interp.effects import Edits, Effects, compare
from interp.errors import InputError
from interp.heap import trimmed
from interp.model import HookedModel
from interp.sites import Site
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from saes.belongs import PAIRED, places_of
from saes.belongs import check_belongs as check_belongs
from saes.evaluation import Evaluation as Evaluation
from saes.paired import ModelSite, parse_places
from saes.row_quality import Limits, RowQuality, check_stored, thresholds_of
from saes.row_quality import measure_rows as measure_rows
from saes.row_quality import row_norms as row_norms
from saes.row_quality import threshold_of as threshold_of
from saes.sae import SAE
from saes.splice import Rows, replace_from, replace_rows


class LossOptions(TypedDict, total=False):
    """What `measure_loss` and `measure_losses` take beyond SAE, model, text and site."""

    site_out: Site | str | None
    """Of a transcoder: the site it writes."""
    max_tokens: int
    """Predicted tokens, about (8,000)."""
    max_length: int
    """Of a window (256)."""
    token_budget: int
    """Padded tokens of a batch (1,024)."""
    seed: int
    """Of the order of batches (0)."""
    force: bool
    """Accept an SAE made for another model or site (False)."""
    show: bool | None
    """Whether to show a progress bar (False; None: on a terminal)."""


class _Splice(NamedTuple):
    """Where something is put in place of rows, and the norms at both sites beyond which a row is left alone."""

    source: Site
    target: Site
    norms: tuple[float, float]

    def edits(self, rows: Rows, allowed: Bool[Tensor, "b t"]) -> Edits:
        """Put `rows` of what stands at `source` there or, for a transcoder, at `target`."""
        if self.source == self.target:
            return {self.source: replace_rows(rows, max_norm=self.norms[0], allowed=allowed)}
        remember, write = replace_from(rows, max_norms=self.norms, allowed=allowed)
        return {self.source: remember, self.target: write}


def measure_loss(
    sae: SAE,
    model: HookedModel,
    tokens: TokenFile,
    site: Site | str,
    *,
    threshold: float | Limits = math.inf,
    **options: Unpack[LossOptions],
) -> Effects:
    """CE and KL of the model clean, `spliced` and `zero`-ablated, on about `max_tokens` predicted tokens.

    The batches are a seeded sample of the file's windows; with a smaller `token_budget` more lengths mix in it.
    """
    return measure_losses({"SAE": sae}, model, tokens, site, thresholds={"SAE": threshold}, **options)["SAE"]


@torch.no_grad()
def measure_losses(
    saes: Mapping[str, SAE],
    model: HookedModel,
    tokens: TokenFile,
    site: Site | str,
    *,
    thresholds: Mapping[str, float | Limits],
    site_out: Site | str | None = None,
    max_tokens: int = 8_000,
    max_length: int = 256,
    token_budget: int = 1_024,
    seed: int = 0,
    force: bool = False,
    show: bool | None = False,
) -> dict[str, Effects]:
    """The same for several SAEs of one site, by name: the model runs once for each of them and twice for all.

    Ablated runs are shared by those that agree on what is massive, as the SAEs of a sweep do.
    """
    places: dict[str, _Splice] = {}
    for name, sae in saes.items():
        places[name] = _splice(sae, model, thresholds[name], site=site, site_out=site_out, force=force)

    def edits(batch: Batch) -> dict[str, Edits]:
        allowed = _content(batch, tokens)
        runs: dict[str, Edits] = {}
        for name, place in places.items():
            width = saes[name].W_dec.shape[1]
            runs[f"{name} spliced"] = place.edits(lambda x, sae=saes[name]: sae(x), allowed)
            runs.setdefault(_ablated(place), place.edits(lambda x, d=width: x.new_zeros(len(x), d), allowed))
        return runs

    sample, found = [], 0
    for batch in batches(tokens, token_budget=max(token_budget, max_length), max_length=max_length, seed=seed):
        if found >= max_tokens:
            break
        sample.append(batch)
        found += int((batch.lengths - 1).sum())
    whole = compare(model, sample, edits, max_tokens=max_tokens, show=show)
    runs = {name: {"spliced": f"{name} spliced", "zero": _ablated(place)} for name, place in places.items()}
    return {name: replace(whole, ce=_renamed(whole.ce, own), kl=_renamed(whole.kl, own)) for name, own in runs.items()}


def _splice(
    sae: SAE,
    model: HookedModel,
    threshold: float | Limits,
    *,
    site: Site | str,
    site_out: Site | str | None,
    force: bool,
) -> _Splice:
    places = places_of(sae, site=site, site_out=site_out)
    if len(places.reads) > 1:
        raise InputError("a crosscoder reads several sites and cannot be spliced into a run: measure its rows alone")
    (source,), (target,) = places
    check_belongs(sae, model=model, site=source, site_out=target if sae.config.is_transcoder else None, force=force)
    limits = dict.fromkeys(places.sites, threshold) if isinstance(threshold, float | int) else threshold
    return _Splice(source, target, (limits[source], limits[target]))


def _ablated(place: _Splice) -> str:
    return f"zero up to the norms {place.norms}"


def _renamed(values: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {new: values[old] for new, old in names.items()}


@trimmed()
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
    if two := [str(place) for place in parse_places(site) if isinstance(place, ModelSite)]:
        raise InputError(f"the SAE reads two models ({', '.join(two)}), and {store.path} holds one: {PAIRED}")
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
