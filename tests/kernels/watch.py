"""What operations do to memory and to the device, read off every call that reaches PyTorch's dispatcher."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "argwhere")


class Waited(AssertionError):
    """An operation read from the device, or gave a result whose shape depends on the data."""


class NeverWaits(TorchDispatchMode):
    """Refuses every operation whose result has a shape that depends on the data, or that reads from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if any(waiting in name for waiting in WAITING):
            raise Waited(str(func))
        if name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1:2])):
            raise Waited(f"{func} by a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            raise Waited(f"{func} without output_size")
        return func(*args, **kwargs)


class Allocated(TorchDispatchMode):
    """Notes the number of elements of every tensor that is made anew (no view, nothing written in place)."""

    def __init__(self, *, but: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.but = but
        self.made: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        name = func.overloadpacket.__name__
        if name not in self.but:
            self.made += [(t.numel(), name) for t in tensors(out) if t.untyped_storage().data_ptr() not in known]
        return out

    def above(self, numel: int) -> list[tuple[int, str]]:
        """Those with more elements than that."""
        return [each for each in self.made if each[0] > numel]


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def under(mode: TorchDispatchMode, call: Callable[[], Any]) -> Any:
    with mode:
        return call()
