"""Choosing an implementation, per call, from the tensors: "auto" falls back, an explicit request is met or refused.

    with use_backend("reference"):      # everything inside runs the definition
        y = topk_decode(acts, idx, W_dec)

`reference` is the definition (dense temporaries, any dtype, any device); `torch` is the production path in plain
PyTorch (no dense temporaries; written and measured for CPUs, runs on any device).
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "torch"]
_BACKENDS = ("auto", "reference", "torch")
_BAG_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_requested: ContextVar[str] = ContextVar("midlens_kernels_backend", default="auto")


@contextlib.contextmanager
def use_backend(backend: Backend | str) -> Iterator[None]:
    """Inside the block every operation runs on `backend`, or raises and says why it cannot."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}")
    token = _requested.set(backend)
    try:
        yield
    finally:
        _requested.reset(token)


def backend_for(*tensors: Tensor) -> Literal["reference", "torch"]:
    """The implementation this call gets; raises `RuntimeError` where the one asked for cannot take these tensors."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    why = None
    if mixed := {str(tensor.dtype) for tensor in floating if tensor.dtype != floating[0].dtype}:
        why = f"the tensors mix {floating[0].dtype} and {', '.join(sorted(mixed))}"
    elif floating[0].dtype not in _BAG_DTYPES:
        why = f"{floating[0].dtype} has no embedding bag"
    requested = _requested.get()
    if requested == "torch" and why:
        raise RuntimeError(f"backend 'torch' was requested, but {why}")
    return "reference" if requested == "reference" or why else "torch"


def check_compute(compute: torch.dtype | None) -> None:
    """The dense product needs a floating dtype."""
    if compute is not None and not compute.is_floating_point:
        raise ValueError(f"compute is the dtype of the dense product and must be a floating one, got {compute}")
