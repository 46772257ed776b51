"""The forward pass itself: a loop over layers, each site kept under its name as it is computed."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

import interp.plain.blocks as blocks
from interp.errors import InputError
from interp.plain.settings import Settings, read_settings
from interp.plain.weights import Layer, Weights
from interp.sites import Point, Site


class PlainRun(NamedTuple):
    """Logits (None where not all layers ran, or the weights hold no final norm or no head) and sites."""

    logits: Float[Tensor, "b t v"] | None
    sites: dict[Site, Tensor]


class _Record:
    """Keeps the sites that are wanted, or all of them."""

    def __init__(self, wanted: Collection[Site] | None) -> None:
        self.kept: dict[Site, Tensor] = {}
        self._wanted = wanted

    def __call__(self, point: Point, layer: int | None, value: Tensor) -> None:
        site = Site(point, layer)
        if self._wanted is None or site in self._wanted:
            self.kept[site] = value


def plain_run(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokens: Int[Tensor, "b t"],
    *,
    sites: Collection[Site] | None = None,
    layers: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> PlainRun:
    """Run unpadded sequences through the first `layers` blocks (all by default); keep `sites` (all by default).

    `config` is the model's configuration as a dict, `weights` its state dict; sites must not name a head.
    """
    settings = read_settings(config)
    n_layers = settings.n_layers if layers is None else layers
    if not 0 <= n_layers <= settings.n_layers:
        raise InputError(f"layers must lie between 0 and the model's {settings.n_layers}, got {layers}")
    if headed := [str(site) for site in sites or () if site.head is not None]:
        raise InputError(
            f"plain_run keeps whole sites, got single heads: {', '.join(headed)}; pick the head afterwards"
        )
    keep = _Record(None if sites is None else set(sites))
    parameters = Weights(weights, settings, dtype=dtype)
    with torch.no_grad():
        x = _embed(parameters, settings, tokens, keep)
        for index in range(n_layers):
            x = _block(x, parameters.layer(index), settings, index, keep)
        tied = bool(config.get("tie_word_embeddings"))
        logits = _logits(x, parameters, settings, keep, tied=tied) if n_layers == settings.n_layers else None
    return PlainRun(logits, keep.kept)


def _embed(parameters: Weights, settings: Settings, tokens: Tensor, keep: _Record) -> Tensor:
    table = parameters.embed()
    embedded = table[tokens.to(table.device)] * settings.embed_scale
    keep(Point.EMBED, None, embedded)
    positions = parameters.position_embed()
    return embedded if positions is None else embedded + positions[: tokens.shape[1]]


def _block(x: Tensor, layer: Layer, settings: Settings, index: int, keep: _Record) -> Tensor:
    keep(Point.RESID_PRE, index, x)
    attn_out = _attention(x, layer, settings, index, keep)
    keep(Point.ATTN_OUT, index, attn_out)
    mid = x + attn_out
    if not settings.parallel:
        keep(Point.RESID_MID, index, mid)
    mlp_out = _mlp(x if settings.parallel else mid, layer, settings, index, keep)
    keep(Point.MLP_OUT, index, mlp_out)
    post = mid + mlp_out
    keep(Point.RESID_POST, index, post)
    return post


def _attention(x: Tensor, layer: Layer, s: Settings, index: int, keep: _Record) -> Tensor:
    normalized = blocks.normalized(x, s.norm, s.eps)
    keep(Point.LN1, index, normalized)
    read = blocks.gained(normalized, s.norm, layer.ln1.gain, layer.ln1.bias)
    q = _project(read, layer.q, layer.b_q)
    k = _project(read, layer.k, layer.b_k)
    v = _project(read, layer.v, layer.b_v)
    for point, value in ((Point.Q, q), (Point.K, k), (Point.V, v)):
        keep(point, index, value)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = blocks.gained(blocks.normalized(q, s.norm, s.eps), s.norm, layer.q_norm.gain, None)
        k = blocks.gained(blocks.normalized(k, s.norm, s.eps), s.norm, layer.k_norm.gain, None)
    if (rope := s.ropes[index]) is not None:
        q, k = blocks.rotate(q, rope), blocks.rotate(k, rope)
        keep(Point.ROT_Q, index, q)
        keep(Point.ROT_K, index, k)
    scores = blocks.attention_scores(q, k, scale=s.score_scales[index], cap=s.attn_cap, window=s.windows[index])
    keep(Point.ATTN_SCORES, index, scores)
    pattern = torch.softmax(scores, dim=-1)
    keep(Point.PATTERN, index, pattern)
    z = blocks.mix(pattern, v)
    keep(Point.Z, index, z)
    out = torch.einsum("bthe,hed->btd", z, layer.o)
    out = out if layer.b_o is None else out + layer.b_o
    if layer.post1 is None:
        return out
    return blocks.gained(blocks.normalized(out, s.norm, s.eps), s.norm, layer.post1.gain, None)


def _project(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.einsum("btd,hed->bthe", x, w)
    return y if bias is None else y + bias


def _mlp(x: Tensor, layer: Layer, s: Settings, index: int, keep: _Record) -> Tensor:
    normalized = blocks.normalized(x, s.norm, s.eps)
    keep(Point.LN2, index, normalized)
    read = blocks.gained(normalized, s.norm, layer.ln2.gain, layer.ln2.bias)
    up = torch.einsum("btd,md->btm", read, layer.up)
    up = up if layer.b_up is None else up + layer.b_up
    if layer.gate is None:
        keep(Point.MLP_PRE, index, up)
        post = blocks.activation(up, s.act)
    else:
        gate = torch.einsum("btd,md->btm", read, layer.gate)
        gate = gate if layer.b_gate is None else gate + layer.b_gate
        keep(Point.MLP_PRE, index, gate)
        keep(Point.MLP_PRE_LINEAR, index, up)
        post = blocks.activation(gate, s.act) * up
    keep(Point.MLP_POST, index, post)
    out = torch.einsum("btm,md->btd", post, layer.down)
    out = out if layer.b_down is None else out + layer.b_down
    if layer.post2 is None:
        return out
    return blocks.gained(blocks.normalized(out, s.norm, s.eps), s.norm, layer.post2.gain, None)


def _logits(x: Tensor, parameters: Weights, s: Settings, keep: _Record, *, tied: bool) -> Tensor | None:
    normalized = blocks.normalized(x, s.norm, s.eps)
    final = parameters.ln_final()
    if final is None:
        return None
    keep(Point.LN_FINAL, None, normalized)
    read = blocks.gained(normalized, s.norm, final.gain, final.bias)
    head = parameters.unembed(tied=tied)
    return None if head is None else blocks.soft_cap(torch.einsum("btd,vd->btv", read, head), s.final_cap)
