"""Production `threshold_encode` in plain PyTorch: a scan of the dense product in chunks of tokens, sparse backward."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midlens_kernels._sparse_product import entries, pre_activations


@torch.no_grad()
def _select(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor, compute: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    values, idx, places = [x.new_empty(0)], [], []
    f = len(b_enc)
    for start, pre in pre_activations(x, W_enc, b_enc, compute):
        at = (pre > floor).view(-1).nonzero()[:, 0]
        values.append(pre.view(-1)[at].to(x.dtype))
        idx.append(at % f)
        places.append(at + start * f)
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    edges = torch.arange(len(x) + 1, device=x.device) * f
    return torch.cat(values), torch.cat([none, *idx]), torch.searchsorted(torch.cat([none, *places]), edges)


def threshold_encode_cpu(
    x: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d f"],
    b_enc: Float[Tensor, " f"],
    floor: Float[Tensor, " f"],
    *,
    compute: torch.dtype | None = None,
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " bags"]]:
    """Encode tokens; pre-activations live only for one chunk, and nothing dense is kept for the backward pass."""
    values, idx, offsets = _select(x, W_enc, b_enc, floor, compute)
    return entries(x, W_enc, b_enc, values, idx, offsets), idx, offsets
