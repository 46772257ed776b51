"""What heads do, scored from attention patterns on random tokens that repeat: four well known behaviours.

With A[t, s] the attention that position t pays to s, and means over the positions t that qualify:

    previous_token    A[t, t - 1]                                            t >= 2
    sink_share        A[t, 0]                                                t >= 2
    duplicate_token   Σ A[t, s] over s < t with token[s] = token[t]          t with such an s
    induction         Σ A[t, s] over 0 < s < t with token[s - 1] = token[t]  t with such an s

Position 1 is left out of the first two, for there the previous position and the sink are one. A score is a share of
attention, in [0, 1]; a head spread evenly over t positions scores about 1 / t. Random tokens, so that nothing but
position and repetition can be attended to.

Sources: Elhage et al. 2021; Olsson et al. 2022 (arXiv 2209.11895), prefix matching on repeated random tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.chat import adds_bos
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import bar
from interp.sites import Point, Site

_HELD = 2**28  # bytes of patterns of one pass


class Behaviour(NamedTuple):
    """Scores per sequence and head; NaN where no position of the sequence qualifies."""

    previous_token: Float[Tensor, "b h"]
    duplicate_token: Float[Tensor, "b h"]
    induction: Float[Tensor, "b h"]
    sink_share: Float[Tensor, "b h"]


def behaviour(pattern: Float[Tensor, "b h t s"], tokens: Int[Tensor, "b n"]) -> Behaviour:
    """The four scores of attention patterns over unpadded sequences; sums in float64."""
    if tuple(pattern.shape[-2:]) != (tokens.shape[1],) * 2 or len(pattern) != len(tokens):
        raise InputError(
            f"a pattern of shape {tuple(pattern.shape)} does not belong to tokens of shape {tuple(tokens.shape)}: "
            "expected sequences x heads x positions x positions, without padding"
        )
    tokens = tokens.to(pattern.device)
    t = tokens.shape[1]
    earlier = torch.ones(t, t, dtype=torch.bool, device=pattern.device).tril(-1)
    same = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after = torch.zeros_like(same)
    after[:, :, 1:] = (tokens[:, :, None] == tokens[:, None, :-1]) & earlier[:, 1:]
    late = torch.arange(t, device=pattern.device)[:, None] >= 2
    index = torch.arange(t, device=pattern.device)
    previous = (index[:, None] == index[None] + 1) & late
    sink = (index[None] == 0) & late
    return Behaviour(
        _share(pattern, previous.expand_as(same)),
        _share(pattern, same),
        _share(pattern, after),
        _share(pattern, sink.expand_as(same)),
    )


def _share(pattern: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the queries with a wanted source of the attention paid to wanted sources."""
    paid = torch.einsum("bhts,bts->bh", pattern.double(), wanted.double())
    return paid / wanted.any(-1).sum(-1)[:, None]


def repeated_tokens(
    model: HookedModel, *, sequences: int = 8, length: int = 64, repeats: int = 2, seed: int = 0
) -> Int[Tensor, "b t"]:
    """`sequences` times `length` distinct random tokens, said `repeats` times, behind a BOS where the model has one.

    Special tokens are not drawn. The same seed and vocabulary give the same tokens.
    """
    if min(sequences, length) < 1 or repeats < 2:
        raise InputError(
            f"expected at least one sequence, one token and two repeats, got sequences={sequences}, length={length}, "
            f"repeats={repeats}"
        )
    allowed, bos = _vocabulary(model)
    t = length * repeats + (bos is not None)
    if length > len(allowed) or t > model.cfg.n_ctx:
        raise InputError(
            f"length={length} and repeats={repeats} make {t} positions of {length} distinct tokens; the model has "
            f"{model.cfg.n_ctx} positions and {len(allowed)} tokens that are not special. Give a smaller length"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([allowed[torch.randperm(len(allowed), generator=generator)[:length]] for _ in range(sequences)])
    rows = drawn.repeat(1, repeats)
    return rows if bos is None else torch.cat([torch.full((sequences, 1), bos), rows], 1)


def _vocabulary(model: HookedModel) -> tuple[Int[Tensor, " v"], int | None]:
    """Ordinary token ids, and the BOS if sequences of this model begin with one."""
    config, tokenizer = getattr(model.hf, "config", None), model.tokenizer
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    bos, size = None, model.cfg.d_vocab
    if tokenizer is not None:
        special |= {*tokenizer.all_special_ids}
        size = min(size, len(tokenizer))  # rows beyond are padding of the embedding
        prepends = model.preset.prepend_bos if model.preset else adds_bos(tokenizer)
        bos = tokenizer.bos_token_id if prepends else None
    flat = {i for entry in special for i in (entry if isinstance(entry, list | tuple) else [entry])}
    return torch.tensor([i for i in range(size) if i not in flat]), bos


def behaviour_rows(
    model: HookedModel,
    *,
    tokens: Int[Tensor, "b t"] | None = None,
    sequences: int = 8,
    length: int = 64,
    repeats: int = 2,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per head: layer, head and the four scores, means over sequences (of `repeated_tokens`, or `tokens`).

    A sliding window shorter than `length` hides what induction and duplicate-token heads look for.
    """
    if tokens is None:
        tokens = repeated_tokens(model, sequences=sequences, length=length, repeats=repeats, seed=seed)
    chosen = list(range(model.loaded_layers) if layers is None else layers)
    if not chosen:
        raise InputError("no layer was asked for; layers=None takes all that are loaded")
    scores: dict[int, list[Behaviour]] = {layer: [] for layer in chosen}
    with bar(len(chosen) * len(tokens), "head behaviour", unit="seq", show=None if progress else False) as shown:
        for batch, group in _pieces(model, tokens, chosen):
            with torch.no_grad():
                found = model.capture(batch, [Site(Point.PATTERN, layer) for layer in group])
            for layer in group:
                scores[layer].append(behaviour(found[Site(Point.PATTERN, layer)], batch))
            shown.update(len(batch) * len(group))
    rows = []
    for layer in chosen:
        columns = [torch.cat(parts).nanmean(0).tolist() for parts in zip(*scores[layer], strict=True)]
        for head, values in enumerate(zip(*columns, strict=True)):
            rows.append({"layer": layer, "head": head} | dict(zip(Behaviour._fields, values, strict=True)))
    return rows


def _pieces(model: HookedModel, tokens: Tensor, layers: list[int]) -> Iterator[tuple[Tensor, list[int]]]:
    """Parts of the batch, all layers each if their patterns fit `_HELD`, else one sequence and some layers."""
    each = 2 * model.cfg.n_heads * tokens.shape[1] ** 2 * model.dtype.itemsize  # twice: scores beside the pattern
    rows, size = max(1, _HELD // (each * len(layers))), max(1, _HELD // each)
    for start in range(0, len(tokens), rows):
        for first in range(0, len(layers), size):
            yield tokens[start : start + rows], layers[first : first + size]
