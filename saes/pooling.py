"""One vector per text: an SAE's codes and the raw activations, pooled over the tokens of each text.

    features[i] = mean (or max) over tokens t of text i of codes(x_t)      n f, sparse (scipy csr)
    residual[i] = mean over tokens t of text i of x_t                      n d

Left out: padding, special tokens, and position 0 of each text (massive in many models; a text of one token keeps it).
Texts run in batches of similar length; nothing larger than a batch of codes is held but the pooled rows.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.chat import to_tokens
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sites import Site
from saes.belongs import check_belongs, places_of
from saes.sae import SAE

Pool = Literal["mean", "max"]


class Pooled(NamedTuple):
    """Row i belongs to text i."""

    features: Any
    """n f, scipy.sparse.csr_array, float32."""
    residual: Float[np.ndarray, "n d"]
    """What the SAE reads, mean over tokens; float32."""


@torch.no_grad()
def pool(
    sae: SAE,
    model: HookedModel,
    texts: Sequence[str],
    site: Site | str | Sequence[Site | str] | None = None,
    *,
    how: Pool = "mean",
    max_length: int = 128,
    token_budget: int = 2_048,
    prepend_bos: bool | None = None,
    force: bool = False,
    show: bool | None = False,
) -> Pooled:
    """Run every text and pool; texts are cut to `max_length` tokens. `site`: by default the SAE's own.

    `prepend_bos`: by default what the model's preset says, else no.
    """
    import scipy.sparse as sparse

    if how not in ("mean", "max"):
        raise InputError(f"how={how!r}: expected 'mean' or 'max'")
    sites = places_of(sae, site=site, site_out=any_target(sae)).reads
    check_belongs(sae, model=model, site=sites, force=force)
    bos = prepend_bos if prepend_bos is not None else bool(model.preset and model.preset.prepend_bos)
    rows = to_tokens(model.tokenizer, list(texts), prepend_bos=bos)
    lengths = rows.lengths.clamp(max=max_length)
    order = torch.argsort(lengths).tolist()
    features: list[Any] = [None] * len(order)
    residual = np.zeros((len(order), sae.config.d_in), np.float32)
    with bar(len(order), "texts", unit="text", show=show) as progress:
        for batch in _batches(order, lengths.tolist(), token_budget):
            t = int(lengths[batch].max())
            tokens, sizes = rows.tokens[batch, :t], lengths[batch]
            kept = _content(model, tokens, sizes)
            found = model.capture(tokens.to(model.device), sites, lengths=sizes.to(model.device))
            x = torch.cat([found[site].flatten(2).float() for site in sites], 2)[kept.to(model.device)]
            text = torch.nonzero(kept)[:, 0].to(x.device)
            count = torch.bincount(text, minlength=len(batch)).clamp(min=1)[:, None]
            mean = torch.zeros(len(batch), x.shape[1], device=x.device).index_add_(0, text, x) / count
            residual[batch] = mean.cpu().numpy()
            pooled = _pool_codes(sae, x, text, count, how)
            for place, row in zip(batch, pooled, strict=True):
                features[place] = sparse.csr_array(row.cpu().numpy()[None])
            progress.update(len(batch))
    return Pooled(sparse.csr_array(sparse.vstack(features)), residual)


def _pool_codes(sae: SAE, x: Tensor, text: Tensor, count: Tensor, how: Pool) -> Float[Tensor, "b f"]:
    codes = sae.encode(x)
    cells = text[codes.rows] * codes.n_features + codes.indices
    flat = torch.zeros(len(count) * codes.n_features, device=x.device)
    values = codes.values.float()
    if how == "mean":
        return flat.index_add_(0, cells, values).view(len(count), -1) / count
    return flat.scatter_reduce_(0, cells, values, "amax").view(len(count), -1)


def _batches(order: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    """Texts from short to long, cut where the padded batch would exceed the budget."""
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * lengths[i] > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _content(model: HookedModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Positions of ordinary tokens behind the first; the first alone where there is nothing else."""
    place = torch.arange(tokens.shape[1])
    special = torch.isin(tokens, torch.tensor(model.tokenizer.all_special_ids, dtype=tokens.dtype))
    kept = (place < lengths[:, None]) & (place > 0) & ~special
    kept[~kept.any(1), 0] = True
    return kept


def any_target(sae: SAE) -> Site | str | None:
    """Only what is read matters here: a transcoder's target need not be named."""
    known = sae.config.metadata
    return (known.get("hook_name_out") or known.get("hook_name") or "embed") if sae.config.is_transcoder else None
