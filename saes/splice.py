"""Edits that put something else in place of the rows an SAE is answerable for, and pass the others through unchanged.

Replaced is every position but: padding, position 0 of each sequence, positions the caller leaves out (special tokens,
chat templates), and rows of massive norm. Those are the rows that no store holds and no SAE is trained on.
The axes behind the position (heads) are one row, as in training. Rows passed through keep their bits; replaced ones
are computed in float32 and returned in the stream's dtype.
"""

import math
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from interp.model import Edit
from interp.running import Where

Rows = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]


def replace_rows(
    rows: Rows, *, max_norm: float = math.inf, allowed: Bool[Tensor, "b t"] | None = None, skip_first: bool = True
) -> Edit:
    """An edit that maps each replaceable row with `rows`; pass an SAE to splice it in, `torch.zeros_like` to ablate.

    `max_norm`: rows beyond it are left alone; `allowed`: positions that may be replaced, such as non-special tokens.
    """

    def edit(x: Float[Tensor, "b t *d"], where: Where) -> Float[Tensor, "b t *d"]:
        shape, x = x.shape, x.flatten(2)
        replaced = where.positions < where.lengths[:, None]
        if skip_first:
            replaced = replaced & (where.positions > 0)
        if allowed is not None:
            replaced = replaced & allowed.to(x.device)
        if math.isfinite(max_norm):
            replaced = replaced & (x.float().norm(dim=-1) <= max_norm)
        out = x.clone()
        out[replaced] = rows(x[replaced].float()).to(x.dtype)
        return out.view(shape)

    return edit


def massive_threshold(norms: Float[Tensor, " n"], factor: float = 10.0) -> float:
    """The norm above which a row counts as massive: `factor` times the median."""
    return factor * float(norms.double().median())
