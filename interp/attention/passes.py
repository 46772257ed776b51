"""Queries and keys of every layer as attention compares them, one real sequence at a time.

    for seen in compared(model, batches_of(model, tokens), layers):
        seen.layer, seen.q ("t h e"), seen.k ("t g e")

`rot_q` and `rot_k` (after per-head norms and RoPE) where the model has a rotary embedding, q and k where it has none;
padding is cut off. As many layers come out of one pass as fit `HELD` bytes; more layers take more passes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batching import Batch, TokenSource, batches, default_token_budget
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sites import Point, Site

HELD = 2**30
"""Bytes of queries and keys kept of one pass."""

Tokens = Int[Tensor, "b t"] | TokenSource | Iterable[Batch]


class Compared(NamedTuple):
    """Of one sequence in one layer."""

    layer: int
    q: Float[Tensor, "t h e"]
    k: Float[Tensor, "t g e"]


def batches_of(
    model: HookedModel,
    tokens: Tokens,
    *,
    lengths: Int[Tensor, " b"] | None = None,
    max_tokens: int | None = None,
    max_length: int = 512,
    seed: int = 0,
) -> list[Batch]:
    """Batches from right-padded tokens (with `lengths`), from a token file (windows of `max_length`), or as they come.

    Ends with the sequence in which `max_tokens` positions are reached.
    """
    if lengths is not None and not isinstance(tokens, Tensor):
        raise InputError("lengths go with a tensor of tokens; token files and batches know their own")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
    budget = default_token_budget(model.device.type)
    if isinstance(tokens, Tensor):
        source: Iterable[Batch] = _split(tokens, lengths, budget)
    elif isinstance(tokens, TokenSource):
        length = min(max_length, model.cfg.n_ctx)
        source = batches(tokens, token_budget=max(budget, length), max_length=length, seed=seed)
    else:
        source = tokens
    kept: list[Batch] = []
    room = max_tokens
    for batch in source:
        if not isinstance(batch, Batch):
            raise InputError(
                f"tokens hold a {type(batch).__name__}: expected a tensor (sequences, positions) with its lengths, a "
                "TokenFile, or an iterable of interp.batching.Batch"
            )
        if room is not None:
            before = batch.lengths.cumsum(0) - batch.lengths
            batch = Batch(*(column[before < room] for column in batch))
            room -= int(batch.lengths.sum())
        kept.append(batch)
        if room is not None and room <= 0:
            break
    if not kept:
        raise InputError("there is no sequence to run: the token source is empty")
    return kept


def _split(tokens: Tensor, lengths: Tensor | None, budget: int) -> Iterator[Batch]:
    if tokens.ndim != 2:
        raise InputError(f"tokens of shape {tuple(tokens.shape)}: expected (sequences, positions)")
    b, t = tokens.shape
    lengths = torch.full((b,), t) if lengths is None else lengths.cpu()
    if lengths.shape != (b,) or not bool(((lengths > 0) & (lengths <= t)).all()):
        raise InputError(f"lengths={lengths.tolist()}: expected {b} numbers from 1 to {t} for tokens of {b} x {t}")
    rows = max(1, budget // max(1, t))
    for start in range(0, b, rows):
        part = slice(start, start + rows)
        longest = int(lengths[part].max())
        index = torch.arange(start, min(start + rows, b))
        yield Batch(tokens[part, :longest].cpu(), lengths[part], index, torch.zeros_like(index))


def compared(
    model: HookedModel,
    fed: Sequence[Batch],
    layers: Sequence[int] | None = None,
    *,
    label: str = "queries and keys",
    show: bool | None = False,
) -> Iterator[Compared]:
    """Every sequence of `fed` in every one of `layers` (default: all that are loaded)."""
    chosen = _layers(model, layers)
    spec = model.cfg
    if not spec.rotary and model.anatomy.q_norm is not None:
        raise InputError(
            f"{spec.family} normalises its queries and keys and does not turn them: no site holds what it compares"
        )
    kinds = (Point.ROT_Q, Point.ROT_K) if spec.rotary else (Point.Q, Point.K)
    largest = max(batch.tokens.numel() for batch in fed)
    # Twice: a rotary embedding is applied after the pass, beside what was captured.
    held = 2 * largest * (spec.n_heads + spec.n_kv_heads) * spec.d_head * spec.dtype.itemsize
    size = max(1, HELD // held)
    groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    total = sum(int(batch.lengths.sum()) for batch in fed) * len(groups)
    with bar(total, label, show=show) as progress:
        for group in groups:
            sites = [Site(kind, layer) for layer in group for kind in kinds]
            for batch in fed:
                with torch.no_grad():
                    found = model.capture(batch.tokens, sites, lengths=batch.lengths)
                for layer in group:
                    q, k = (found[Site(kind, layer)] for kind in kinds)
                    for row, length in enumerate(batch.lengths.tolist()):
                        yield Compared(layer, q[row, :length], k[row, :length])
                progress.update(int(batch.lengths.sum()))


def _layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    chosen = list(range(model.loaded_layers) if layers is None else layers)
    if outside := [layer for layer in chosen if not 0 <= layer < model.loaded_layers]:
        raise InputError(f"layers {outside}: the model has {model.loaded_layers} loaded, counted from 0")
    if not chosen:
        raise InputError("no layer was asked for; layers=None takes all that are loaded")
    return chosen
