"""The operating interaction of a head: B = scale · q k^T of one input, split into routing and filtering, in 3 gauges.

q and k (n x e, one row a position) are what attention compares: after biases, per-head norms and RoPE, so B is exact
for every family, those whose kernel is not bilinear included. Its parts have rank 2e at most and come from one 2e x 2e
core, never from n x n (unless n <= 2e, where B is its own core).

A number added to all logits of a query changes no attention but changes both parts: a pure sink 1 v^T (v centred)
routes exactly half its energy, at rank 2. Hence the gauges:

    raw              q k^T
    key_centred      q (k - mean k)^T                 each row's mean taken out; softmax unchanged (no soft-cap)
    double_centred   (q - mean q) (k - mean k)^T      column means too: what is left is no longer the same attention

The mean is over the sequence and so sees later positions; under the softmax of a causal model it is still one number
per row. B is the full square: a causal model never uses B_ij for j > i, and completing that triangle otherwise would
change the split and not the model, so these are statements about the bilinear form. Soft-caps act on B afterwards.

Sources: Jamil and Kapadia 2026 (arXiv 2605.18826) for comparing what operates with what the weights allocate (their
formulas are not known to us); Lee 2026 (arXiv 2605.02907) for row-centred logits.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention.bilinear import Bilinear, Spectrum
from interp.attention.passes import Tokens, batches_of, compared
from interp.attention.ranks import Ranks
from interp.attention.threads import one_thread
from interp.errors import InputError
from interp.model import HookedModel

Gauge = Literal["raw", "key_centred", "double_centred"]
GAUGES: tuple[Gauge, ...] = get_args(Gauge)
SPREAD = ("routing_fraction", "routing_erank1", "routing_r90", "filtering_erank1", "filtering_r90")
"""The measures whose standard deviation over sequences is given as well."""


def operating(
    q: Float[Tensor, "*b t h e"],
    k: Float[Tensor, "*b t g e"],
    *,
    scale: float = 1.0,
    gauge: Gauge = "raw",
    skip_first: bool = False,
) -> Bilinear:
    """B of one sequence (or several of one length) for every head: factors `*b h t e`, float64, scale in the left.

    Query head i reads the keys of group i // (h // g). `skip_first` leaves position 0 out, before any mean is taken.
    """
    if gauge not in GAUGES:
        raise InputError(f"gauge must be one of {', '.join(GAUGES)}, got {gauge!r}")
    heads, groups = q.shape[-2], k.shape[-2]
    if heads % groups:
        raise InputError(f"{heads} query heads cannot share {groups} groups of keys: expected a divisor of {heads}")
    if q.shape[-3] < 1 + skip_first:
        raise InputError(f"a sequence of {q.shape[-3]} positions has none left without its first")
    q, k = (x.double()[..., int(skip_first) :, :, :] for x in (q, k))
    if gauge != "raw":
        k = k - k.mean(-3, keepdim=True)
    if gauge == "double_centred":
        q = q - q.mean(-3, keepdim=True)
    k = k.repeat_interleave(heads // groups, dim=-2)
    return Bilinear((scale * q).transpose(-3, -2), k.transpose(-3, -2))


def split_columns(routing: Spectrum, filtering: Spectrum) -> dict[str, Tensor]:
    """routing_fraction (of a zero head: NaN) and every rank measure of both parts, per head."""
    columns = {"routing_fraction": routing.energy / (routing.energy + filtering.energy)}
    for part, spectrum in (("routing", routing), ("filtering", filtering)):
        columns |= {f"{part}_{name}": rank for name, rank in spectrum.ranks()._asdict().items()}
    return columns


def operating_rows(
    model: HookedModel,
    tokens: Tokens,
    *,
    lengths: Int[Tensor, " b"] | None = None,
    layers: Sequence[int] | None = None,
    gauges: Sequence[Gauge] = GAUGES,
    skip_first: bool = False,
    max_tokens: int | None = None,
    max_length: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per head: `op_<gauge>_routing_fraction`, `op_<gauge>_routing_<rank>`, `op_<gauge>_filtering_<rank>`.

    Means over sequences, each counted once, those of fewer than two positions left out; `_std` (of `SPREAD`): between
    sequences, NaN for one. `op_<gauge>_rms` is the root mean square logit. `op_capacity`: the largest rank that routing
    of such sequences could have, 2e or the (even) number of positions. `op_skip_first` records whether position 0 was
    left out. It is massive in the residual stream of many models, but q and k are read from normalised rows: on
    SmolLM2-135M (512 tokens, 6 layers) leaving it out moves no median fraction by over 0.02, no r90 by over 2.
    """
    fed = batches_of(model, tokens, lengths=lengths, max_tokens=max_tokens, max_length=max_length, seed=seed)
    found: dict[int, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    shown = None if progress else False
    for layer, q, k in compared(model, fed, layers, label="operating interaction", show=shown):
        if len(q) < 2 + skip_first:
            continue
        columns, n, e = found[layer], len(q) - skip_first, q.shape[-1]
        with one_thread():
            for gauge in gauges:
                b = operating(q, k, scale=model.cfg.scale(layer), gauge=gauge, skip_first=skip_first)
                routing, filtering = b.routing(), b.filtering()
                rms = (routing.energy + filtering.energy).sqrt() / n
                for name, value in (split_columns(routing, filtering) | {"rms": rms}).items():
                    columns[f"op_{gauge}_{name}"].append(value)
        columns["op_capacity"].append(torch.full((q.shape[1],), min(n, 2 * e) // 2 * 2.0))
        columns["op_positions"].append(torch.full((q.shape[1],), float(n)))
    if not found:
        raise InputError("every sequence has fewer than two positions to compare: give longer ones")
    return [row for layer in sorted(found) for row in _rows(layer, found[layer], skip_first, model.cfg.n_kv_heads)]


def _rows(layer: int, columns: Mapping[str, list[Tensor]], skip_first: bool, groups: int) -> list[dict[str, Any]]:
    stacked = {name: torch.stack(values).double() for name, values in columns.items()}
    sequences, heads = next(iter(stacked.values())).shape
    figures: dict[str, list[float]] = {}
    for name, values in stacked.items():
        figures[name] = values.nanmean(0).tolist()
        if name.endswith(SPREAD):
            spread = values.std(0) if sequences > 1 else torch.full((heads,), torch.nan)
            figures[f"{name}_std"] = spread.tolist()
    facts = {"op_sequences": sequences, "op_skip_first": skip_first}
    return [
        {"layer": layer, "head": h, "group": h // (heads // groups), **facts}
        | {name: figures[name][h] for name in figures}
        for h in range(heads)
    ]


def against_kernel(rows: Sequence[Mapping[str, Any]], kernel_rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with `op_<gauge>_routing_<rank>_of_kernel`: the rank at which routing operates over the kernel's own."""
    kernels = {(row["layer"], row["head"]): row for row in kernel_rows}
    if absent := [(row["layer"], row["head"]) for row in rows if (row["layer"], row["head"]) not in kernels]:
        raise InputError(f"the kernel's rows lack (layer, head) {absent[:3]}: both must come from the same model")
    joined = []
    for row in rows:
        weights, more = kernels[row["layer"], row["head"]], {}
        for gauge, rank in itertools.product(GAUGES, Ranks._fields):
            name = f"op_{gauge}_routing_{rank}"
            if name in row:
                allocated = weights[f"routing_{rank}"]
                more[f"{name}_of_kernel"] = row[name] / allocated if allocated else float("nan")
        joined.append({**row, **more})
    return joined
