"""A model's parameters under one set of names and axes, read from a Hugging Face state dict one layer at a time.

Shapes: queries `h e d`, keys and values `g e d`, output `h e d` (o[h, e] is what dimension e of head h writes),
MLP matrices `m d`.
Parameters are converted to the wanted dtype layer by layer, so that a model of several GiB is never doubled.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.plain.settings import Settings


@dataclass(frozen=True)
class Gain:
    """A norm's gain and, for LayerNorm, its bias."""

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None = None


@dataclass(frozen=True)
class Layer:
    """The parameters of one block; None where the family (or this model) has no such parameter."""

    ln1: Gain
    ln2: Gain
    q: Float[Tensor, "h e d"]
    k: Float[Tensor, "g e d"]
    v: Float[Tensor, "g e d"]
    o: Float[Tensor, "h e d"]
    up: Float[Tensor, "m d"]
    down: Float[Tensor, "m d"]
    gate: Float[Tensor, "m d"] | None = None
    b_q: Float[Tensor, "h e"] | None = None
    b_k: Float[Tensor, "g e"] | None = None
    b_v: Float[Tensor, "g e"] | None = None
    b_o: Float[Tensor, " d"] | None = None
    b_up: Float[Tensor, " m"] | None = None
    b_down: Float[Tensor, " d"] | None = None
    b_gate: Float[Tensor, " m"] | None = None
    post1: Gain | None = None
    post2: Gain | None = None
    q_norm: Gain | None = None
    k_norm: Gain | None = None


_TRUNK = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}
_EMBED = {"gpt2": "wte", "gpt_neox": "embed_in"}
_BLOCKS = {"gpt2": "h"}
_LN_FINAL = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}
# GPT-NeoX's head was called embed_out before transformers 5.
_HEADS = ("lm_head.weight", "embed_out.weight")


class Weights:
    """A state dict read through a family's names, converted to `dtype` on the way out."""

    def __init__(self, state: Mapping[str, Tensor], settings: Settings, *, dtype: torch.dtype) -> None:
        self._state, self._settings, self._dtype = state, settings, dtype
        embed = _EMBED.get(settings.family, "embed_tokens") + ".weight"
        trunk = _TRUNK.get(settings.family, "model.")
        # A model without its head (LlamaModel and the like) has the same names without the trunk's prefix.
        self._trunk = trunk if trunk + embed in state else ""
        if self._trunk + embed not in state:
            some = ", ".join(list(state)[:3])
            raise InputError(
                f"the weights of a {settings.family} model should hold {trunk + embed!r}; they hold {some}, ... "
                "Expected the state dict of a Hugging Face model with unquantised modules and no adapters"
            )
        self._embed = self._trunk + embed

    def embed(self) -> Float[Tensor, "v d"]:
        return self._get(self._embed)

    def position_embed(self) -> Float[Tensor, "p d"] | None:
        """GPT-2's learned positions."""
        return self._get(f"{self._trunk}wpe.weight") if self._settings.family == "gpt2" else None

    def ln_final(self) -> Gain | None:
        """The final norm's gain; None for a model loaded without it."""
        return self._gain_if_any(self._trunk + _LN_FINAL.get(self._settings.family, "norm"))

    def unembed(self, *, tied: bool) -> Float[Tensor, "v d"] | None:
        """The head: its own matrix, or the embedding where the two are tied; None where there is neither."""
        if tied:
            return self.embed()
        return next((self._get(name) for name in _HEADS if name in self._state), None)

    def layer(self, index: int) -> Layer:
        """The parameters of block `index`."""
        scope = f"{self._trunk}{_BLOCKS.get(self._settings.family, 'layers')}.{index}."
        if self._settings.family == "gpt2":
            return self._gpt2(scope)
        return self._gpt_neox(scope) if self._settings.family == "gpt_neox" else self._llama_like(scope)

    def _llama_like(self, p: str) -> Layer:
        s = self._settings
        qkv = {name: self._matrix(f"{p}self_attn.{name}_proj") for name in "qkv"}
        o, b_o = self._matrix(f"{p}self_attn.o_proj")
        mlp = {name: self._matrix(f"{p}mlp.{name}_proj") for name in ("gate", "up", "down")}
        after = "post_attention_layernorm"
        return Layer(
            ln1=self._gain(p + "input_layernorm"),
            ln2=self._gain(p + ("pre_feedforward_layernorm" if s.post_norms else after)),
            post1=self._gain(p + after) if s.post_norms else None,
            post2=self._gain(p + "post_feedforward_layernorm") if s.post_norms else None,
            q=qkv["q"][0].reshape(s.h, s.e, s.d),
            k=qkv["k"][0].reshape(s.g, s.e, s.d),
            v=qkv["v"][0].reshape(s.g, s.e, s.d),
            b_q=_heads(qkv["q"][1], s.h),
            b_k=_heads(qkv["k"][1], s.g),
            b_v=_heads(qkv["v"][1], s.g),
            o=o.reshape(s.d, s.h, s.e).permute(1, 2, 0),
            b_o=b_o,
            gate=mlp["gate"][0],
            up=mlp["up"][0],
            down=mlp["down"][0].T,
            b_gate=mlp["gate"][1],
            b_up=mlp["up"][1],
            b_down=mlp["down"][1],
            q_norm=self._gain_if_any(p + "self_attn.q_norm"),
            k_norm=self._gain_if_any(p + "self_attn.k_norm"),
        )

    def _gpt2(self, p: str) -> Layer:
        """GPT-2 keeps matrices input-first, and queries, keys and values side by side."""
        s = self._settings
        qkv, b_qkv = self._matrix(p + "attn.c_attn")
        q, k, v = qkv.T.reshape(3, s.h, s.e, s.d)
        b_q, b_k, b_v = (None,) * 3 if b_qkv is None else b_qkv.reshape(3, s.h, s.e)
        o, b_o = self._matrix(p + "attn.c_proj")
        up, b_up = self._matrix(p + "mlp.c_fc")
        down, b_down = self._matrix(p + "mlp.c_proj")
        return Layer(
            ln1=self._gain(p + "ln_1"),
            ln2=self._gain(p + "ln_2"),
            q=q,
            k=k,
            v=v,
            b_q=b_q,
            b_k=b_k,
            b_v=b_v,
            o=o.reshape(s.h, s.e, s.d),
            b_o=b_o,
            up=up.T,
            b_up=b_up,
            down=down,
            b_down=b_down,
        )

    def _gpt_neox(self, p: str) -> Layer:
        """GPT-NeoX keeps query, key and value rows together head by head."""
        s = self._settings
        qkv, b_qkv = self._matrix(p + "attention.query_key_value")
        q, k, v = qkv.reshape(s.h, 3, s.e, s.d).unbind(1)
        b_q, b_k, b_v = (None,) * 3 if b_qkv is None else b_qkv.reshape(s.h, 3, s.e).unbind(1)
        o, b_o = self._matrix(p + "attention.dense")
        up, b_up = self._matrix(p + "mlp.dense_h_to_4h")
        down, b_down = self._matrix(p + "mlp.dense_4h_to_h")
        return Layer(
            ln1=self._gain(p + "input_layernorm"),
            ln2=self._gain(p + "post_attention_layernorm"),
            q=q,
            k=k,
            v=v,
            b_q=b_q,
            b_k=b_k,
            b_v=b_v,
            o=o.reshape(s.d, s.h, s.e).permute(1, 2, 0),
            b_o=b_o,
            up=up,
            b_up=b_up,
            down=down.T,
            b_down=b_down,
        )

    def _get(self, name: str) -> Tensor:
        if name not in self._state:
            raise InputError(
                f"the weights of this {self._settings.family} model have no {name!r}; expected the state dict of a "
                "Hugging Face model whose modules are neither quantised nor wrapped in adapters"
            )
        return self._state[name].detach().to(self._dtype)

    def _matrix(self, name: str) -> tuple[Tensor, Tensor | None]:
        bias = f"{name}.bias"
        return self._get(f"{name}.weight"), self._get(bias) if bias in self._state else None

    def _gain(self, name: str) -> Gain:
        return Gain(*self._matrix(name))

    def _gain_if_any(self, name: str) -> Gain | None:
        return self._gain(name) if f"{name}.weight" in self._state else None


def _heads(bias: Tensor | None, heads: int) -> Tensor | None:
    return None if bias is None else bias.reshape(heads, -1)
