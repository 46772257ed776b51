"""From the host to a device without waiting for what the device still does.

    x = to_device(x, device)          a copy towards a GPU goes through pinned memory; elsewhere `x.to(device)`

A copy from ordinary memory begins when all work queued before it is done, and the host waits for that, `non_blocking`
or not. PyTorch keeps pinned blocks for the next call, and no block is used again before its copy is over.
"""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, in the same dtype; `x` itself where it is there already."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
