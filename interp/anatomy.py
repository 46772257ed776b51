"""Per model: which module, input or output each `Site` is, as paths, and the numbers that describe the architecture.

`ModelSpec` holds the numbers, `Anatomy` the paths. `interp.families.anatomy_of` reads both from a Hugging Face model of
a family it knows; for another model (one of our own) write an `Anatomy` by hand and give it to `HookedModel.wrap`.

What the names mean (TransformerLens's meanings; TransformerBridge with unfolded weights decides where its two
implementations could differ):

- `embed`: the token embedding, scaled where the family scales it (Gemma), without position embeddings (GPT-2).
- `q`, `k`, `v`: what the projections give, with bias, *before* Qwen 3's and Gemma 3's per-head norms; `rot_q`,
  `rot_k`: after those norms and after RoPE. GPT-2 has no RoPE and so no `rot_*`.
- `attn_scores`: scaled, soft-capped, `-inf` where a position may not look; `pattern`: its softmax over `s`.
- `attn_out`, `mlp_out`: what is added to the stream, so after the post-norms of Gemma 2 and 3.
- `mlp_pre`: before the activation (of a gated MLP: the gate); `mlp_pre_linear`: the ungated half, only in gated MLPs;
  `mlp_post`: what the last matrix reads.
- `ln1`, `ln2`, `ln_final`: normalised *before* gain and bias, in the dtype of the stream (TransformerLens keeps
  float32 here).
- With a parallel residual (GPT-NeoX) attention and MLP both read resid_pre, so `resid_mid` does not exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from torch import nn

from interp.errors import InputError
from interp.sharded import check_plan
from interp.sites import Point, Site


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The numbers of an architecture. `n_layers` is that of the whole model, also where fewer layers are loaded."""

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    dtype: torch.dtype = torch.float32
    norm: Literal["rms", "rms_offset", "layer"] = "rms"
    """Gain of the norms: `w` · x̂, (1 + `w`) · x̂ (Gemma), or `w` · x̂ + `b` of a centred x̂ (LayerNorm)."""
    norm_eps: float = 1e-5
    gated: bool = True
    parallel: bool = False
    rotary: bool = True
    attn_scales: tuple[float, ...] = ()
    """Per layer, what q · k is multiplied by; empty: 1/√d_head everywhere."""
    attn_cap: float | None = None
    final_cap: float | None = None
    windows: tuple[int | None, ...] = ()
    """Per layer, how many positions a query sees, itself included (`None`: all); empty: all everywhere."""

    def scale(self, layer: int) -> float:
        """What q · k is multiplied by in `layer`."""
        return self.attn_scales[layer] if self.attn_scales else self.d_head**-0.5

    def window(self, layer: int) -> int | None:
        """How many positions a query of `layer` sees, itself included; `None`: all."""
        return self.windows[layer] if self.windows else None


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Dotted paths of one architecture.

    `embed`, `layers` and `norm` start at `base`, `base` and `head` at the model, all others at a layer. The sites q, k,
    v, mlp_pre, mlp_pre_linear, attn_out and mlp_out are the output of the module so named; z is the input of `o`,
    mlp_post that of `mlp_post`.
    """

    spec: ModelSpec
    base: str = "model"
    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"
    ln1: str = "input_layernorm"
    attn: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    fused: Literal["none", "blocks", "interleaved"] = "none"
    """Whether q, k, v are one projection: all q, all k, all v (GPT-2), or q k v of each head in turn (GPT-NeoX)."""
    q_norm: str | None = None
    k_norm: str | None = None
    o: str = "self_attn.o_proj"
    attn_out: str = "self_attn.o_proj"
    ln2: str = "post_attention_layernorm"
    mlp_pre: str = "mlp.gate_proj"
    mlp_pre_linear: str | None = "mlp.up_proj"
    mlp_post: str = "mlp.down_proj"
    mlp_out: str = "mlp.down_proj"
    in_place: bool = True
    """Whether the model may change, in place, tensors that are sites; captures then copy. The known families do not."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every plain forward pass, such as `use_cache=False`."""

    def body(self, hf: nn.Module) -> nn.Module:
        """The model without its head: `hf` itself if it was built without one."""
        return module_at(hf, self.base) if self.base and hasattr(hf, self.base.split(".")[0]) else hf

    def blocks(self, hf: nn.Module) -> nn.ModuleList:
        """The layers that are loaded."""
        blocks = module_at(self.body(hf), self.layers)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def at(self, hf: nn.Module, layer: int, path: str) -> nn.Module:
        """The module at `path` below `layer`."""
        return module_at(self.blocks(hf)[layer], path)

    def ln_final(self, hf: nn.Module) -> nn.Module:
        """The norm in front of the unembedding."""
        return module_at(self.body(hf), self.norm)

    def unembed(self, hf: nn.Module) -> nn.Module | None:
        """The unembedding, a linear map `d -> v`; `None` where the model was loaded without it."""
        return module_at(hf, self.head) if self.has_head(hf) else None

    def has_head(self, hf: nn.Module) -> bool:
        """Whether the model gives logits."""
        return hasattr(hf, self.head.split(".")[0])

    def validate(self, hf: nn.Module) -> None:
        """Refuse a model that lacks a module named here, or whose hooks would not run."""
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in hf.modules()):
            raise InputError(
                f"{type(hf).__name__} was compiled by torch.compile, which runs past hooks: wrap the model as it was "
                f"before (`compiled._orig_mod`, or one that .compile() was not called on)"
            )
        check_plan(hf)
        below = [self.ln1, self.attn, self.q, self.k, self.v, self.q_norm, self.k_norm, self.o, self.attn_out, self.ln2]
        below += [self.mlp_pre, self.mlp_pre_linear, self.mlp_post, self.mlp_out]
        try:
            for path in (self.embed, self.norm):
                module_at(self.body(hf), path)
            if not isinstance(module_at(self.body(hf), self.layers), nn.ModuleList):
                raise AttributeError(f"{self.layers} is no ModuleList")
            for path in below if len(self.blocks(hf)) else []:  # `upto=embed` loads no layer
                self.at(hf, 0, path or "")
        except AttributeError as error:
            raise InputError(
                f"{type(hf).__name__} is not built as its anatomy says: {error}. Expected the modules of "
                f"{self.spec.family}; merge adapters into the model before wrapping it, or correct the anatomy"
            ) from error

    def missing(self, point: Point) -> str | None:
        """Why this architecture has no such point, or `None` if it has."""
        spec = self.spec
        if point is Point.RESID_MID and spec.parallel:
            return "attention and MLP both read resid_pre (parallel residual); use resid_pre, attn_out or mlp_out"
        if point in (Point.ROT_Q, Point.ROT_K) and not spec.rotary:
            return "it has no rotary embedding; use q and k"
        if point is Point.MLP_PRE_LINEAR and self.mlp_pre_linear is None:
            return "its MLP is not gated; use mlp_pre"
        return None

    def points(self) -> list[Point]:
        """The points this architecture has, in execution order."""
        return [point for point in Point if self.missing(point) is None]

    def check(self, hf: nn.Module, site: Site) -> None:
        """Refuse a site that the loaded model does not have, saying what it has."""
        spec, loaded = self.spec, len(self.blocks(hf))
        if reason := self.missing(site.point):
            raise InputError(f"{spec.family} has no {site}: {reason}")
        # The stream that enters the first layer left out is the output of the last one loaded.
        reach = loaded + 1 if site.point is Point.RESID_PRE and loaded < spec.n_layers else loaded
        if site.layer is not None and site.layer >= spec.n_layers:
            raise InputError(f"{site}: the model has {spec.n_layers} layers, 0 to {spec.n_layers - 1}")
        if loaded < spec.n_layers and (site.layer is None or site.layer >= reach) and site.point is not Point.EMBED:
            held = f"layers 0 to {loaded - 1}" if loaded else "none"
            raise InputError(
                f"{site} is not loaded: this model was loaded with {held} of {spec.n_layers} layers "
                f"(upto=resid_pre.{loaded}); load it again with a later `upto`, or without"
            )
        heads = spec.n_kv_heads if site.point in (Point.K, Point.V, Point.ROT_K) else spec.n_heads
        if site.head is not None and site.head >= heads:
            raise InputError(f"{site}: {site.point.short} has {heads} heads, 0 to {heads - 1}")


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path below `root`."""
    return reduce(getattr, path.split("."), root) if path else root
