"""Runs a model with a `Surgery`: the chosen heads attend by α S + β A, all else stays bit for bit as it is.

    with operated(model, Surgery([(3, 0)], beta=0)):
        logits = model(tokens)

The model's own attention runs as ever. What the chosen heads put out (z, the input of the output projection) is then
replaced by what the widened q' and k' of `interp.attention.surgery` give, through fused attention:

    z_i = Σ_j softmax_j(q'_i · k'_j) v_j          over the j that the layer's causal mask and window allow

(written out, not fused, where scores are soft-capped). q, k, v are those of the pass, after edits: `edited` and
`capture` work inside, gradients flow, nothing is registered with transformers or changed in the configuration.
Captured `attn_scores` and `pattern` are computed from q and k, and so remain those of the attention without surgery.

Nested blocks add up; of two for the same head the inner one counts. A key-value cache is refused: it would have to
keep the queries of earlier tokens as well.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.anatomy import ModelSpec, module_at
from interp.attention.heads import kernel
from interp.attention.surgery import Basis, Part, Surgery, factor_basis, gram_basis
from interp.attention_scores import rotate
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Point, Site
from interp.switchboard import Call, Turn
from interp.taps import Tap, tap_of

_CACHES = ("past_key_values", "layer_past", "past_key_value")


@torch.no_grad()
def kernel_bases(model: HookedModel, layers: list[int] | None = None) -> dict[int, Basis]:
    """Bases of the weight kernels (norm folded, biases in), by layer; for surgery at the kernel level."""
    chosen = range(model.loaded_layers) if layers is None else layers
    found = ((layer, kernel(model, layer, biases=True)) for layer in chosen)
    return {layer: factor_basis(one.left, one.right) for layer, one in found}


def position_bases(
    grams: Mapping[int, Float[Tensor, "h two_e two_e"]], key_means: Mapping[int, Float[Tensor, "h e"]] | None = None
) -> dict[int, Basis]:
    """Bases from Gram matrices of [s q ; k - key_mean], by layer; for surgery at the position level."""
    means = key_means or {}
    return {layer: gram_basis(gram, key_mean=means.get(layer)) for layer, gram in grams.items()}


@contextmanager
def operated(model: HookedModel, surgery: Surgery) -> Iterator[None]:
    """Every pass in this block runs with `surgery`; afterwards the model is as it was, also when the body raises."""
    layers = [_Layer(model, layer, heads, surgery) for layer, heads in _by_layer(model, surgery).items()]
    undo: list[Callable[[], Any]] = []
    try:
        for layer in layers:
            layer.attach(undo)
        yield
        if not any(layer.fired for layer in layers):
            raise InputError(
                "no pass in this `operated` block reached a layer of the surgery. Expected at least one; was another "
                "model run, or did every capture stop below?"
            )
    finally:
        for detach in undo:
            detach()


def _by_layer(model: HookedModel, surgery: Surgery) -> dict[int, list[int]]:
    spec, loaded = model.cfg, model.loaded_layers
    if surgery.heads == "all":
        return {layer: list(range(spec.n_heads)) for layer in range(loaded)}
    found: dict[int, list[int]] = {}
    for layer, head in surgery.heads:
        if layer >= loaded or head >= spec.n_heads:
            raise InputError(
                f"surgery on layer {layer}, head {head}: {model.name} has {loaded} layers loaded, 0 to {loaded - 1}, "
                f"of {spec.n_heads} query heads, 0 to {spec.n_heads - 1}"
            )
        found.setdefault(layer, []).append(head)
    return found


class _Layer:
    """The chosen heads of one layer, and what one pass has shown of them so far."""

    def __init__(self, model: HookedModel, layer: int, heads: list[int], surgery: Surgery) -> None:
        _refuse(model, surgery)
        self.model, self.layer, self.heads = model, layer, heads
        self.at_kernel = surgery.level == "kernel" and model.cfg.rotary
        basis = _basis(model, layer, surgery)
        self.parts = surgery.parts(model.cfg.d_head, basis, heads)
        mean = _key_mean(model.cfg, layer, surgery, basis)
        self.key_mean = None if mean is None else mean[heads]
        self.attn = model.anatomy.at(model.hf, layer, model.anatomy.attn)
        self.seen: dict[Point, Tensor] = {}
        self.context: dict[str, Any] = {}
        self.fired = 0

    def attach(self, undo: list[Callable[[], Any]]) -> None:
        """Put the handlers in place, and what takes each off again into `undo`."""
        board = self.model.board
        undo.append(self.attn.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for point in (Point.Q, Point.K, Point.V):
            tap = self._tap(point)
            undo.append(board.attach(tap.module, tap.side, Turn.NOTE, self._note(point, tap)))
        tap = self._tap(Point.Z)
        undo.append(board.attach(tap.module, tap.side, Turn.REPLACE, self._replace(tap)))

    def _tap(self, point: Point) -> Tap:
        return tap_of(self.model.anatomy, self.model.hf, Site(point, self.layer))

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if any(kwargs.get(name) is not None for name in _CACHES):
            raise InputError(
                "surgery and a key-value cache do not go together: the cache keeps no queries, and the swapped half of "
                "the interaction needs those of earlier tokens. Generate with use_cache=False"
            )
        if module.training and _dropout(module):
            raise InputError("surgery leaves out attention dropout, which this model trains with: call hf.eval()")
        self.context = kwargs
        self.seen.clear()

    def _note(self, point: Point, tap: Tap) -> Callable[[Tensor, Call], None]:
        def handler(value: Tensor, call: Call) -> None:
            part = tap.read(value, call)
            self.seen[point] = part.clone() if self.model.anatomy.in_place else part

        return handler

    def _replace(self, tap: Tap) -> Callable[[Tensor, Call], Tensor]:
        def handler(value: Tensor, call: Call) -> Tensor:
            z = tap.read(value, call)
            heads = torch.tensor(self.heads, device=z.device)
            new = tap.write(value, call, z.index_copy(2, heads, self._attend(heads).to(z.dtype)))
            self.seen.clear()
            self.context = {}
            self.fired += 1
            return new

        return handler

    def _attend(self, heads: Tensor) -> Float[Tensor, "b t h e"]:
        """What the chosen heads mix from their groups' values."""
        spec = self.model.cfg
        groups = heads // (spec.n_heads // spec.n_kv_heads)
        q, k = self._compared(Point.Q).index_select(2, heads), self._compared(Point.K).index_select(2, groups)
        v = self.seen[Point.V].index_select(2, groups).transpose(1, 2)
        q = q * spec.scale(self.layer)
        if self.key_mean is not None:
            k = k - self.key_mean.to(k)
        q, k = (x.transpose(1, 2) for x in self._widened(torch.cat([q, k], -1)))
        mask = _mask(self.context.get("attention_mask"), spec.window(self.layer), q)
        if spec.attn_cap is not None:
            return _written_out(q, k, v, mask, spec.attn_cap).transpose(1, 2)
        # Values as wide as keys: fused attention asks for it on CPUs (64 for 128: 3 times as fast, 1,024 positions).
        wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        out = F.scaled_dot_product_attention(q, k, wide, attn_mask=mask, is_causal=mask is None, scale=1.0)
        return out[..., : v.shape[-1]].transpose(1, 2)

    def _compared(self, point: Point) -> Tensor:
        """q or k at the level of the surgery: after per-head norms; rotated, but for the kernel level."""
        anatomy, x = self.model.anatomy, self.seen[point]
        norm = anatomy.q_norm if point is Point.Q else anatomy.k_norm
        if norm is not None:
            x = module_at(anatomy.blocks(self.model.hf)[self.layer], norm)(x)
        return rotate(x, *self.context["position_embeddings"]) if anatomy.spec.rotary and not self.at_kernel else x

    def _widened(self, z: Float[Tensor, "b t h two_e"]) -> tuple[Tensor, Tensor]:
        """q' and k'."""
        queries, keys = [], []
        for part in self.parts:
            q, k = _projected(z, part).chunk(2, -1)
            q_back, k_back = q, k
            if self.at_kernel:
                cos, sin = self.context["position_embeddings"]
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
                q_back, k_back = rotate(q_back, cos, -sin), rotate(k_back, cos, -sin)
            queries += [part.straight * q, part.swapped * k_back]
            keys += [k, q_back]
        return torch.cat(queries, -1), torch.cat(keys, -1)


def _projected(z: Tensor, part: Part) -> Tensor:
    if part.projector is None:
        return z
    wide = z if z.dtype == torch.float64 else z.float()
    return torch.einsum("hxy,bthy->bthx", part.projector.to(wide), wide).to(z.dtype)


def _mask(given: Any, window: int | None, q: Float[Tensor, "b h t w"]) -> Tensor | None:
    """The mask the layer was called with, or one of its window; `None`: causal and nothing else."""
    if isinstance(given, Tensor):
        if given.ndim != 4:
            raise InputError(
                f"attention mask of shape {tuple(given.shape)}: surgery takes (b, 1, t, s), as sdpa and eager "
                "attention do. Run right-padded without a mask, as HookedModel does"
            )
        return given
    t = q.shape[2]
    if window is None or t <= window:
        return None
    back = torch.arange(t, device=q.device)[:, None] - torch.arange(t, device=q.device)
    return (back >= 0) & (back < window)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float) -> Float[Tensor, "b h t e"]:
    scores = torch.tanh(q @ k.mT / cap) * cap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _refuse(model: HookedModel, surgery: Surgery) -> None:
    spec = model.cfg
    if surgery.level == "kernel" and model.anatomy.q_norm is not None:
        raise InputError(
            f"{spec.family} normalises queries and keys per head, so its scores are no bilinear form of the stream and "
            "have no kernel to operate on; expected level='position'"
        )
    if surgery.key_means is not None and spec.attn_cap is not None:
        raise InputError(
            f"key_means under the soft-cap of {spec.family}: a number added to all scores of a query changes capped "
            "attention. Expected key_means=None"
        )


def _basis(model: HookedModel, layer: int, surgery: Surgery) -> Basis | None:
    if surgery.planes is None and surgery.modes is None:
        return None
    if surgery.bases is None:
        return kernel_bases(model, [layer])[layer] if surgery.level == "kernel" else None
    if layer not in surgery.bases:
        raise InputError(f"surgery on layer {layer}, but `bases` holds layers {sorted(surgery.bases)} only")
    basis, spec = surgery.bases[layer], model.cfg
    if basis.level != surgery.level:
        raise InputError(f"the bases are of the {basis.level} level and the surgery of the {surgery.level} level")
    if basis.modes.shape[0] != spec.n_heads or basis.modes.shape[-1] != 2 * spec.d_head:
        raise InputError(
            f"the basis of layer {layer} is of {basis.modes.shape[0]} heads and width {basis.modes.shape[-1] // 2}: "
            f"{model.name} has {spec.n_heads} query heads of width {spec.d_head}"
        )
    return basis


def _key_mean(spec: ModelSpec, layer: int, surgery: Surgery, basis: Basis | None) -> Tensor | None:
    """Of all heads of a layer, refused where the basis was made with others."""
    mean = None if surgery.key_means is None else surgery.key_means.get(layer)
    if surgery.key_means is not None and (mean is None or mean.shape != (spec.n_heads, spec.d_head)):
        have = "none" if mean is None else tuple(mean.shape)
        raise InputError(f"key_means of layer {layer}: {have}; expected ({spec.n_heads}, {spec.d_head})")
    held = mean if basis is None else basis.key_mean
    if held is not mean and (held is None or mean is None or not torch.equal(held, mean)):
        raise InputError(
            f"the basis of layer {layer} was made of other keys than the surgery's: give both the same key_means, or "
            "neither any"
        )
    return mean


def _dropout(attn: nn.Module) -> float:
    module = getattr(attn, "attn_dropout", None)
    return float(getattr(module, "p", 0.0) or getattr(attn, "attention_dropout", 0.0) or 0.0)
