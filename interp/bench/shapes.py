"""Models by shape: the published architectures with random weights, and synthetic documents to feed them.

    model = random_model("llama-3.1-8b", upto="resid_post.16", dtype="bfloat16")     # no download, no float32 copy
    tokens = synthetic_tokens(folder, vocabulary=model.cfg.d_vocab, lengths=[1024] * 64, seed=0)

Speed does not depend on what the weights are, as long as all numbers stay finite, so a model of the real sizes runs as
fast as the real one. Weights are normal with the configuration's own `initializer_range` (0.02); gains are one.
Configurations: those published with meta-llama/Llama-3.1-8B, google/gemma-2-9b and
HuggingFaceTB/SmolLM2-135M-Instruct; the tiny ones are ours, for tests.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from interp.anatomy import ModelSpec
from interp.bench.flops import sequence_flops
from interp.bench.measure import free_memory
from interp.errors import InputError
from interp.families import anatomy_of
from interp.loading import layers_needed, parse_device, parse_dtype
from interp.model import HookedModel
from interp.precision import default_dtype
from interp.quiet import quiet_transformers
from interp.sites import Site
from interp.tokenfile import TokenFile, tokenize
from interp.weights import truncated_config

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Shape:
    """A configuration as published, and the site at which its public SAEs stand."""

    family: str
    site: str
    config: dict[str, Any]


def _config(d: int, m: int, layers: int, heads: tuple[int, int, int], vocabulary: int, **more: Any) -> dict[str, Any]:
    h, g, e = heads
    return {
        "hidden_size": d,
        "intermediate_size": m,
        "num_hidden_layers": layers,
        "num_attention_heads": h,
        "num_key_value_heads": g,
        "head_dim": e,
        "vocab_size": vocabulary,
        **more,
    }


def _gemma2(window: int, layers: int) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"]
    return {
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": window,
        "layer_types": [kinds[layer % 2] for layer in range(layers)],
        "max_position_embeddings": 8192,
    }


def _llama(**more: Any) -> dict[str, Any]:
    return {"rms_norm_eps": 1e-5, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": False, **more}


_PLAIN = {"rope_type": "default", "rope_theta": 100_000.0}
SHAPES: dict[str, Shape] = {
    "llama-3.1-8b": Shape(
        "llama",
        "resid_post.16",
        _config(4096, 14_336, 32, (32, 8, 128), 128_256, **_llama(max_position_embeddings=131_072)),
    ),
    "gemma-2-9b": Shape(
        "gemma2", "resid_post.20", _config(3584, 14_336, 42, (16, 8, 256), 256_000, **_gemma2(4096, 42))
    ),
    "smollm2-135m": Shape(
        "llama",
        "resid_post.15",
        _config(
            *(576, 1536, 30, (9, 3, 64), 49_152),
            **_llama(rope_parameters=_PLAIN, tie_word_embeddings=True, max_position_embeddings=8192),
        ),
    ),
    "tiny-llama": Shape(
        "llama", "resid_post.1", _config(48, 80, 4, (4, 2, 16), 97, **_llama(max_position_embeddings=131_072))
    ),
    "tiny-gemma2": Shape("gemma2", "resid_post.1", _config(48, 80, 4, (4, 2, 16), 97, **_gemma2(5, 4))),
}


def shape_of(name: str) -> Shape:
    """The shape of that name."""
    if name not in SHAPES:
        raise InputError(f"there is no shape {name!r}; expected one of {', '.join(SHAPES)}")
    return SHAPES[name]


def default_site(shape: str) -> Site:
    """Where the public SAEs of this model stand, or thereabouts: in its middle."""
    return Site.parse(shape_of(shape).site)


@functools.cache
def spec_of(shape: str) -> ModelSpec:
    """The numbers of the architecture, the whole model's."""
    return anatomy_of(_without_numbers(_hf_config(shape), torch.float32)).spec


def flops_per_token(shape: str, site: Site | str, length: int) -> float:
    """Floating-point operations per token of a run up to `site` over sequences of `length` tokens."""
    return sequence_flops(spec_of(shape), Site.parse(site), length) / length


def random_model(
    shape: str,
    *,
    upto: Site | str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> HookedModel:
    """A model of this shape with random weights, made where and in what they stay.

    With `upto` only the layers that a run up to that site needs, without final norm and head, as `HookedModel.load`
    does; otherwise the whole model. Equal seeds give equal weights on equal devices.
    """
    config, where = _hf_config(shape), parse_device(device)
    number_type = parse_dtype(dtype) or default_dtype(where)
    keep = config.num_hidden_layers if upto is None else layers_needed(Site.parse(upto), config.num_hidden_layers)
    empty = _without_numbers(truncated_config(config, keep), number_type, whole=upto is None)
    if keep < config.num_hidden_layers:  # the final norm stands above every site that is left
        setattr(empty, anatomy_of(empty).norm, nn.Identity())
    _check_memory(shape, upto, empty, where)
    model = HookedModel.wrap(_filled(empty, where, seed).eval())
    model.anatomy = replace(model.anatomy, spec=replace(spec_of(shape), dtype=number_type))
    model.name, model.revision = f"{shape}, random weights", f"seed {seed}"
    return model


def _hf_config(shape: str) -> Any:
    from transformers import AutoConfig

    found = shape_of(shape)
    with quiet_transformers():
        return AutoConfig.for_model(found.family, **found.config)


def _built(config: Any, dtype: torch.dtype, *, whole: bool = False) -> nn.Module:
    """Hugging Face's module on the device of the context, with the head only if it is to be `whole`."""
    from transformers import AutoModel, AutoModelForCausalLM

    with quiet_transformers():
        return (AutoModelForCausalLM if whole else AutoModel).from_config(config, dtype=dtype)


def _without_numbers(config: Any, dtype: torch.dtype, *, whole: bool = False) -> nn.Module:
    """The same on the meta device: shapes without memory."""
    with torch.device("meta"):
        return _built(config, dtype, whole=whole)


def weight_bytes(model: nn.Module) -> int:
    """Of all parameters, those shared by two modules once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _check_memory(shape: str, upto: Site | str | None, empty: nn.Module, device: torch.device) -> None:
    needed, free = weight_bytes(empty), free_memory(device)
    if free is not None and needed > free:
        part = "the whole model" if upto is None else f"up to {Site.parse(upto)}"
        dtype = next(empty.parameters()).dtype
        raise InputError(
            f"{shape} ({part}) takes {needed / 2**30:.1f} GiB of weights in {str(dtype).removeprefix('torch.')}, and "
            f"{free / 2**30:.1f} GiB are free on {device}: give an earlier site, a smaller dtype or a smaller shape"
        )


@torch.no_grad()
def _filled(empty: nn.Module, device: torch.device, seed: int) -> nn.Module:
    """`empty` in the memory of `device`, with numbers."""
    config: Any = empty.config
    dtype = next(empty.parameters()).dtype
    model: Any = empty.to_empty(device=device)
    model.tie_weights()
    # What is computed and not learnt (inverse frequencies, Gemma's scale) comes from a model without layers.
    with quiet_transformers():
        small = type(config).from_dict(truncated_config(config, 0).to_dict() | {"vocab_size": 1, "pad_token_id": None})
    computed = dict(_built(small, dtype).named_buffers())
    base = f"{model.base_model_prefix}."
    for name, buffer in model.named_buffers():
        buffer.copy_(computed[name.removeprefix(base)])
    generator, gain = torch.Generator(device).manual_seed(seed), 0.0 if "gemma" in config.model_type else 1.0
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.fill_(gain)  # Gemma adds the one itself
        else:
            parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model


@dataclass(frozen=True)
class _Numbers:
    """A document that is nothing but a length: the text says which numbers to draw."""

    id: str
    text: str


class _Drawing:
    """Stands where a tokenizer would: a text `seed number length` becomes that many random ids."""

    name_or_path = "random token ids"
    all_special_ids: tuple[int, ...] = ()
    bos_token_id = None

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return self.vocabulary

    def get_vocab(self) -> dict[str, int]:
        """Its size is its identity."""
        return {"vocabulary": self.vocabulary}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids."""
        seed, number, length = map(int, text.split())
        return np.random.default_rng((seed, number)).integers(self.vocabulary, size=length).tolist()


def synthetic_tokens(folder: str | Path, *, vocabulary: int, lengths: Sequence[int], seed: int = 0) -> TokenFile:
    """A token file of documents of these lengths, ids drawn uniformly from the vocabulary, without a BOS."""
    if not len(lengths) or min(lengths) < 1 or vocabulary < 1:
        raise InputError(
            f"synthetic tokens need at least one document, none of them empty, and a vocabulary; got "
            f"{len(lengths)} lengths, the least {min(lengths, default=0)}, and a vocabulary of {vocabulary}"
        )
    documents = [_Numbers(f"{n}", f"{seed} {n} {int(length)}") for n, length in enumerate(lengths)]
    return tokenize(documents, _Drawing(vocabulary), folder)


MEDIAN, SIGMA, SHORTEST, LONGEST = 400, 1.0, 16, 16_384


def mixed_lengths(n_tokens: int, *, seed: int = 0) -> list[int]:
    """Lengths of about `n_tokens` in all, as web text has them: log-normal, median 400 tokens, sigma 1 (mean 660).

    Cut to 16 to 16,384 tokens; the last document makes up the sum, so that its length is whatever is left.
    """
    generator, lengths, left = np.random.default_rng(seed), list[int](), n_tokens
    for length in _draws(generator):
        lengths.append(min(length, left))
        left -= lengths[-1]
        if not left:
            return lengths
    raise AssertionError


def _draws(generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield int(np.clip(round(generator.lognormal(math.log(MEDIAN), SIGMA)), SHORTEST, LONGEST))


def equal_lengths(n_tokens: int, length: int) -> list[int]:
    """As many documents of `length` tokens as give about `n_tokens`, at least one."""
    return [length] * max(1, round(n_tokens / length))
