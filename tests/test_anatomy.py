"""Configs: what is read from them, which published ones are accepted, and which fields are refused by name."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from interp.errors import InputError
from interp.families import anatomy_of
from interp.model import HookedModel
from tests.tiny_models import VARIANTS, random_tokens, tiny
from tests.wrapped_models import wrapped

# The fields of config.json as published on the hub, with the sizes made small.
PUBLISHED = {
    "Llama-3.1-8B": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=[128001, 128008], hidden_act="silu", hidden_size=32, initializer_range=0.02, intermediate_size=48,
        max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=4, num_hidden_layers=2,
        num_key_value_heads=2, pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=500000.0, tie_word_embeddings=False,
        rope_scaling=dict(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
        torch_dtype="bfloat16", transformers_version="4.43.0", use_cache=True, vocab_size=128,
    ),
    "SmolLM2-135M-Instruct": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
        hidden_act="silu", hidden_size=32, initializer_range=0.04, intermediate_size=48, is_llama_config=True,
        max_position_embeddings=8192, mlp_bias=False, model_type="llama", num_attention_heads=4, num_hidden_layers=2,
        num_key_value_heads=2, pad_token_id=2, pretraining_tp=1, rms_norm_eps=1e-05, rope_interleaved=False,
        rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True,
        transformers_version="4.42.3", vocab_size=128, **{"transformers.js_config": {"dtype": "q4"}},
    ),
    "gemma-2-9b": dict(
        architectures=["Gemma2ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
        bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=8,
        hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=32, initializer_range=0.02,
        intermediate_size=48, max_position_embeddings=8192, model_type="gemma2", num_attention_heads=4,
        num_hidden_layers=2, num_key_value_heads=2, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06,
        rope_theta=10000.0, sliding_window=4096, sliding_window_size=4096, torch_dtype="float32",
        transformers_version="4.42.0.dev0", use_cache=True, vocab_size=128,
    ),
    "gemma-3-1b-pt": dict(
        architectures=["Gemma3ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
        bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=None, head_dim=8,
        hidden_activation="gelu_pytorch_tanh", hidden_size=32, initializer_range=0.02, intermediate_size=48,
        max_position_embeddings=32768, model_type="gemma3_text", num_attention_heads=4, num_hidden_layers=6,
        num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_scaling=None,
        rope_local_base_freq=10000, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, use_cache=True,
        torch_dtype="bfloat16", transformers_version="4.50.0.dev0", vocab_size=128,
    ),
    "Mistral-7B-v0.1": dict(
        architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=32,
        initializer_range=0.02, intermediate_size=48, max_position_embeddings=32768, model_type="mistral",
        num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-05, rope_theta=10000.0,
        sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=128,
    ),
    "Qwen2.5-0.5B": dict(
        architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=100, eos_token_id=100,
        hidden_act="silu", hidden_size=32, initializer_range=0.02, intermediate_size=48, max_position_embeddings=32768,
        max_window_layers=2, model_type="qwen2", num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True,
        use_mrope=False, use_sliding_window=False, vocab_size=128,
    ),
    "Qwen3-0.6B": dict(
        architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=100, head_dim=8,
        eos_token_id=100, hidden_act="silu", hidden_size=32, initializer_range=0.02, intermediate_size=48,
        max_position_embeddings=40960, max_window_layers=2, model_type="qwen3", num_attention_heads=4,
        rope_scaling=None,
        num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000, sliding_window=None,
        tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True, use_sliding_window=False, vocab_size=128,
    ),
    "gpt2": dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=100,
        embd_pdrop=0.1, eos_token_id=100, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=64,
        n_embd=32, n_head=4, n_layer=2, n_positions=64, resid_pdrop=0.1, summary_activation=None,
        summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=128,
    ),
    "gpt2-xl": dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=100,
        embd_pdrop=0.1, eos_token_id=100, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=64,
        n_embd=32, n_head=4, n_layer=2, n_positions=64, n_special=0, output_past=True, predict_special_tokens=True,
        resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
        summary_type="cls_index", summary_use_proj=True, vocab_size=128,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
    "distilgpt2": dict(
        _num_labels=1, activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1,
        bos_token_id=100, embd_pdrop=0.1, eos_token_id=100, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0},
        initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=64, n_embd=32, n_head=4, n_layer=2,
        n_positions=64, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1, vocab_size=128,
        summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    ),
    "gpt-neox-20b-like": dict(
        architectures=["GPTNeoXForCausalLM"], attention_probs_dropout_prob=0.1, bos_token_id=0, eos_token_id=0,
        custom_pipelines={"text-generation": {"impl": "a.B", "pt": "C"}}, gradient_checkpointing=True,
        hidden_act="gelu_fast", hidden_dropout_prob=0.1, hidden_size=32, initializer_range=0.02, intermediate_size=48,
        layer_norm_eps=1e-05, max_position_embeddings=2048, model_type="gpt_neox", num_attention_heads=4,
        num_hidden_layers=2, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype="float16",
        use_cache=True, vocab_size=128,
    ),
    "vicuna": dict(
        architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=32,
        initializer_range=0.02, intermediate_size=48, max_position_embeddings=2048, max_sequence_length=2048,
        model_type="llama", num_attention_heads=4, num_hidden_layers=2, pad_token_id=0, rms_norm_eps=1e-06,
        tie_word_embeddings=False, torch_dtype="float16", use_cache=True, vocab_size=128,
    ),
    "pythia-160m": dict(
        architectures=["GPTNeoXForCausalLM"], bos_token_id=0, classifier_dropout=0.1, eos_token_id=0, hidden_act="gelu",
        hidden_size=32, initializer_range=0.02, intermediate_size=48, layer_norm_eps=1e-05, model_type="gpt_neox",
        max_position_embeddings=2048, num_attention_heads=4, num_hidden_layers=2, rotary_emb_base=10000,
        rotary_pct=0.25,
        tie_word_embeddings=False, torch_dtype="float16", use_cache=True, use_parallel_residual=True, vocab_size=128,
    ),
}  # fmt: skip


def built(**fields):
    kind = fields.pop("model_type")
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_accepted(name):
    hf = built(**PUBLISHED[name])
    spec = anatomy_of(hf).spec
    assert (spec.d_model, spec.n_heads, spec.d_vocab, spec.d_head) == (32, 4, 128, 8)
    assert spec.family == PUBLISHED[name]["model_type"] and spec.n_layers == PUBLISHED[name].get("num_hidden_layers", 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_unknown_field_is_refused_by_name(name):
    hf = built(**PUBLISHED[name], use_parallel_brains=True)
    with pytest.raises(InputError, match=r"config field use_parallel_brains=True of .* is not known"):
        HookedModel.wrap(hf)
    assert HookedModel.wrap(hf, anatomy=anatomy_of(hf, ignore=["use_parallel_brains"])).cfg.n_heads == 4
    HookedModel.wrap(built(**PUBLISHED[name], use_parallel_brains=False))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gpt2", "add_cross_attention", True),
        ("gemma-2-9b", "use_bidirectional_attention", True),
        ("gemma-3-1b-pt", "attn_logit_softcapping", 50.0),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(name, field, value):
    with pytest.raises(InputError, match=rf"config field {field}=.* is not supported: expected it to be off"):
        HookedModel.wrap(built(**PUBLISHED[name] | {field: value}))


def test_bidirectional_attention_and_other_families_are_refused():
    hf = built(**PUBLISHED["Llama-3.1-8B"])
    hf.config.is_causal = False
    with pytest.raises(InputError, match=r"is_causal=False of llama is not supported"):
        HookedModel.wrap(hf)
    with pytest.raises(InputError, match=r"Linear is of the unsupported family None. Supported: llama, mistral"):
        HookedModel.wrap(torch.nn.Linear(2, 2))
    hf = built(**PUBLISHED["gemma-2-9b"] | {"layer_types": ["sliding_attention", "chunked_attention"]})
    with pytest.raises(InputError, match=r"layer_types holds .*chunked"):
        HookedModel.wrap(hf)


def test_the_numbers_of_every_family():
    gemma = wrapped("gemma2").cfg
    assert gemma.windows == (5, None, 5, None) and gemma.attn_cap == 2.0 and gemma.final_cap == 4.0
    assert gemma.scale(1) == 24**-0.5 and gemma.norm == "rms_offset" and gemma.d_head == 16
    assert wrapped("mistral").cfg.windows == (5, 5, 5) and wrapped("mistral_full").cfg.window(1) is None
    assert wrapped("qwen2_sliding").cfg.windows == (None, 5, 5)
    gpt2 = wrapped("gpt2_untied").cfg
    assert gpt2.attn_scales == tuple(12**-0.5 / (i + 1) for i in range(3)) and gpt2.d_mlp == 80 and not gpt2.gated
    assert wrapped("gpt2").cfg.d_mlp == 4 * 48
    assert wrapped("gpt_neox").cfg.parallel and not wrapped("gpt_neox_sequential").cfg.parallel
    assert wrapped("llama").cfg.n_kv_heads == 2 and wrapped("llama").dtype == torch.float32


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_and_norms_are_found(name):
    model = wrapped(name)
    with torch.no_grad():
        found = model.capture(random_tokens(model.hf, 1, 4), ["ln_final", "resid_post.2"], stop=False)
    assert [tuple(x.shape) for x in found.values()] == [(1, 4, 48), (1, 4, 48)]
    assert model.anatomy.unembed(model.hf) is model.hf.lm_head
    base = model.anatomy.body(model.hf)
    assert model.anatomy.unembed(base) is None and model.anatomy.body(base) is base
    assert model.anatomy.ln_final(base) is model.anatomy.ln_final(model.hf)


def test_partial_models_refuse_what_is_above_and_say_so():
    hf = tiny("llama", num_hidden_layers=2).model
    anatomy = anatomy_of(hf)
    whole = dataclasses.replace(anatomy, spec=dataclasses.replace(anatomy.spec, n_layers=3))
    model, tokens = HookedModel.wrap(hf, anatomy=whole), random_tokens(hf, 1, 5)
    message = r"loaded with layers 0 to 1 of 3 layers \(upto=resid_pre.2\)"
    for site in ("resid_post.2", "ln1.2", "ln_final"):
        with pytest.raises(InputError, match=message):
            model.capture(tokens, [site])
    with pytest.raises(InputError, match="has 3 layers, 0 to 2"):
        model.capture(tokens, ["resid_pre.3"])
    with torch.no_grad():
        entering = model.capture(tokens, ["resid_pre.2", "resid_post.1"])
        assert torch.equal(*entering.values())
        stream, cache = model.run_with_cache(tokens, stop_at_layer=2)
        assert torch.equal(stream, cache["resid_post", 1]) and len(cache) == 1 + 2 * len(anatomy.points()[1:-1])


def test_a_soft_cap_is_never_dropped():
    hf = tiny("gemma2")
    model, tokens = HookedModel.wrap(hf), random_tokens(hf, 1, 5)
    hf.config._attn_implementation = "sdpa"
    with pytest.raises(InputError, match="'sdpa' would drop the soft-cap of gemma2; expected one of eager"):
        model(tokens)


def test_a_model_built_otherwise_is_refused():
    hf = tiny("llama")
    hf.model.layers[0].mlp.gate_proj = None
    del hf.model.layers[0].mlp.gate_proj
    with pytest.raises(InputError, match=r"not built as its anatomy says: .*'gate_proj'.*merge adapters"):
        HookedModel.wrap(hf)
    with pytest.raises(InputError, match=r"LlamaForCausalLM is not built as its anatomy says: .*'wte'"):
        HookedModel.wrap(tiny("llama"), anatomy=dataclasses.replace(wrapped("llama").anatomy, embed="wte"))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_refused_because_it_runs_past_hooks(in_place):
    hf = tiny("llama")
    if in_place:
        hf.compile(backend="eager")
    compiled = hf if in_place else torch.compile(hf, backend="eager")
    with pytest.raises(InputError, match=r"compiled by torch.compile, which runs past hooks: wrap the model as it was"):
        HookedModel.wrap(compiled)
    if not in_place:
        assert HookedModel.wrap(compiled._orig_mod).cfg.n_layers == 3


def test_a_model_without_layers_gives_the_first_stream():
    whole = tiny("gpt2")
    hf = tiny("gpt2", num_hidden_layers=1).transformer
    hf.h = torch.nn.ModuleList()
    hf.load_state_dict({k: v for k, v in whole.transformer.state_dict().items() if not k.startswith("h.")})
    model, tokens = HookedModel.wrap(hf, anatomy=wrapped("gpt2").anatomy), random_tokens(hf, 1, 5)
    with torch.no_grad():
        first = model.capture(tokens, ["resid_pre.0"])
        assert first.keys() == (expected := HookedModel.wrap(whole).capture(tokens, ["resid_pre.0"])).keys()
        assert torch.equal(*first.values(), *expected.values())
    with pytest.raises(InputError, match="loaded with none of 3 layers"):
        model.capture(tokens, ["resid_post.0"])
