"""Which rows of a model or a store go into statistics, and the statistics of several sites in one pass.

    last      the last token of each prompt: where the next token is decided
    all       every token but the excluded ones
    content   as `all`, without what a chat template wrote

Padding, position 0 of every fed sequence (its norm is massive, with a BOS or without, and would dominate Σ) and,
except for `last`, special tokens are left out. Means of concepts and the neutral statistics have to be taken over the
same kind of rows: what all last positions have in common would otherwise be read as the concept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batching import Batch
from interp.chat import TokenBatch
from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.progress import bar
from interp.running_moments import Moments
from interp.sites import Site
from interp.store import ActivationStore

Positions = Literal["last", "all", "content"]
_CHUNK = 2**25  # values read from a store at a time: 256 MB of float64


class PromptRows(NamedTuple):
    """Rows of one batch: activations by site, and the number of the prompt that each row belongs to."""

    acts: dict[Site, Float[Tensor, "n d"]]
    prompt: Int[Tensor, " n"]


def text_batches(
    model: HookedModel,
    texts: Sequence[Any],
    *,
    token_budget: int = 4096,
    prepend_bos: bool | None = None,
    generation_prompt: bool = False,
) -> list[TokenBatch]:
    """Texts and chats as batches of at most `token_budget` padded tokens (or of one prompt), in the order given."""
    whole = model.to_tokens(texts, prepend_bos=prepend_bos, generation_prompt=generation_prompt)
    lengths, batches, first = whole.lengths.tolist(), [], 0
    for end in range(1, len(lengths) + 1):
        longest = max(lengths[first : end + 1])
        if end == len(lengths) or longest * (end + 1 - first) > token_budget:
            part, t = slice(first, end), max(lengths[first:end])
            batches.append(TokenBatch(whole.tokens[part, :t], whole.lengths[part], whole.template[part, :t]))
            first = end
    return batches


def prompt_rows(
    model: HookedModel,
    batches: Iterable[Batch | TokenBatch],
    sites: str | Site | Iterable[str | Site],
    *,
    positions: Positions = "last",
    edits: Mapping[Site, Edit] | None = None,
) -> Iterator[PromptRows]:
    """The rows of every batch at all sites, one pass each; with `edits`, those of the edited model.

    Prompts of a `TokenBatch` are numbered as they come, those of a `Batch` by their document.
    """
    if positions not in get_args(Positions):
        raise InputError(f"unknown positions {positions!r}: expected one of {', '.join(get_args(Positions))}")
    wanted, special, seen = _plain(Site.parse_all(sites)), _special_ids(model), 0
    for batch in batches:
        tokens, lengths = batch.tokens.to(model.device), batch.lengths.to(model.device)
        kept = _kept(batch, tokens, lengths, special, positions)
        with torch.no_grad(), model.edited(edits) if edits else nullcontext():
            found = model.capture(tokens, wanted, lengths=lengths)
        numbers = batch.doc if isinstance(batch, Batch) else torch.arange(seen, seen + len(lengths))
        seen += len(lengths)
        row = torch.nonzero(kept)[:, 0]
        yield PromptRows({site: x[kept.to(x.device)] for site, x in found.items()}, numbers.cpu()[row.cpu()])


def _kept(
    batch: Batch | TokenBatch, tokens: Tensor, lengths: Tensor, special: Tensor, positions: Positions
) -> Bool[Tensor, "b t"]:
    at = torch.arange(tokens.shape[1], device=tokens.device)
    if positions == "last":
        if short := torch.nonzero(lengths < 2)[:, 0].tolist():
            raise InputError(
                f"prompt {short[0]} of a batch has one token, at position 0, which is left out of statistics (its "
                "norm is massive): expected prompts of two tokens or more"
            )
        return at == lengths[:, None] - 1
    kept = (at > 0) & (at < lengths[:, None]) & ~torch.isin(tokens, special.to(tokens.device))
    if positions == "content" and isinstance(batch, TokenBatch):
        kept = kept & ~batch.template.to(kept.device)
    return kept


def _special_ids(model: HookedModel) -> Int[Tensor, " s"]:
    if model.tokenizer is None:
        return torch.zeros(0, dtype=torch.int64)
    added = getattr(model.tokenizer, "added_tokens_decoder", {})
    ids = {*model.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return torch.tensor(sorted(ids), dtype=torch.int64)


def _plain(sites: list[Site]) -> list[Site]:
    """Refuse sites whose rows are no vectors."""
    for site in sites:
        if site.point.per_head and site.head is None:
            raise InputError(f"{site} has a head axis: name one head, such as {site}[0]")
    return sites


def moments_from_model(
    model: HookedModel,
    batches: Sequence[Batch | TokenBatch],
    sites: str | Site | Iterable[str | Site],
    *,
    positions: Positions = "all",
    edits: Mapping[Site, Edit] | None = None,
    show: bool | None = False,
) -> dict[Site, Moments]:
    """Moments at every site, in one pass over the batches. `n_groups` counts prompts (documents of a `Batch`)."""
    moments: dict[Site, Moments] = {}
    prompts: set[int] = set()
    with bar(len(batches), "moments", unit="batch", show=show) as progress:
        for rows in prompt_rows(model, batches, sites, positions=positions, edits=edits):
            for site, x in rows.acts.items():
                found = moments.setdefault(site, Moments.of(x.shape[-1], device=x.device))
                found.update(x, groups=0)
            prompts.update(rows.prompt.tolist())
            progress.update(1)
    for found in moments.values():
        found.n_groups = len(prompts)
    if not moments or not prompts:
        raise InputError(f"no rows at positions={positions!r}: expected prompts of two tokens or more that count")
    return moments


def moments_from_store(store: ActivationStore, site: str | Site, *, device: torch.device | str = "cpu") -> Moments:
    """Moments of a store's rows at one site; `n_groups` counts documents. The store must exclude what skews them."""
    missing = {"first_position", "special_tokens"} - set.intersection(*(set(s.excluded or ()) for s in store.specs))
    if missing:
        raise InputError(
            f"{store.path} keeps {' and '.join(sorted(missing))}, which would dominate the covariance; extract "
            "again without them (the default)"
        )
    wanted = store.site(site)
    if wanted.point.per_head and wanted.head is None:
        raise InputError(f"{wanted} has a head axis; moments are of vectors: extract one head, such as {wanted}[0]")
    width = store.rows(wanted, 0, 1).shape[-1]
    moments, size = Moments.of(width, device=device), max(1, _CHUNK // width)
    for start in range(0, len(store), size):
        moments.update(store.rows(wanted, start, min(start + size, len(store))), groups=0)
    moments.n_groups = len(store.document_rows())
    return moments
