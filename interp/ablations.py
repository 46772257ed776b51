"""Ablations as edits: what a component does is seen from what is lost without it.

    zero       x := 0
    mean       x := mean of x over a reference run: over all its real tokens, or at each position over its rows
    resample   x := x of another row of the reference run, at the same position

Zeroing takes the model off its distribution; the mean keeps what is the same for all inputs; resampling also keeps the
spread (Chan et al. 2022, causal scrubbing). Donor rows are at least as long as the row they give to, so that no padding
is read; one seed gives all sites of a call the same donors.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel, Where
from interp.patches import Run, capture, mask_at
from interp.sites import Site

How = Literal["zero", "mean", "resample"]
HOW = ("zero", "mean", "resample")


def ablation(
    model: HookedModel,
    sites: Iterable[Site | str],
    *,
    how: How,
    reference: Run | None = None,
    per_position: bool = False,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[Site, Edit]:
    """The edits that ablate `sites` (whole, or single heads) at `positions` of each row, or everywhere."""
    wanted = Site.parse_all(sites)
    if how not in HOW:
        raise InputError(f"how={how!r}: expected one of {', '.join(HOW)}")
    if (reference is None) != (how == "zero"):
        needs = "takes no reference run" if how == "zero" else "needs a reference run to read from"
        raise InputError(f"{how} ablation {needs}")
    if per_position and how != "mean":
        raise InputError(f"per_position belongs to mean ablation, not to {how}")
    where_to = None if positions is None else tuple(positions)
    if how == "zero" or reference is None:
        return {site: _written(None, where_to) for site in wanted}
    with torch.no_grad():
        values = capture(model, reference, wanted)
    lengths = reference.row_lengths
    if how == "resample":
        return {site: _resampled(value, lengths, where_to, seed) for site, value in values.items()}
    return {site: _written(_mean(value, lengths, per_position), where_to) for site, value in values.items()}


def _mean(x: Tensor, lengths: Int[Tensor, " b"], per_position: bool) -> Tensor:
    """Over the real tokens; float64 sums, for a reference may be long."""
    real = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
    weights = real.view(*real.shape, *[1] * (x.ndim - 2)).double()
    axes = (0,) if per_position else (0, 1)
    return ((torch.where(weights > 0, x.double(), 0.0)).sum(axes) / weights.sum(axes)).to(x.dtype)


def _written(value: Tensor | None, positions: tuple[int, ...] | None) -> Edit:
    """Write zero, one vector, or one vector for each position."""

    def edit(x: Tensor, where: Where) -> Tensor:
        if value is None:
            new = torch.zeros_like(x)
        elif value.ndim == x.ndim - 1:
            if int(where.positions.max()) >= len(value):
                raise InputError(
                    f"the run has {int(where.positions.max()) + 1} positions, the reference of the mean only "
                    f"{len(value)}; give a longer reference, or per_position=False"
                )
            new = value.to(x)[where.positions]
        else:
            new = value.to(x).expand_as(x)
        return _limited(x, new, where, positions)

    return edit


def _resampled(values: Tensor, lengths: Int[Tensor, " n"], positions: tuple[int, ...] | None, seed: int) -> Edit:
    def edit(x: Tensor, where: Where) -> Tensor:
        if x.shape[1] > values.shape[1]:
            raise InputError(
                f"the run has {x.shape[1]} positions, the reference only {values.shape[1]}: no row can give to it"
            )
        rows = donors(where.lengths, lengths.to(where.lengths.device), seed)
        return _limited(x, values.to(x)[rows, : x.shape[1]], where, positions)

    return edit


def donors(needed: Int[Tensor, " b"], held: Int[Tensor, " n"], seed: int) -> Int[Tensor, " b"]:
    """For each row a random other row (by index) of the reference that is at least as long."""
    fits = held[None] >= needed[:, None]
    index = torch.arange(len(held), device=held.device)
    fits &= index[None] != torch.arange(len(needed), device=held.device)[:, None]
    if not bool(fits.any(1).all()):
        short = int((~fits.any(1)).nonzero()[0])
        raise InputError(
            f"row {short} of the run has {int(needed[short])} tokens, and no other row of the reference has as many; "
            f"give a reference with more rows"
        )
    keys = torch.rand(fits.shape, generator=torch.Generator().manual_seed(seed)).to(held.device)
    return torch.where(fits, keys, -1.0).argmax(1)


def _limited(x: Tensor, new: Tensor, where: Where, positions: tuple[int, ...] | None) -> Tensor:
    if positions is None:
        return new
    here = mask_at(where, positions)
    return torch.where(here.view(*here.shape, *[1] * (x.ndim - 2)), new, x)
