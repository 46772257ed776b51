"""Activations that are in memory already, as `saes.train.fit`, `saes.sweep.sweep` and `saes.row_quality.measure_rows`
take those of a store.

    rows = TensorRows({"blocks.15.hook_resid_post": x}, model="meta-llama/Llama-3.1-8B")           x: n d
    sae = fit(rows, TrainConfig(d_sae=16_384), "runs/sae", site="blocks.15.hook_resid_post")

Several sites (for transcoders and crosscoders) hold the same tokens, row by row. Rows are hashed once, so that a run
which goes on after an interruption is refused on other activations.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.sites import Site
from interp.store import ActivationBatch

_BLOCK = 2**16  # rows hashed at once


class TensorRows:
    """Rows of one or several sites; an epoch's order is a permutation that depends on seed and epoch alone."""

    path = "these rows"
    """What messages call them."""

    def __init__(
        self,
        acts: Mapping[Site | str, Float[Tensor, "n ..."]],
        *,
        model: str | None = None,
        doc: Int[Tensor, " n"] | None = None,
        position: Int[Tensor, " n"] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """`model`: its name, which a trained SAE carries; `doc` and `position`: where each row comes from, by default
        one document; `about`: more of its provenance, under the names of `interp.store.StoreSpec` (`revision`,
        `corpus`, `bos`, `max_length`, ...)."""
        self.acts = {Site.parse(site): x.detach() for site, x in acts.items()}
        n = len(next(iter(self.acts.values()))) if self.acts else 0
        self.doc = torch.zeros(n, dtype=torch.int32) if doc is None else doc.to(torch.int32)
        self.position = torch.arange(n, dtype=torch.int32) if position is None else position.to(torch.int32)
        flat = {str(site) for site, x in self.acts.items() if x.ndim < 2}
        if not self.acts or flat or {len(x) for x in (*self.acts.values(), self.doc, self.position)} != {n}:
            named = {**self.acts, "doc": self.doc, "position": self.position}
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items()) if self.acts else "no site"
            raise InputError(f"expected one row for each token at every site, as many at each; got {shapes}")
        self.manifest: dict[str, Any] = {
            "format": "midlens-rows",
            "row_shapes": {str(site): list(x.shape[1:]) for site, x in self.acts.items()},
            "parts": [{"spec": ({} if model is None else {"model": model}) | dict(about or {})}],
            "sha256": {str(site): _sha256(x) for site, x in self.acts.items()},
        }

    def __len__(self) -> int:
        return len(next(iter(self.acts.values())))

    def site(self, site: Site | str) -> Site:
        """`site`, after making sure that it is here."""
        if (wanted := Site.parse(site)) not in self.acts:
            raise InputError(f"{self.path} are of {', '.join(map(str, self.acts))}, not {wanted}")
        return wanted

    def rows(self, site: Site | str, start: int, stop: int) -> Float[Tensor, "n ..."]:
        """Rows start..stop of one site."""
        return self.acts[self.site(site)][start:stop]

    def keys(self, start: int, stop: int) -> ActivationBatch:
        """Document and position of rows start..stop (`acts` is empty; tokens are not known, and -1)."""
        return self._batch({}, torch.arange(start, min(stop, len(self))))

    def batches(
        self, sites: Sequence[Site | str], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """One epoch of shuffled batches, from batch `first` on; the last may be smaller."""
        wanted = [self.site(site) for site in sites]
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order[first * size :].split(size):
            yield self._batch({site: self.acts[site][rows.to(self.acts[site].device)] for site in wanted}, rows)

    def _batch(self, acts: dict[Site, Tensor], rows: Int[Tensor, " n"]) -> ActivationBatch:
        unknown = torch.full_like(rows, -1, dtype=torch.int32)
        return ActivationBatch(acts, unknown, self.doc[rows], self.position[rows])


def _sha256(x: Tensor) -> str:
    sha = hashlib.sha256(f"{x.dtype}|{tuple(x.shape)}|".encode())
    for block in x.split(_BLOCK):
        sha.update(block.contiguous().cpu().view(torch.uint8).numpy().tobytes() if block.numel() else b"")
    return sha.hexdigest()
