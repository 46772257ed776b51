"""What one site gives to a fit: rows of source, target, held-out and neutral prompts, and the neutral moments.

All of them are taken at the same positions, through the same edits. Neutral prompts may be many: their moments stream,
and only the first `NEUTRAL_ROWS` of them are kept as rows (for tests, probes and what depends on more than moments).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.moments import Moments, Positions, PromptRows, prompt_rows, text_batches
from interp.sites import Site
from interp.steering.diagnostics import Rows

NEUTRAL_ROWS = 2000


@dataclass(frozen=True)
class Prompts:
    """Texts or chats by role, and how they are fed."""

    source: Sequence[Any]
    target: Sequence[Any] | None = None
    neutral: Sequence[Any] | None = None
    held_out: Sequence[Any] | None = None
    """Of the source kind."""
    kept: Sequence[Sequence[Any]] = ()
    """One set for each concept to be left alone."""
    positions: Positions = "last"
    prepend_bos: bool | None = None
    generation_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "target", "neutral", "held_out"):
            given = getattr(self, name)
            if isinstance(given, str) or (given is not None and not len(given)):
                raise InputError(f"{name}: expected a list of prompts with at least one in it, got {given!r}")


@dataclass(frozen=True, eq=False)
class SiteData:
    """Everything a fit looks at, at one site."""

    source: Rows
    target: Rows | None
    neutral: Rows | None
    held_out: Rows | None
    kept: tuple[Rows, ...]
    moments: Moments
    """Neutral; of source and target together where no neutral prompts were given."""

    @property
    def reference(self) -> Rows:
        """What the source is told from: the target, or neutral prompts without one."""
        found = self.target if self.target is not None else self.neutral
        assert found is not None
        return found


def gather(
    model: HookedModel, prompts: Prompts, sites: list[Site], *, edits: Mapping[Site, Edit] | None = None
) -> dict[Site, SiteData]:
    """The data of all `sites`, in one pass over every set of prompts."""

    def rows(texts: Sequence[Any] | None) -> dict[Site, Rows]:
        return {} if texts is None else concept_rows(_run(model, prompts, texts, sites, edits))

    source, target, held_out = (rows(texts) for texts in (prompts.source, prompts.target, prompts.held_out))
    kept = [rows(texts) for texts in prompts.kept]
    moments, neutral = _neutral(model, prompts, sites, edits)
    return {
        site: SiteData(
            source[site],
            target.get(site),
            neutral.get(site),
            held_out.get(site),
            tuple(one[site] for one in kept),
            moments.get(site) or _both(source[site], target[site]),
        )
        for site in sites
    }


def _run(
    model: HookedModel, prompts: Prompts, texts: Sequence[Any], sites: list[Site], edits: Mapping[Site, Edit] | None
) -> Iterable[PromptRows]:
    batches = text_batches(model, texts, prepend_bos=prompts.prepend_bos, generation_prompt=prompts.generation_prompt)
    return prompt_rows(model, batches, sites, positions=prompts.positions, edits=edits)


def concept_rows(batches: Iterable[PromptRows]) -> dict[Site, Rows]:
    """One row a prompt: the mean over its positions."""
    x: dict[Site, list[Tensor]] = {}
    weights: dict[Site, list[Tensor]] = {}
    for batch in batches:
        _, place, counts = batch.prompt.unique(return_inverse=True, return_counts=True)
        for site, acts in batch.acts.items():
            wide = acts if acts.device.type != "mps" else acts.cpu()
            sums = wide.new_zeros(len(counts), acts.shape[-1], dtype=torch.float64)
            sums.index_add_(0, place.to(wide.device), wide.double())
            count = counts.to(sums)
            x.setdefault(site, []).append(sums / count[:, None])
            weights.setdefault(site, []).append(count)
    found = {site: Rows(torch.cat(parts), torch.cat(weights[site])) for site, parts in x.items()}
    for site, one in found.items():
        if not bool(one.x.isfinite().all()):
            raise InputError(
                f"activations at {site} hold NaN or infinite values: the model's dtype overflowed (try float32 or "
                "bfloat16), or an edit before this site returned them"
            )
    if not found or not all(len(one) for one in found.values()):
        raise InputError("no prompt has a position that counts: expected prompts of two tokens or more")
    return found


def _neutral(
    model: HookedModel, prompts: Prompts, sites: list[Site], edits: Mapping[Site, Edit] | None
) -> tuple[dict[Site, Moments], dict[Site, Rows]]:
    if prompts.neutral is None:
        return {}, {}
    moments: dict[Site, Moments] = {}
    kept: list[PromptRows] = []
    prompts_kept = 0
    for batch in _run(model, prompts, prompts.neutral, sites, edits):
        number = len(batch.prompt.unique())
        for site, x in batch.acts.items():
            moments.setdefault(site, Moments.of(x.shape[-1], device=x.device)).update(x, groups=number)
        if prompts_kept < NEUTRAL_ROWS:
            kept.append(batch)
            prompts_kept += number
    return moments, concept_rows(kept)


def _both(source: Rows, target: Rows) -> Moments:
    """Moments of both sets about their common mean: the read-out is the same as with the scatter within the sets."""
    return Moments.from_rows(torch.cat([source.x, target.x]))
