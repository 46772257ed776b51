"""Activation patching: which places of a run carry the difference between two prompts.

    denoising:   run corrupt, one site reads from clean       how much of the metric does it restore?
    noising:     run clean, one site reads from corrupt       how much does it destroy?

    share = Σ_rows (metric - start) / Σ_rows (end - start)    0: as unpatched, 1: as the other run

Sites may be whole tensors or single heads, each patched at all positions or at one position at a time. A metric is any
function of the logits (b t v) that gives one number per row. Restoring shows what suffices, destroying what is needed:
the two differ where components back each other up (Heimersheim and Nanda 2024, arXiv 2404.15255). First used by Vig et
al. 2020 (causal mediation) and Meng et al. 2022 (causal tracing).

Single patches are values, `interp.patches.Patch`; paths are in `interp.path_patching`, ablations in `interp.ablations`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.ablations import ablation as ablation
from interp.errors import InputError
from interp.model import HookedModel
from interp.patches import Patch as Patch
from interp.patches import Positions, capture, check_positions, edits_of
from interp.patches import Run as Run
from interp.patches import head_sites as head_sites
from interp.patches import patch_edits as patch_edits
from interp.patches import run_patched as run_patched
from interp.path_patching import Path as Path
from interp.path_patching import edits_along
from interp.path_patching import path_edits as path_edits
from interp.progress import bar
from interp.sites import Site
from interp.typed import built

Metric = Callable[[Tensor], Tensor]
Direction = Literal["denoising", "noising"]
DIRECTIONS = ("denoising", "noising")


@dataclass(frozen=True)
class PatchTable:
    """What every patch did to the metric, per row of the batch."""

    direction: Direction
    sites: tuple[Site, ...]
    positions: Positions
    """The columns; `None`: one column, all positions patched."""
    values: Float[np.ndarray, "n k b"]
    """The metric by site, position and row; NaN where the row is too short for the position."""
    clean: Float[np.ndarray, " b"]
    corrupt: Float[np.ndarray, " b"]

    @property
    def share(self) -> Float[np.ndarray, "n k"]:
        """How far each patch moves the metric from its own run to the run it reads from."""
        start, end = (self.corrupt, self.clean) if self.direction == "denoising" else (self.clean, self.corrupt)
        there = ~np.isnan(self.values)
        moved = np.where(there, self.values - start, 0.0).sum(-1)
        return moved / np.where(there, end - start, 0.0).sum(-1)

    def to_json(self) -> dict[str, Any]:
        """Lists and names; NaN as null."""
        rows = [[[None if math.isnan(x) else x for x in row] for row in site] for site in self.values.tolist()]
        return {
            "direction": self.direction,
            "sites": [str(site) for site in self.sites],
            "positions": None if self.positions is None else list(self.positions),
            "values": rows,
            "clean": self.clean.tolist(),
            "corrupt": self.corrupt.tolist(),
        }

    @classmethod
    def from_json(cls, fields: Any) -> "PatchTable":
        """What `to_json` gave; refuses anything else."""
        plain = built(_Plain, fields, "a table of patches", null_is_nan=True)
        clean, corrupt = np.array(plain.clean), np.array(plain.corrupt)
        columns = 1 if plain.positions is None else len(plain.positions)
        shape = (len(plain.sites), columns, len(clean))
        widths = {len(corrupt), *(len(row) for site in plain.values for row in site)}
        placed = len(plain.values) == len(plain.sites) and all(len(site) == columns for site in plain.values)
        if not placed or widths != {len(clean)}:
            raise InputError(
                f"a table of patches of {shape[0]} sites, {columns} positions and {len(clean)} rows of a batch "
                "has other numbers of values; was it cut off?"
            )
        sites = tuple(Site.parse(name) for name in plain.sites)
        values = np.array(plain.values, np.float64).reshape(shape)
        return cls(plain.direction, sites, plain.positions, values, clean, corrupt)


@dataclass(frozen=True)
class _Plain:
    """A table of patches as JSON has it."""

    direction: Direction
    sites: tuple[str, ...]
    positions: tuple[int, ...] | None
    values: tuple[tuple[tuple[float, ...], ...], ...]
    clean: tuple[float, ...]
    corrupt: tuple[float, ...]


def logit_difference(
    right: Int[Tensor, " b"],
    wrong: Int[Tensor, " b"] | None = None,
    *,
    lengths: Int[Tensor, " b"] | None = None,
) -> Metric:
    """The metric "logit of each row's right token, less that of its wrong one", at the row's last real token."""

    def metric(logits: Tensor) -> Tensor:
        b, t, _ = logits.shape
        rows = torch.arange(b, device=logits.device)
        last = logits[rows, t - 1 if lengths is None else lengths.to(logits.device) - 1]
        found = last[rows, right.to(logits.device)]
        return found if wrong is None else found - last[rows, wrong.to(logits.device)]

    return metric


@torch.no_grad()
def activation_patching(
    model: HookedModel,
    clean: Run,
    corrupt: Run,
    sites: Iterable[Site | str],
    metric: Metric,
    *,
    direction: Direction = "denoising",
    positions: Literal["all", "each"] | Sequence[int] = "all",
    show: bool | None = None,
) -> PatchTable:
    """Patch every site by itself: at all positions at once, at each, or at each of those listed."""
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r}: expected one of {', '.join(DIRECTIONS)}")
    wanted = distinct_sites(sites)
    clean.alike(corrupt)
    base, source = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
    columns = _columns(base, positions)
    values = {source: capture(model, source, wanted)}
    found = np.full((len(wanted), len(columns), len(base.tokens)), np.nan)
    with bar(len(wanted) * len(columns), "activation patching", unit="pass", show=show) as progress:
        for i, site in enumerate(wanted):
            for j, column in enumerate(columns):
                with model.edited(edits_of(base, [Patch(site, source, column)], values)):
                    row = measured(model, base, metric)
                found[i, j] = np.where(_reaches(base, column), row, np.nan)
                progress.update(1)
    return PatchTable(
        direction,
        tuple(wanted),
        None if columns == [None] else tuple(column[0] for column in columns if column is not None),
        found,
        *(measured(model, run, metric) for run in (clean, corrupt)),
    )


@torch.no_grad()
def path_patching(
    model: HookedModel,
    clean: Run,
    corrupt: Run,
    senders: Iterable[Site | str],
    receivers: Iterable[Site | str],
    metric: Metric,
    *,
    positions: Sequence[int] | None = None,
    receiver_positions: Sequence[int] | None = None,
    through_mlps: bool = False,
    show: bool | None = None,
) -> PatchTable:
    """Noising through one path at a time: each sender's corrupt value reaches the receivers, and only through them.

    See `interp.path_patching.Path` for what is held fixed.
    """
    wanted, ends = distinct_sites(senders), tuple(distinct_sites(receivers))
    own, theirs = (None if p is None else tuple(p) for p in (positions, receiver_positions))
    clean.alike(corrupt)
    paths = [Path(sender, ends, own, theirs, through_mlps) for sender in wanted]
    held = list(dict.fromkeys(site for path in paths for site in path.held(model)))
    outputs = capture(model, clean, held) if held else {}
    values = capture(model, corrupt, wanted)
    found = np.zeros((len(wanted), 1, len(clean.tokens)))
    with bar(len(wanted), "path patching", unit="path", show=show) as progress:
        for i, path in enumerate(paths):
            with model.edited(edits_along(model, clean, path, outputs, values)):
                found[i, 0] = measured(model, clean, metric)
            progress.update(1)
    ends_of_scale = (measured(model, run, metric) for run in (clean, corrupt))
    return PatchTable("noising", tuple(wanted), None, found, *ends_of_scale)


def measured(model: HookedModel, run: Run, metric: Metric) -> Float[np.ndarray, " b"]:
    """The metric of a run as it stands (inside `edited`: edited)."""
    found = metric(model(run.tokens, lengths=run.lengths))
    b = len(run.tokens)
    if not isinstance(found, Tensor) or found.shape != (b,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the metric gave {got}: expected a tensor of {b} numbers, one for each row of the batch")
    return found.double().cpu().numpy()


def distinct_sites(sites: Iterable[Site | str]) -> list[Site]:
    """The sites, at least one, none twice."""
    wanted = Site.parse_all(sites)
    if not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"sites {', '.join(map(str, wanted)) or '(none)'}: expected at least one, and none twice")
    return wanted


def _columns(base: Run, positions: str | Sequence[int]) -> list[Positions]:
    if positions == "all":
        return [None]
    if positions == "each":
        return [(p,) for p in range(int(base.row_lengths.max()))]
    if isinstance(positions, str):
        raise InputError(f"positions={positions!r}: expected 'all', 'each' or a list of positions")
    check_positions(base, tuple(positions))
    return [(p,) for p in positions]


def _reaches(base: Run, column: Positions) -> np.ndarray:
    lengths = base.row_lengths.cpu().numpy()
    if column is None:
        return np.ones(len(lengths), bool)
    return lengths > column[0] if column[0] >= 0 else lengths >= -column[0]
