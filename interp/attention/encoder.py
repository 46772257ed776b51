"""Query-key projections of BERT-like encoders, whose weights are read though their passes are not.

`BertModel`, alone or inside a model with a head (`BertForMaskedLM`, ...). Norms stand behind the blocks: queries and
keys read the stream as the norm before left it, so no gain is folded into kernels; logits are scaled by 1/√e.
"""

from typing import Any

from torch import nn

from interp.attention.projections import KernelShape, Projections, weight_of
from interp.errors import InputError


def is_encoder(model: nn.Module) -> bool:
    """Whether the model is of a family read here."""
    return getattr(getattr(model, "config", None), "model_type", None) == "bert"


def encoder_shape(model: nn.Module) -> KernelShape:
    """Sizes of its kernels; every head has keys of its own."""
    config: Any = model.config
    if (kind := getattr(config, "position_embedding_type", None) or "absolute") != "absolute":
        raise InputError(
            f"{type(model).__name__} has position embeddings of type {kind!r}, which enter its logits beside the "
            "kernel: expected 'absolute'"
        )
    heads, d = config.num_attention_heads, config.hidden_size
    return KernelShape(len(_layers(model)), heads, heads, d, d // heads)


def encoder_projections(model: nn.Module, layer: int) -> Projections:
    """Those of one layer."""
    shape, attention = encoder_shape(model), _layers(model)[layer].attention.self
    found = []
    for name in ("query", "key"):
        weight, bias = weight_of(getattr(attention, name), f"encoder.layer.{layer}.attention.self.{name}")
        split = (shape.heads, shape.e)
        found.append((weight.unflatten(0, split).permute(0, 2, 1), None if bias is None else bias.unflatten(0, split)))
    (q, b_q), (k, b_k) = found
    return Projections(q, k, b_q, b_k, scale=shape.e**-0.5)


def _layers(model: Any) -> Any:
    body = getattr(model, "bert", model)
    try:
        return body.encoder.layer
    except AttributeError:
        raise InputError(f"{type(model).__name__} is not built as BERT is: it has no encoder.layer") from None
