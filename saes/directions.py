"""Directions of features in the stream they write to: decoder rows, for steering, projection and comparison.

    unit:  W_dec[j] / |W_dec[j]|        raw:  W_dec[j]

Unit rows are the default, because the length of a row is a convention of the tool that trained the SAE: Llama Scope's
folded input scale sqrt(d) / norm leaves rows that much too short (5.9 times at layer 15), so `alpha * W_dec[j]` would
steer as much less than the same alpha with another suite.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from saes.sae import SAE


def directions(
    sae: SAE, features: Sequence[int] | Int[Tensor, " a"] | Bool[Tensor, " f"] | int, *, unit: bool = True
) -> Float[Tensor, "a d_out"]:
    """The decoder rows of some features, detached: by index, or by a mask of all features (`Bool f`).

    A feature without direction (a row of zeros) has no unit, and is refused.
    """
    n = sae.config.d_sae
    index = _indices(features, n)
    if bad := [j for j in index.tolist() if not 0 <= j < n]:
        raise InputError(f"features are counted from 0 to {n - 1}, got {bad[0]}{' and others' if len(bad) > 1 else ''}")
    rows = sae.W_dec.detach()[index.to(sae.W_dec.device)]
    if not unit:
        return rows
    norms = rows.norm(dim=1)
    if empty := index[(norms == 0).cpu()].tolist():
        raise InputError(f"feature {empty[0]} has a decoder row of zeros, so it has no direction")
    return rows / norms[:, None]


def _indices(features: object, n: int) -> Int[Tensor, " a"]:
    """The features meant, by number; numbers that are not whole and masks of another length mean none."""
    given = torch.as_tensor(features).reshape(-1)
    if given.dtype == torch.bool:
        if len(given) != n:
            raise InputError(f"a mask of features has {n} entries, one for each, got {len(given)}")
        return given.nonzero()[:, 0]
    if len(given) and (given.is_floating_point() or given.is_complex()):
        raise InputError(f"features are whole numbers from 0 to {n - 1}, or a mask of all, got {given.dtype} values")
    return given.to(torch.int64)
