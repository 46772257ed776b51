"""The losses of SAE training, as pure functions; all are fractions of a variance, so 1 means "explains nothing".

    reconstruction = mean over tokens |x - x^|^2 / variance       variance: of the activations, fixed for a run
    auxiliary      = |e - e^|^2 / |e|^2 * min(a / k_aux, 1)       e = x - x^, detached

e^ is what the `a` dead features make of the input: `relu(top k_aux of x W_enc[:, dead] + b_enc[dead]) W_dec[dead]`. It
trains nothing but the rows of the dead features, which have no gradient otherwise. Gao et al. 2024, appendix A.2,
https://arxiv.org/abs/2406.04093.
"""

import torch
from jaxtyping import Float, Int
from midlens_kernels import topk_decode, topk_encode
from torch import Tensor


def reconstruction(error: Float[Tensor, "n d"], kept: Float[Tensor, " n"], variance: float) -> Float[Tensor, ""]:
    """Mean squared error over the kept tokens (weight 1, others 0), as a fraction of the variance."""
    return (error.square().sum(1) * kept).sum() / (kept.sum().clamp(min=1) * variance)


def auxiliary(
    centred: Float[Tensor, "n d"],
    error: Float[Tensor, "n d"],
    dead: Int[Tensor, " a"],
    encoder: Float[Tensor, "f d"],
    b_enc: Float[Tensor, " f"],
    W_dec: Float[Tensor, "f d"],
    *,
    k_aux: int,
) -> Float[Tensor, ""]:
    """AuxK: how badly the dead features predict the error that the others leave.

    `centred` is what the encoder reads, `error` the residual with zero rows for tokens that do not count; both are
    targets here and get no gradient. Only the rows of dead features are gathered.
    """
    centred, error = centred.detach(), error.detach()
    rows, bias, decoder = encoder[dead], b_enc[dead], W_dec[dead]
    if len(dead) <= k_aux:  # all are chosen: two dense products, n a <= n k_aux
        predicted = torch.addmm(bias, centred, rows.T).relu() @ decoder
    else:
        acts, idx = topk_encode(centred, rows.T, bias, k_aux)
        predicted = topk_decode(acts, idx, decoder)
    kept = (error.square().sum(1) > 0).to(error.dtype)
    missed = ((error - predicted).square().sum(1) * kept).sum()
    tiny = torch.finfo(error.dtype).tiny
    return missed / error.square().sum().clamp(min=tiny) * min(len(dead) / k_aux, 1.0)
