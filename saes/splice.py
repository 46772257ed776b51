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

from interp.errors import InputError
from interp.model import Edit
from interp.running import Where

Rows = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n _"]]


def replace_rows(
    rows: Rows, *, max_norm: float = math.inf, allowed: Bool[Tensor, "b t"] | None = None, skip_first: bool = True
) -> Edit:
    """An edit that maps each replaceable row with `rows`; pass an SAE to splice it in, `torch.zeros_like` to ablate.

    `max_norm`: rows beyond it are left alone; `allowed`: positions that may be replaced, such as non-special tokens.
    """

    def edit(x: Float[Tensor, "b t *d"], where: Where) -> Float[Tensor, "b t *d"]:
        shape, x = x.shape, x.flatten(2)
        replaced = _ordinary(where, allowed, skip_first) & _short(x, max_norm)
        out = x.clone()
        out[replaced] = rows(x[replaced].float()).to(x.dtype)
        return out.view(shape)

    return edit


def replace_from(
    rows: Rows,
    *,
    max_norms: tuple[float, float] = (math.inf, math.inf),
    allowed: Bool[Tensor, "b t"] | None = None,
    skip_first: bool = True,
) -> tuple[Edit, Edit]:
    """Two edits for two sites of one pass: the first changes nothing, the second writes `rows` of what the first saw.

    Pass a transcoder to splice it in. `max_norms` are of the site read and of the site written: a row beyond either is
    left alone.
    """
    seen: list[Tensor] = []

    def remember(x: Float[Tensor, "b t *d"], where: Where) -> Float[Tensor, "b t *d"]:
        seen[:] = [x.flatten(2)]
        return x

    def write(y: Float[Tensor, "b t *d"], where: Where) -> Float[Tensor, "b t *d"]:
        if not seen:
            raise InputError(
                "the site a transcoder writes runs before the site it reads; its output cannot be put there"
            )
        x = seen.pop().to(y.device)
        shape, y = y.shape, y.flatten(2)
        replaced = _ordinary(where, allowed, skip_first) & _short(x, max_norms[0]) & _short(y, max_norms[1])
        out = y.clone()
        out[replaced] = rows(x[replaced].float()).to(y.dtype)
        return out.view(shape)

    return remember, write


def _ordinary(where: Where, allowed: Bool[Tensor, "b t"] | None, skip_first: bool) -> Bool[Tensor, "b t"]:
    replaced = where.positions < where.lengths[:, None]
    if skip_first:
        replaced = replaced & (where.positions > 0)
    return replaced if allowed is None else replaced & allowed.to(replaced.device)


def _short(x: Float[Tensor, "b t d"], max_norm: float) -> Bool[Tensor, "b t"]:
    return x.float().norm(dim=-1) <= max_norm


def massive_threshold(norms: Float[Tensor, " n"], factor: float = 10.0) -> float:
    """The norm above which a row counts as massive: `factor` times the median."""
    return factor * float(norms.double().median())
