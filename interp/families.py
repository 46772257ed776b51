"""The families of models whose anatomy is known, read from the Hugging Face config.

Every config field must be accounted for: either it is handled here (or by the modules themselves, which are used as
they are), or it is known to leave the forward pass alone. A field outside both lists that differs from its default (or
has none and is switched on) is refused by name, so that a variant is never read with the wrong meaning.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from interp.anatomy import Anatomy, ModelSpec
from interp.errors import InputError

# Names, provenance, and what only training, generation or the classification heads read; fields of published configs
# that transformers leaves alone or has already turned into another field.
_IGNORED: set[str] = set(
    """_name_or_path _model_name_or_path architectures model_type transformers_version torch_dtype dtype auto_map
    quantization_config
    _attn_implementation _attn_implementation_autoset attn_implementation _experts_implementation use_cache
    cache_implementation id2label label2id num_labels problem_type task_specific_params return_dict classifier_dropout
    output_attentions output_hidden_states tie_word_embeddings is_encoder_decoder is_decoder chunk_size_feed_forward
    initializer_range pretraining_tp max_position_embeddings bos_token_id eos_token_id pad_token_id sep_token_id
    mask_token_id unk_token_id decoder_start_token_id _commit_hash sliding_window_size sliding_window_pattern
    _sliding_window_pattern is_causal is_llama_config transformers.js_config unsloth_fixed unsloth_version
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop attention_probs_dropout_prob hidden_dropout_prob
    max_sequence_length n_special predict_special_tokens output_past _num_labels custom_pipelines
    gradient_checkpointing""".split()
)
_LLAMA: set[str] = set(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act rms_norm_eps rope_parameters attention_bias mlp_bias""".split()
)
_WINDOWED: set[str] = _LLAMA | set("sliding_window layer_types use_sliding_window max_window_layers".split())
_GEMMA: set[str] = _WINDOWED | set(
    "hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping".split()
)
_GPT2: set[str] = set(
    """vocab_size n_embd n_head n_layer n_inner n_positions n_ctx activation_function layer_norm_epsilon
    scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn""".split()
)
_NEOX: set[str] = set(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps
    rope_parameters attention_bias use_parallel_residual""".split()
)


def anatomy_of(hf: nn.Module, *, ignore: Iterable[str] = ()) -> Anatomy:
    """The anatomy of a Hugging Face model, from its config; `ignore` names config fields known to change nothing."""
    config = getattr(hf, "config", None)
    kind = getattr(config, "model_type", None)
    if config is None or kind not in _FAMILIES:
        hint = " (load its text part: Gemma3ForCausalLM)" if kind == "gemma3" else ""
        raise InputError(
            f"{type(hf).__name__} is of the unsupported family {kind!r}{hint}. Supported: {', '.join(_FAMILIES)}; "
            f"for another model give `wrap` an explicit `anatomy=` (interp.anatomy.Anatomy)"
        )
    family, handled, must_be_off = _FAMILIES[kind]
    _refuse_unknown(config, handled, must_be_off, set(ignore))
    if getattr(config, "is_causal", None) is False:
        raise InputError(f"config field is_causal=False of {kind} is not supported: expected causal attention")
    anatomy = family(config)
    dtype = next((p.dtype for p in hf.parameters() if p.is_floating_point()), torch.float32)
    spec = dataclasses.replace(anatomy.spec, dtype=dtype)
    return dataclasses.replace(anatomy, spec=spec, options={"use_cache": False}, in_place=False)


def _refuse_unknown(config: Any, handled: set[str], must_be_off: set[str], ignore: set[str]) -> None:
    fields, defaults = config.to_dict(), type(config)().to_dict()
    for name, value in fields.items():
        if name in must_be_off and value and name not in ignore:
            raise InputError(
                f"config field {name}={value!r} of {config.model_type} is not supported: expected it to be off"
            )
        known = (
            name in handled or name in _IGNORED or name in must_be_off or name in ignore or name.startswith("summary_")
        )
        if not known and (value != defaults[name] if name in defaults else value):
            raise InputError(
                f"config field {name}={value!r} of {config.model_type} is not known, so the meaning of the sites is "
                f"uncertain. If it changes nothing, wrap with anatomy=anatomy_of(hf, ignore=[{name!r}])"
            )


def _windows(config: Any) -> tuple[int | None, ...]:
    """Per layer the sliding window; config.layer_types says which layers have one."""
    window = config.sliding_window
    kinds = config.layer_types
    known = {"sliding_attention", "full_attention"}
    if odd := set(kinds) - known:
        raise InputError(f"config field layer_types holds {sorted(odd)}; expected only {sorted(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[: config.num_hidden_layers])


def _spec(config: Any, **over: Any) -> ModelSpec:
    heads = config.num_attention_heads
    numbers = dict(
        family=config.model_type,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=getattr(config, "intermediate_size", None),
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        norm_eps=getattr(config, "rms_norm_eps", None),
    )
    return ModelSpec(**{**numbers, **over})


def _llama(config: Any) -> Anatomy:
    return Anatomy(spec=_spec(config))


def _mistral(config: Any) -> Anatomy:
    # All layers or none; transformers does not read layer_types here.
    return Anatomy(spec=_spec(config, windows=(config.sliding_window,) * config.num_hidden_layers))


def _windowed(config: Any) -> Anatomy:
    return Anatomy(spec=_spec(config, windows=_windows(config)))


def _qwen3(config: Any) -> Anatomy:
    return dataclasses.replace(_windowed(config), q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")


def _gemma2(config: Any) -> Anatomy:
    spec = _spec(
        config,
        norm="rms_offset",
        windows=_windows(config),
        attn_scales=(config.query_pre_attn_scalar**-0.5,) * config.num_hidden_layers,
        attn_cap=config.attn_logit_softcapping,
        final_cap=config.final_logit_softcapping,
    )
    return Anatomy(
        spec=spec,
        attn_out="post_attention_layernorm",
        ln2="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    )


def _gemma3(config: Any) -> Anatomy:
    return dataclasses.replace(_gemma2(config), q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")


def _gpt2(config: Any) -> Anatomy:
    layers, head = range(config.num_hidden_layers), config.hidden_size // config.num_attention_heads
    base = head**-0.5 if config.scale_attn_weights else 1.0
    scales = tuple(base / (i + 1) if config.scale_attn_by_inverse_layer_idx else base for i in layers)
    spec = _spec(
        config,
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        d_mlp=config.n_inner or 4 * config.hidden_size,
        gated=False,
        rotary=False,
        attn_scales=scales,
    )
    return Anatomy(
        spec=spec,
        base="transformer",
        embed="wte",
        layers="h",
        norm="ln_f",
        ln1="ln_1",
        attn="attn",
        q="attn.c_attn",
        k="attn.c_attn",
        v="attn.c_attn",
        fused="blocks",
        o="attn.c_proj",
        attn_out="attn.resid_dropout",
        ln2="ln_2",
        mlp_pre="mlp.c_fc",
        mlp_pre_linear=None,
        mlp_post="mlp.c_proj",
        mlp_out="mlp.dropout",
    )


def _gpt_neox(config: Any) -> Anatomy:
    spec = _spec(
        config, norm="layer", norm_eps=config.layer_norm_eps, gated=False, parallel=config.use_parallel_residual
    )
    qkv = "attention.query_key_value"
    return Anatomy(
        spec=spec,
        base="gpt_neox",
        embed="embed_in",
        norm="final_layer_norm",
        head="lm_head",
        attn="attention",
        q=qkv,
        k=qkv,
        v=qkv,
        fused="interleaved",
        o="attention.dense",
        attn_out="post_attention_dropout",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_pre_linear=None,
        mlp_post="mlp.dense_4h_to_h",
        mlp_out="post_mlp_dropout",
    )


_BIDIRECTIONAL = {"use_bidirectional_attention"}

_FAMILIES: dict[str, tuple[Callable[[Any], Anatomy], set[str], set[str]]] = {
    # model_type: (reader, fields handled, fields that must be off)
    "llama": (_llama, _LLAMA, set()),
    "mistral": (_mistral, _LLAMA | {"sliding_window"}, set()),
    "qwen2": (_windowed, _WINDOWED, set()),
    "qwen3": (_qwen3, _WINDOWED, set()),
    "gemma2": (_gemma2, _GEMMA, _BIDIRECTIONAL),
    # transformers reads Gemma 3's attn_logit_softcapping but never applies it, so a value there cannot be honoured.
    "gemma3_text": (_gemma3, _GEMMA, {*_BIDIRECTIONAL, "attn_logit_softcapping"}),
    "gpt2": (_gpt2, _GPT2, {"add_cross_attention"}),
    "gpt_neox": (_gpt_neox, _NEOX, set()),
}
