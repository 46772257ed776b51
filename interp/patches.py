"""What activation patching is made of: runs, patches that read a site from another run, the edits they come to.

    value at (site, row, position)  :=  value there in `patch.source`        at the patch's positions, else unchanged

A run is tokens with their lengths, right-padded. Positions count from 0; negative ones count back from the last real
token of each row (-1 is that token). Rows that are too short for a position are left as they are there. Runs that read
from each other must have equal shapes and lengths, so that row and position mean the same in both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel, Where
from interp.sites import Point, Site

Positions = tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Run:
    """The input of one forward pass."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"] | None = None
    """Real tokens of each row; `None`: all."""

    @property
    def row_lengths(self) -> Int[Tensor, " b"]:
        """Real tokens of each row."""
        b, t = self.tokens.shape
        return torch.full((b,), t, device=self.tokens.device) if self.lengths is None else self.lengths

    def alike(self, other: "Run") -> None:
        """Refuse another run whose rows and positions are not these."""
        mine, theirs = (tuple(run.tokens.shape) for run in (self, other))
        if mine != theirs or not torch.equal(self.row_lengths.cpu(), other.row_lengths.cpu()):
            raise InputError(
                f"the runs have tokens of shape {mine} and {theirs}, lengths {self.row_lengths.tolist()} and "
                f"{other.row_lengths.tolist()}: expected equal ones, so that a position is the same place in both; "
                f"pair prompts of equal length"
            )


@dataclass(frozen=True)
class Patch:
    """`site` (all heads, or one) reads from `source`, at `positions` of each row or everywhere."""

    site: Site
    source: Run
    positions: Positions = None


def mask_at(where: Where, positions: Sequence[int]) -> Bool[Tensor, "b t"]:
    """Which places of a running batch are among `positions`; padding never is."""
    at, lengths = where.positions, where.lengths[:, None]
    wanted = torch.zeros_like(at, dtype=torch.bool)
    for position in positions:
        wanted |= at == (position if position >= 0 else lengths + position)
    return wanted & (at < lengths)


def check_positions(run: Run, positions: Positions) -> None:
    """Refuse positions that no row has."""
    longest = int(run.row_lengths.max())
    if positions is not None and (not positions or any(not -longest <= p < longest for p in positions)):
        raise InputError(
            f"positions {list(positions)}: expected at least one, each from {-longest} to {longest - 1} (the longest "
            f"row has {longest} tokens); None means all"
        )


def capture(model: HookedModel, run: Run, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """The run's values at `sites`."""
    return model.capture(run.tokens, list(sites), lengths=run.lengths)


def placed(values: Sequence[tuple[Tensor, Positions]]) -> Edit:
    """The edit that writes each of `values` at its positions, one after the other."""

    def edit(x: Tensor, where: Where) -> Tensor:
        for new, positions in values:
            if positions is None:
                x = new.to(x)
            else:
                here = mask_at(where, positions)
                x = torch.where(here.view(*here.shape, *[1] * (x.ndim - 2)), new.to(x), x)
        return x

    return edit


def edits_of(
    base: Run, patches: Iterable[Patch], values: Mapping[Run, Mapping[Site, Float[Tensor, "b t ..."]]]
) -> dict[Site, Edit]:
    """The edits that make a run of `base` read its patches from captured `values`, the later patch of a place last."""
    by_site: dict[Site, list[tuple[Tensor, Positions]]] = {}
    for patch in patches:
        base.alike(patch.source)
        check_positions(base, patch.positions)
        by_site.setdefault(patch.site, []).append((values[patch.source][patch.site], patch.positions))
    return {site: placed(steps) for site, steps in by_site.items()}


def patch_edits(model: HookedModel, base: Run, patches: Sequence[Patch]) -> dict[Site, Edit]:
    """The same, with one pass of each source to capture what is read from it."""
    wanted: dict[Run, dict[Site, None]] = {}
    for patch in patches:
        base.alike(patch.source)
        wanted.setdefault(patch.source, {})[patch.site] = None
    return edits_of(base, patches, {source: capture(model, source, sites) for source, sites in wanted.items()})


def run_patched(model: HookedModel, base: Run, patches: Sequence[Patch]) -> Float[Tensor, "b t v"]:
    """Logits of `base` where each patch reads its site from its own source."""
    with model.edited(patch_edits(model, base, patches)):
        return model(base.tokens, lengths=base.lengths)


def head_sites(model: HookedModel, point: Point = Point.Z, layers: Iterable[int] | None = None) -> list[Site]:
    """One site per head of each layer (all that are loaded): of `z`, `q`, `k` or `v`."""
    if not point.per_head:
        raise InputError(f"{point.short} has no head axis; expected z, q, k or v")
    spec = model.cfg
    heads = spec.n_kv_heads if point in (Point.K, Point.V, Point.ROT_K) else spec.n_heads
    return [
        Site(point, layer, head)
        for layer in (range(model.loaded_layers) if layers is None else layers)
        for head in range(heads)
    ]
