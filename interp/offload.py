"""Models whose weights are elsewhere: on the meta device between calls, where accelerate fetches them for each call.

`device_map` with `cpu` or `disk` entries makes such models. Their modules compute as ever; only who reads a parameter
outside its module's forward pass, or asks where the model is, has to look at the hook. Of a model that is cut across
processes (`interp.sharded`) each holds a part.
"""

from typing import Any

import torch
from torch import Tensor, nn


def here(module: nn.Module, name: str) -> Tensor | None:
    """A parameter of a module, whole, where the module computes, or `None` if it has none of that name."""
    value: Any = getattr(module, name, None)
    if hasattr(value, "full_tensor"):  # a DTensor, cut across processes, of which every one has to ask for it
        return value.full_tensor()
    if value is None or not value.is_meta:
        return value
    hook: Any = module._hf_hook
    return hook.weights_map[name].to(hook.execution_device)


def entry_device(body: nn.Module) -> torch.device:
    """Where a model computes its first layer."""
    first = next(body.parameters()).device
    hooks = (getattr(module, "_hf_hook", None) for module in body.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return first if first.type != "meta" else next((torch.device(p) for p in places if p is not None), first)
