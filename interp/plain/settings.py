"""What the mathematics needs from a model's configuration: `read_settings(config)` gives one frozen `Settings`.

Configuration fields are spelled as in transformers 5, where `rope_parameters` holds the rotary base and its scaling.
A setting that would change the mathematics in a way this forward pass does not know is refused, never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import InputError

Norm = Literal["rms", "rms_plus_one", "layer"]


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies of a layer: base, how many of a head's dimensions turn, and how frequencies are scaled."""

    theta: float
    dims: int
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class Settings:
    """The numbers and switches of one model; `windows`, `ropes` and `score_scales` have one entry per layer."""

    family: str
    n_layers: int
    d: int
    h: int
    g: int
    e: int
    eps: float
    norm: Norm
    act: str
    gated: bool
    post_norms: bool
    parallel: bool
    embed_scale: float
    attn_cap: float | None
    final_cap: float | None
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    score_scales: tuple[float, ...]


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Read the configuration of a supported family; raises `InputError` for one it does not know."""
    family = config.get("model_type")
    if family == "gpt2":
        return _gpt2(config)
    if family == "gpt_neox":
        return _gpt_neox(config)
    if family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        return _llama_like(config, family)
    raise InputError(
        f"there is no plain forward pass for model_type {family!r}. Known: llama, gemma2, gemma3_text, mistral, qwen2, "
        "qwen3, gpt2, gpt_neox"
    )


def _llama_like(config: Mapping[str, Any], family: str) -> Settings:
    gemma = family.startswith("gemma")
    n_layers, h = config["num_hidden_layers"], config["num_attention_heads"]
    e = config.get("head_dim") or config["hidden_size"] // h
    attn_cap = config.get("attn_logit_softcapping")
    if config.get("use_bidirectional_attention"):
        raise InputError("use_bidirectional_attention is on, but the plain forward pass is causal")
    if attn_cap is not None and family == "gemma3_text":
        raise InputError(f"Gemma 3 has no attention soft-cap, got attn_logit_softcapping={attn_cap}")
    scale = (config["query_pre_attn_scalar"] if gemma else e) ** -0.5
    return Settings(
        family=family,
        n_layers=n_layers,
        d=config["hidden_size"],
        h=h,
        g=config.get("num_key_value_heads") or h,
        e=e,
        eps=config["rms_norm_eps"],
        norm="rms_plus_one" if gemma else "rms",
        act=config["hidden_activation" if gemma else "hidden_act"],
        gated=True,
        post_norms=gemma,
        parallel=False,
        embed_scale=math.sqrt(config["hidden_size"]) if gemma else 1.0,
        attn_cap=attn_cap,
        final_cap=config.get("final_logit_softcapping") if gemma else None,
        windows=tuple(_window(config, family, layer) for layer in range(n_layers)),
        ropes=tuple(_rope(_rope_parameters(config, layer), e) for layer in range(n_layers)),
        score_scales=(scale,) * n_layers,
    )


def _gpt2(config: Mapping[str, Any]) -> Settings:
    n_layers, h = config["n_layer"], config["n_head"]
    e = config["n_embd"] // h
    scale = e**-0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    if config.get("add_cross_attention"):
        raise InputError("add_cross_attention is on, but the plain forward pass of GPT-2 has self-attention only")
    return Settings(
        **_without_extras("gpt2", n_layers, config["n_embd"], h),
        eps=config["layer_norm_epsilon"],
        act=config["activation_function"],
        parallel=False,
        ropes=(None,) * n_layers,
        score_scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(n_layers)),
    )


def _gpt_neox(config: Mapping[str, Any]) -> Settings:
    n_layers, h = config["num_hidden_layers"], config["num_attention_heads"]
    e = config["hidden_size"] // h
    return Settings(
        **_without_extras("gpt_neox", n_layers, config["hidden_size"], h),
        eps=config["layer_norm_eps"],
        act=config["hidden_act"],
        parallel=config["use_parallel_residual"],
        ropes=(_rope(config["rope_parameters"], e),) * n_layers,
        score_scales=(e**-0.5,) * n_layers,
    )


def _without_extras(family: str, n_layers: int, d: int, h: int) -> dict[str, Any]:
    """What GPT-2 and GPT-NeoX have in common: LayerNorm, one key per query head, no gate, no window, no soft-cap."""
    return {
        "family": family,
        "n_layers": n_layers,
        "d": d,
        "h": h,
        "g": h,
        "e": d // h,
        "norm": "layer",
        "gated": False,
        "post_norms": False,
        "embed_scale": 1.0,
        "attn_cap": None,
        "final_cap": None,
        "windows": (None,) * n_layers,
    }


def _window(config: Mapping[str, Any], family: str, layer: int) -> int | None:
    """How many sources (the query's own position among them) a layer may look back on; None for all."""
    if family == "llama":
        return None
    if family == "mistral":
        return config.get("sliding_window")
    kind = config["layer_types"][layer]
    if kind not in ("sliding_attention", "full_attention"):
        raise InputError(f"layer_types[{layer}] is {kind!r}; known: 'sliding_attention', 'full_attention'")
    return config["sliding_window"] if kind == "sliding_attention" else None


def _rope_parameters(config: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """The layer's rotary parameters: Gemma 3 has one set per kind of layer, the others one for all."""
    parameters = config["rope_parameters"]
    return parameters if "rope_theta" in parameters else parameters[config["layer_types"][layer]]


def _rope(parameters: Mapping[str, Any], e: int) -> Rope:
    kind = parameters.get("rope_type", "default")
    dims = int(e * parameters.get("partial_rotary_factor", 1.0))
    theta = parameters["rope_theta"]
    if kind == "default":
        return Rope(theta, dims)
    if kind == "linear":
        return Rope(theta, dims, "linear", factor=parameters["factor"])
    if kind == "llama3":
        return Rope(
            theta,
            dims,
            "llama3",
            factor=parameters["factor"],
            low=parameters["low_freq_factor"],
            high=parameters["high_freq_factor"],
            original_length=parameters["original_max_position_embeddings"],
        )
    raise InputError(f"rope_type {kind!r} has no plain forward pass; known: 'default', 'linear', 'llama3'")
