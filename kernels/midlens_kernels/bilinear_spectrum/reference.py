"""The definition of `bilinear_spectrum`, in plain PyTorch: both parts of the d x d matrix M, dense, float64."""

import torch
from jaxtyping import Float
from torch import Tensor

from midlens_kernels.bilinear_spectrum.core import BilinearSpectrum


def bilinear_spectrum_reference(left: Float[Tensor, "*h d e"], right: Float[Tensor, "*h d e"]) -> BilinearSpectrum:
    """Singular values of (M - M^T) / 2, one of each pair, and eigenvalues of (M + M^T) / 2, without known zeros.

    Where d > 2e the symmetric part, a difference of two positive semi-definite matrices of rank e, has at most e
    positive and e negative eigenvalues. A pair is averaged, so that its gradient is defined.
    """
    M = left.double() @ right.double().mT
    d, e = left.shape[-2:]
    p = min(d, 2 * e)
    singular = torch.linalg.svdvals((M - M.mT) / 2)[..., : p // 2 * 2]
    signed = torch.linalg.eigvalsh((M + M.mT) / 2).flip(-1)
    filtering = torch.cat([signed[..., : p - p // 2], signed[..., d - p // 2 :]], -1)
    return BilinearSpectrum(singular.unflatten(-1, (p // 2, 2)).mean(-1), filtering)
