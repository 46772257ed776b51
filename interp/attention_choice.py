"""Which of transformers' attention implementations a pass runs with.

What the model was built with stands, but for models that soft-cap their attention scores (Gemma 2): there transformers
runs its slow eager attention, because SDPA has no soft-cap and would drop it in silence. FlexAttention has one and
agrees with eager to 5e-6; it has no backward pass on CPUs. So: FlexAttention on a GPU when no gradient is needed, eager
otherwise. An implementation that the caller chose other than eager is kept, unless it cannot cap.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from interp.anatomy import ModelSpec
from interp.errors import InputError

_CAPPING = ("eager", "flex_attention", "flash_attention_2", "flash_attention_3")


@contextmanager
def attention_for(spec: ModelSpec, hf: nn.Module, device: torch.device) -> Iterator[None]:
    """Set the implementation for one pass, and put the model's own back afterwards."""
    config = getattr(hf, "config", None)
    if spec.attn_cap is None or config is None:
        yield
        return
    own = config._attn_implementation
    if own not in _CAPPING:
        raise InputError(
            f"attention implementation {own!r} would drop the soft-cap of {spec.family}; "
            f"expected one of {', '.join(_CAPPING)}"
        )
    use_flex = own == "eager" and device.type == "cuda" and not torch.is_grad_enabled()
    if not use_flex:
        yield
        return
    config._attn_implementation = "flex_attention"
    try:
        yield
    finally:
        config._attn_implementation = own
