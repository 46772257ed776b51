"""`torch.compile`, one decoder block at a time, that hides nothing: hooks of a block stand outside its compiled inside.

    block(x)  =  hooks of the block's input -> compiled or eager forward -> hooks of its output

The residual stream between blocks is seen as ever. A block whose inside is looked at (a capture or edit at `z.3`, a
hook of the caller's) runs eager for as long as that lasts, and so does every block while gradients are on; the others
stay compiled. All blocks of a model share one compilation, with batch and length as symbols: another shape compiles
nothing anew, but for the first batch of one row (torch treats sizes of 1 as constants).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from interp.anatomy import Anatomy
from interp.errors import InputError


class _Forward:
    """A block's `forward`: compiled where nobody looks inside."""

    def __init__(self, block: nn.Module, compiled: Callable[..., Any]) -> None:
        self.eager: Callable[..., Any] = block.forward
        self.compiled = compiled
        self._inside = [module for module in block.modules() if module is not block]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() or self.looked_into():
            return self.eager(*args, **kwargs)
        return self.compiled(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.eager, memo)  # what is compiled belongs to this block; a copy of it is eager

    def looked_into(self) -> bool:
        """Whether a module inside the block carries a hook."""
        # Hooks as torch.nn keeps them: a few dictionaries per module, which is nothing beside a block.
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._inside)


def compile_blocks(anatomy: Anatomy, hf: nn.Module, **options: Any) -> None:
    """Compile every block of `hf`, once, at its first use; `options` go to `torch.compile`."""
    for block in anatomy.blocks(hf):
        if isinstance(block.forward, _Forward):
            raise InputError("this model's blocks are compiled already: wrap it once, or load it again")
        # Not the block's own `compile`, which would take the hooks of the block inside.
        block.forward = _Forward(block, torch.compile(block.forward, dynamic=True, **options))
