"""Choosing an implementation, per call, from the tensors: "auto" falls back, an explicit request is met or refused.

    with use_backend("reference"):      # everything inside runs the definition
        y = topk_decode(acts, idx, W_dec)

`reference` is the definition (dense temporaries, any dtype, any device); `torch` is the production path in plain
PyTorch (no dense temporaries; written and measured for CPUs, runs on any device); `triton` is the GPU kernel (float32,
float16 and bfloat16; on a CPU only in Triton's interpreter, `TRITON_INTERPRET=1`). "auto" takes a Triton kernel only
where it has been measured on a GPU and found faster (`FASTER`); the other ones have to be asked for.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "torch", "triton"]
_BACKENDS = ("auto", "reference", "torch", "triton")
_BAG_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WITH_TRITON = frozenset({"topk_encode", "topk_decode", "threshold_select", "bilinear_spectrum"})
FASTER: frozenset[str] = frozenset()
"""Operations whose Triton kernel "auto" may choose: `benchmarks/gpu.py` measured them on a GPU. None so far."""
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


def backend_for(op: str, *tensors: Tensor, no_triton: str | None = None) -> Literal["reference", "torch", "triton"]:
    """The implementation of `op` for this call; raises `RuntimeError` where the one asked for cannot take it.

    `no_triton`: why the Triton kernel cannot take it, as far as that does not show in the tensors.
    """
    requested = _requested.get()
    if requested == "reference":
        return "reference"
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    why = None
    if mixed := {str(tensor.dtype) for tensor in floating if tensor.dtype != floating[0].dtype}:
        why = f"the tensors mix {floating[0].dtype} and {', '.join(sorted(mixed))}"
    elif floating[0].dtype not in _BAG_DTYPES:
        why = f"{floating[0].dtype} is no dtype it takes"
    if requested == "torch" and why:
        raise RuntimeError(f"backend 'torch' was requested, but {why}")
    if requested == "triton" or (requested == "auto" and op in FASTER):
        why_no_triton = why or _no_triton(op, *tensors) or no_triton
        if requested == "triton" and why_no_triton:
            raise RuntimeError(f"backend 'triton' was requested, but {why_no_triton}")
        if why_no_triton is None:
            return "triton"
    return "reference" if why else "torch"


def _no_triton(op: str, *tensors: Tensor) -> str | None:
    """Why the Triton kernel of `op` cannot serve, or None."""
    if op not in WITH_TRITON:
        return f"{op} has no Triton kernel"
    if bad := [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype not in _TRITON_DTYPES]:
        return f"{bad[0]} is no dtype it takes"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    off = [tensor.device.type for tensor in tensors if tensor.device.type != "cuda"]
    if off and os.environ.get("TRITON_INTERPRET") != "1":
        return f"a tensor is on {off[0]}: Triton needs a GPU, or TRITON_INTERPRET=1 from the start of the process"
    return None


def beyond_triton(what: str, value: int, limit: int, product: torch.dtype) -> str | None:
    """Why an encoder's Triton kernel, which takes `what` up to `limit`, cannot take this call, or None."""
    if value > limit:
        return f"its kernel takes {what} up to {limit:,}, got {value:,}: use backend 'torch'"
    if product not in _TRITON_DTYPES:
        return f"its kernel takes products in float32, float16 or bfloat16, got {product}: use backend 'torch'"
    return None


def check_compute(compute: torch.dtype | None) -> None:
    """The dense product needs a floating dtype."""
    if compute is not None and not compute.is_floating_point:
        raise ValueError(f"compute is the dtype of the dense product and must be a floating one, got {compute}")
