"""Tiny random Hugging Face models of every family, built so that a wrong forward pass shows.

Weights are scaled so that attention is clearly not uniform, norm gains and biases are random (a dropped gain, or a gain
applied twice, changes the numbers), windows and the rope's original length are shorter than a test's sequences, and
soft-caps are small enough to bend. `head_dim` differs from `hidden_size / heads` wherever the family allows it. Larger
weights would amplify rounding: with 1.5 instead of 1.1 some seeds are 1.1e-5 from float64, with 1.1 all below 4e-6.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
# Wavelengths 6.3, 13.7, 29.7, 64 ... around 32 / 4 = 8 and 32 / 1 = 32: one kept, two blended, the rest divided by 8.
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {
    **_COMMON,
    "num_hidden_layers": 4,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 24,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": False},
    "gemma2": {
        **_GEMMA,
        "rope_parameters": _ROPE,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        **_GEMMA,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    },
    "mistral": {**_COMMON, "rope_parameters": _ROPE, "sliding_window": 5},
    "qwen2": {k: v for k, v in _COMMON.items() if k != "head_dim"} | {"rope_parameters": _ROPE},
    "qwen3": {**_COMMON, "rope_parameters": _ROPE, "tie_word_embeddings": True},
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "gpt_neox": {k: v for k, v in _COMMON.items() if k not in ("head_dim", "num_key_value_heads")}
    | {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}, "use_parallel_residual": True},
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
"""Every family: its `model_type` in Hugging Face's configuration."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_plain_rope": ("llama", {"rope_parameters": _ROPE}),
    "llama_linear_rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "gemma3_text_scaled": (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            }
        },
    ),
    "mistral_full": ("mistral", {"sliding_window": None}),
    "qwen2_sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 80}),
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
}
"""Named settings of the families, each once as it stands and once per switch that changes the mathematics."""


def tiny(name: str, *, seed: int = 0, **config_overrides: Any) -> nn.Module:
    """A tiny random model of a family or variant: float32, eval mode; overrides go into its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, changes = VARIANTS[name]
    attention = config_overrides.pop("attn_implementation", None)
    config = AutoConfig.for_model(family, **_CONFIGS[family] | changes | config_overrides)
    extra = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **extra)
    randomize(model, seed=seed)
    return model.eval()


def random_tokens(model: nn.Module, b: int, t: int, seed: int = 0) -> Int[Tensor, "b t"]:
    """`b` sequences of `t` random token ids, none of them a special token (ids 0 to 2)."""
    vocabulary = model.config.vocab_size  # pyright: ignore[reportAttributeAccessIssue]
    return torch.randint(3, vocabulary, (b, t), generator=torch.Generator().manual_seed(seed))


def randomize(model: nn.Module, *, seed: int) -> None:
    """Fill every parameter: matrices 1.1 / sqrt(fan-in), embeddings 1, biases 0.3, norm gains moved by 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                # A gain is initialised to one (Gemma: to zero, it adds the one itself), a bias to zero.
                start = parameter if "bias" not in name else torch.zeros_like(parameter)
                parameter.copy_(start + 0.3 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                scale = 1.0 if parameter is not model.get_output_embeddings().weight else 0.3
                parameter.copy_(scale * noise)
            else:
                # GPT-2 keeps its matrices input-first (Conv1D), all but the head.
                conv1d = type(model).__name__.startswith("GPT2") and parameter.shape[0] != 97
                fan_in = parameter.shape[0] if conv1d else parameter.shape[1]
                parameter.copy_(1.1 / fan_in**0.5 * noise)
