"""A transformer-lens `TransformerBridge` over a model's own weights, for what only that library has.

Booting a bridge rewires the module tree that it is given. So it gets a structural copy: new modules, the same
parameters and buffers. The model keeps its modules, keys and hooks, and a change to a weight shows in both.

`enable_compatibility_mode()` on the bridge, which folds norms into the weights, gives the bridge weights of its own and
leaves the model's alone.
"""

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from interp.errors import InputError
from interp.quiet import quiet_transformers

if TYPE_CHECKING:
    from interp.model import HookedModel


def bridge(model: "HookedModel") -> Any:
    """The bridge; transformer-lens must be installed, and the model must be a whole one of transformers' own."""
    model.require_head("the logits of a bridge")
    if len(model.board):
        raise InputError("a bridge cannot be made while edits or captures are in place; leave the `with` block first")
    config: Any = getattr(model.hf, "config", None)
    if config is None:
        raise InputError(f"{type(model.hf).__name__} is no transformers model; a bridge needs its `config`")
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise InputError(f"transformer-lens 3.9 is missing ({error}): pip install 'transformer-lens<4'") from error
    twin: Any = structural_copy(model.hf)
    twin.config._attn_implementation = "eager"  # a bridge shows attention patterns, which fused kernels never form
    with quiet_transformers():
        return build_bridge_from_module(
            twin,
            type(model.hf).__name__,
            hf_config=copy.deepcopy(twin.config),
            tokenizer=copy.deepcopy(model.tokenizer),  # booting sets padding and special tokens on what it is given
            model_name=model.name,
        )


def structural_copy(module: nn.Module) -> nn.Module:
    """A deep copy of the modules around the very same parameters and buffers."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
