"""What a model computes in when nobody says: bfloat16 where the hardware multiplies it, float32 elsewhere.

CUDA with bfloat16 (compute capability 8.0 and up)    bfloat16
CPU with AVX-512-BF16 or AMX                          bfloat16, about twice float32's throughput
everything else                                       float32 (a CPU without them is slower in 16 bits)
"""

from typing import Any

import torch


def default_dtype(device: str | torch.device) -> torch.dtype:
    """The dtype to compute in on `device`."""
    where = torch.device(device)
    fast = cpu_has_bfloat16() if where.type == "cpu" else where.type == "cuda" and cuda_has_bfloat16(where)
    return torch.bfloat16 if fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16."""
    own: Any = torch.cpu
    if hasattr(own, "get_capabilities"):
        found = own.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # before torch 2.12; AMX on CPUs implies bfloat16
    return any(getattr(own, name)() for name in names if hasattr(own, name))


def cuda_has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies bfloat16 itself rather than by way of float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
