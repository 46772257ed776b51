"""Direct logit attribution: how much each component adds to a token's logit, straight through the final norm.

    logit_v = W_U[v] · ( γ ⊙ C x / σ + β ) + b_U[v]        x = Σ_c x_c,   σ: the scale of the last stream, held fixed
    share of c:   W_U[v] · ( γ ⊙ C x_c / σ )               C: centring, of a LayerNorm only

Held fixed, the norm is linear, so the components sum to the logits exactly (before a soft-cap, which is no sum). The
components of the stream are

    embed                  the token embedding           positions             learned ones (GPT-2)
    attn.l[h]              z_h W_O of head h             attn_bias.l           the output projection's bias
    mlp.l, or mlp.l[i]     the MLP, or neuron i          mlp_bias.l            beside neurons: W_out's bias
    bias                   W_U β + b_U

Gemma 2 and 3 normalise what attention and MLP add: heads and neurons then pass through that norm too, its scale held
fixed as well. What a component does by way of later ones is not in its share; for that, patch (`interp.patching`).
Described as direct logit attribution by Elhage et al. 2021 and Wang et al. 2023.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import InputError
from interp.model import HookedModel
from interp.offload import here
from interp.sites import Point, Site


class Component(NamedTuple):
    """A part of the last stream; `str` gives its name, such as `attn.3[1]`."""

    kind: str
    layer: int | None = None
    part: int | None = None
    """The head or neuron."""

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        return f"{self.kind}{layer}" + ("" if self.part is None else f"[{self.part}]")


@dataclass(frozen=True)
class Attribution:
    """What each component adds to each target's logit, per row of the batch."""

    components: tuple[Component, ...]
    values: Float[Tensor, "b k n"]
    """By row, target and component, in the order of `components`."""
    targets: Int[Tensor, "b k"]
    logits: Float[Tensor, "b k"]
    """The model's own, before a soft-cap: what the components sum to."""

    def of(self, kind: str, layer: int | None = None) -> Float[Tensor, "b k n"]:
        """The values of one kind of component, in one layer or in all."""
        chosen = [i for i, c in enumerate(self.components) if c.kind == kind and (layer is None or c.layer == layer)]
        if not chosen:
            known = ", ".join(dict.fromkeys(c.kind for c in self.components))
            raise InputError(f"no component of kind {kind!r} in layer {layer}; there are {known}")
        return self.values[..., chosen]


class _Writer(NamedTuple):
    """A linear map from parts (heads, neurons) into the stream."""

    matrix: Float[Tensor, "d m"]
    bias: Float[Tensor, " d"] | None


@torch.no_grad()
def direct_logit_attribution(
    model: HookedModel,
    tokens: Int[Tensor, "b t"],
    targets: Int[Tensor, "b k"] | Int[Tensor, " k"] | None = None,
    *,
    lengths: Int[Tensor, " b"] | None = None,
    position: int | Int[Tensor, " b"] = -1,
    neurons: bool | Iterable[int] = False,
) -> Attribution:
    """Attribute the logits of `targets` (None: all tokens) at one position of each row.

    `position`: one for all rows (negative ones count back from each row's last real token), or one per row. `neurons`:
    split the MLPs of all layers, or of those listed.
    """
    model.require_head("attributions")
    layers = range(model.loaded_layers)
    split = set(layers if neurons is True else () if neurons is False else neurons)
    if odd := sorted(split - set(layers)):
        raise InputError(f"neurons of layers {odd}: the model has layers 0 to {len(layers) - 1}")
    at = _positions(tokens, lengths, position).to(model.device)
    found = _captured(model, tokens, lengths, at, split)
    reader = _Reader.of(model, found[Site(Point.RESID_POST, layers[-1])], targets)
    parts: list[tuple[list[Component], Tensor]] = _stem(model, found, reader)
    for layer in layers:
        parts += _attention(model, layer, found, reader)
        parts += _mlp(model, layer, found, reader, by_neuron=layer in split)
    parts.append(([Component("bias")], reader.constant[..., None]))
    components = tuple(c for names, _ in parts for c in names)
    return Attribution(components, torch.cat([v for _, v in parts], -1), reader.targets, reader.logits)


class _Reader(NamedTuple):
    """The final norm, linear for each row, and the targets' rows of the unembedding behind it."""

    weights: Float[Tensor, "b k d"]
    """W_U[target] γ C / σ: what a part of the stream is multiplied with."""
    constant: Float[Tensor, "b k"]
    targets: Int[Tensor, "b k"]
    logits: Float[Tensor, "b k"]

    @classmethod
    def of(cls, model: HookedModel, x: Tensor, targets: Tensor | None) -> "_Reader":
        head, norm = model.anatomy.unembed(model.hf), model.anatomy.ln_final(model.hf)
        assert head is not None
        W = here(head, "weight")
        assert W is not None
        targets = _targets(targets, len(x), len(W)).to(x.device)
        rows, bias = W[targets].float(), here(head, "bias")
        slope = _slope(model, norm, x)
        shift = here(norm, "bias")
        constant = torch.zeros(targets.shape, device=x.device) if shift is None else rows @ shift.float()
        constant = constant if bias is None else constant + bias[targets].float()
        weights = rows * slope[:, None]
        if model.cfg.norm == "layer":
            weights = weights - weights.mean(-1, keepdim=True)
        return cls(weights, constant, targets, torch.einsum("bkd,bd->bk", weights, x.float()) + constant)

    def read(self, parts: Float[Tensor, "b n d"]) -> Float[Tensor, "b k n"]:
        return torch.einsum("bkd,bnd->bkn", self.weights, parts.float())

    def through(self, values: Float[Tensor, "b n e"], matrix: Float[Tensor, "d n e"], slope: Tensor | None) -> Tensor:
        """The shares of parts whose values a matrix carries into the stream, past a post-norm's `slope` per row."""
        weights = self.weights if slope is None else self.weights * slope[:, None]
        return torch.einsum("bkd,dne,bne->bkn", weights, matrix.float(), values.float())


def _slope(model: HookedModel, norm: nn.Module, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """γ / σ of each row: what a norm multiplies its (centred) input with."""
    spec, wide, gain = model.cfg, x.float(), here(norm, "weight")
    if spec.norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + spec.norm_eps)
    if gain is None:
        return scale.expand_as(wide)
    return scale * (gain.float() + (spec.norm == "rms_offset"))


def _stem(model: HookedModel, found: dict[Site, Tensor], reader: _Reader) -> list[tuple[list[Component], Tensor]]:
    embedded, start = found[Site(Point.EMBED)], found[Site(Point.RESID_PRE, 0)]
    parts = [([Component("embed")], reader.read(embedded[:, None]))]
    if not model.cfg.rotary:
        parts.append(([Component("positions")], reader.read((start - embedded)[:, None])))
    return parts


def _attention(
    model: HookedModel, layer: int, found: dict[Site, Tensor], reader: _Reader
) -> list[tuple[list[Component], Tensor]]:
    writer = _writer(model, layer, model.anatomy.o)
    z = found[Site(Point.Z, layer)]
    slope = _post_slope(model, layer, model.anatomy.attn_out, writer, z.flatten(1))
    names = [Component("attn", layer, head) for head in range(z.shape[1])]
    parts = [(names, reader.through(z, writer.matrix.unflatten(1, z.shape[1:]), slope))]
    return parts + _bias(writer, "attn_bias", layer, slope, reader)


def _mlp(
    model: HookedModel, layer: int, found: dict[Site, Tensor], reader: _Reader, *, by_neuron: bool
) -> list[tuple[list[Component], Tensor]]:
    if not by_neuron:
        return [([Component("mlp", layer)], reader.read(found[Site(Point.MLP_OUT, layer)][:, None]))]
    writer, post = _writer(model, layer, model.anatomy.mlp_post), found[Site(Point.MLP_POST, layer)]
    slope = _post_slope(model, layer, model.anatomy.mlp_out, writer, post)
    weights = reader.weights if slope is None else reader.weights * slope[:, None]
    names = [Component("mlp", layer, neuron) for neuron in range(post.shape[1])]
    parts = [(names, (weights @ writer.matrix.float()) * post.float()[:, None])]
    return parts + _bias(writer, "mlp_bias", layer, slope, reader)


def _bias(
    writer: _Writer, kind: str, layer: int, slope: Tensor | None, reader: _Reader
) -> list[tuple[list[Component], Tensor]]:
    if writer.bias is None:
        return []
    rows = writer.bias.float().expand(len(reader.weights), -1)
    return [([Component(kind, layer)], reader.read((rows if slope is None else rows * slope)[:, None]))]


def _post_slope(model: HookedModel, layer: int, path: str, writer: _Writer, parts: Tensor) -> Tensor | None:
    """The slope of the norm between a block's output and the stream (Gemma 2 and 3); `None` where there is none."""
    norm = model.anatomy.at(model.hf, layer, path)
    gain = here(norm, "weight")
    if gain is None or gain.ndim != 1:  # a dropout, or the linear map itself
        return None
    out = parts.float() @ writer.matrix.float().T
    return _slope(model, norm, out if writer.bias is None else out + writer.bias.float())


def _writer(model: HookedModel, layer: int, path: str) -> _Writer:
    module = model.anatomy.at(model.hf, layer, path)
    weight, bias = here(module, "weight"), here(module, "bias")
    if weight is None or not weight.is_floating_point() or weight.dtype.itemsize < 2 or weight.ndim != 2:
        raise InputError(
            f"{path} of layer {layer} is a {type(module).__name__} without plain weights: its heads or neurons cannot "
            "be told apart; load the model without quantisation and merge its adapters"
        )
    return _Writer(weight.T if type(module).__name__ == "Conv1D" else weight, bias)  # GPT-2 keeps inputs first


def _captured(
    model: HookedModel, tokens: Tensor, lengths: Tensor | None, at: Int[Tensor, " b"], split: set[int]
) -> dict[Site, Tensor]:
    """What the components are made from, at the row's position."""
    layers = range(model.loaded_layers)
    sites = [Site(Point.EMBED), Site(Point.RESID_PRE, 0), Site(Point.RESID_POST, layers[-1])]
    for layer in layers:
        sites += [Site(Point.Z, layer), Site(Point.MLP_POST if layer in split else Point.MLP_OUT, layer)]
    rows = torch.arange(len(tokens), device=at.device)
    return {site: x[rows, at] for site, x in model.capture(tokens, sites, lengths=lengths).items()}


def _positions(tokens: Tensor, lengths: Tensor | None, position: int | Tensor) -> Int[Tensor, " b"]:
    b, t = tokens.shape
    ends = torch.full((b,), t) if lengths is None else lengths.cpu()
    at = torch.full((b,), position) if isinstance(position, int) else position.cpu()
    if at.shape != (b,):
        raise InputError(f"position of shape {tuple(at.shape)}: expected one number, or one for each of {b} rows")
    at = torch.where(at < 0, ends + at, at)
    if bool(((at < 0) | (at >= ends)).any()):
        raise InputError(f"positions {at.tolist()} do not lie within the rows' lengths, {ends.tolist()}")
    return at


def _targets(targets: Tensor | None, b: int, v: int) -> Int[Tensor, "b k"]:
    if targets is None:
        targets = torch.arange(v)
    if targets.ndim == 1:
        targets = targets.expand(b, -1)
    if targets.ndim != 2 or len(targets) != b or not bool(((targets >= 0) & (targets < v)).all()):
        raise InputError(
            f"targets of shape {tuple(targets.shape)}: expected token ids below {v}, the same for all rows (k) or "
            f"per row ({b} x k)"
        )
    return targets
