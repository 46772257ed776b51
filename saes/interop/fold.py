"""Conventions of other tools turned into weights: scaled inputs and outputs, a bias subtracted before encoding.

With weights under SAELens's names, for an SAE that computes

    z = (x s_in - c) W_enc + b_enc ,      x^ = (codes W_dec + b_dec) / s_out

and selects by z, the same codes and reconstructions come from

    W_enc <- s_in W_enc,   b_enc <- b_enc - c W_enc,   W_dec <- W_dec / s_out,   b_dec <- b_dec / s_out

Thresholds are compared with z, which does not change, so they stay. The tables given are changed, so that no more than
one copy of a large matrix is alive; their tensors are not, as they may be a file's own pages.
"""

from torch import Tensor


def fold_scales(weights: dict[str, Tensor], *, s_in: float, s_out: float) -> dict[str, Tensor]:
    """The same table, for inputs that are not scaled by `s_in` any more, and outputs not divided by `s_out`."""
    for name, factor in (("W_enc", s_in), ("W_dec", 1 / s_out), ("b_dec", 1 / s_out)):
        weights[name] = weights[name] * factor
    return weights


def fold_subtraction(weights: dict[str, Tensor], bias: Tensor) -> dict[str, Tensor]:
    """The same table, for inputs from which `bias` (`d`) is not subtracted any more."""
    weights["b_enc"] = weights["b_enc"] - bias @ weights["W_enc"]
    return weights
