"""How the members of a sweep are evaluated: each on held-out rows, and all together in a model.

The model runs clean and zero-ablated once for all SAEs of a batch of text, and once with each of them spliced in:
N + 2 runs for N members, where evaluating one after the other takes 3 N.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from interp.effects import Effects
from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import digest, finite
from interp.tokenfile import TokenFile
from saes.belongs import other_model
from saes.evaluate import combine, measure_losses
from saes.fitting import Rows, TrainedSites
from saes.row_quality import Stored, measure_rows, thresholds_of
from saes.sae import SAE
from saes.widths import Shape


class Measure:
    """How members are evaluated; `key` changes with anything that changes the figures."""

    def __init__(
        self,
        store: Stored,
        sites: TrainedSites,
        model: HookedModel | None,
        tokens: TokenFile | None,
        max_ce_tokens: int,
        device: str | torch.device,
        *,
        rows: Rows,
    ) -> None:
        """Refuses, before anything is trained on `rows`, what members could not be evaluated on afterwards."""
        self.store, self.sites, self.model, self.tokens = store, sites, model, tokens
        self.max_ce_tokens, self.device = max_ce_tokens, device
        text = None if model is None or tokens is None else [model.name, model.revision, tokens.digest, max_ce_tokens]
        self.key = digest([store.manifest, text])
        self._check(rows)

    def _check(self, rows: Rows) -> None:
        """Rows at all sites, of the same model."""
        store = self.store
        if len(store) == 0:
            raise InputError(f"{store.path} holds no activations to evaluate on; extract some first")
        for site in self.sites.all:
            store.site(site)
        trained = (rows.manifest.get("parts") or [{}])[0].get("spec", {}).get("model")
        for part in store.manifest["parts"]:
            if other_model(trained, own := part["spec"].get("model")):
                raise InputError(
                    f"{store.path} holds activations of {own}, the rows to train on are of {trained}: give "
                    "held-out rows of the same model"
                )
        if other_model(trained, self.model):
            name = None if self.model is None else self.model.name
            raise InputError(f"next-token loss was asked for in {name}, the rows to train on are of {trained}")

    def check_widths(self, shape: Shape) -> None:
        """Refuse a store of other widths than the rows turned out to have."""
        found = [math.prod(self.store.manifest["row_shapes"][str(site)]) for site in self.sites.all]
        expected = [*shape.read, *([] if shape.written is None else [shape.written])]
        if found != expected:
            raise InputError(
                f"{self.store.path} holds activations of width {' and '.join(map(str, found))}, the rows to train on "
                f"have {' and '.join(map(str, expected))}: give held-out rows of the same model"
            )

    def losses(self, saes: Mapping[str, Path], *, show: bool | None = False) -> dict[str, Effects | None]:
        """The effect of each SAE, by name and folder, on the model's loss; None where no model runs."""
        if self.model is None or self.tokens is None or len(self.sites.read) > 1:
            return dict.fromkeys(saes)
        site = next(iter(self.sites.read))
        loaded = {name: self._load(path) for name, path in saes.items()}
        return dict(
            measure_losses(
                loaded,
                self.model,
                self.tokens,
                site,
                site_out=self.sites.written,
                thresholds={name: self._limits(sae) for name, sae in loaded.items()},
                max_tokens=self.max_ce_tokens,
                max_length=self.store.manifest["parts"][0]["spec"].get("max_length") or 256,
                show=show,
            )
        )

    def __call__(self, path: Path, effects: Effects | None) -> dict[str, Any]:
        """The figures of the SAE in a folder, as JSON values."""
        sae = self._load(path)
        limits = self._limits(sae)
        rows = measure_rows(sae, self.store, list(self.sites.read), threshold=limits, site_out=self.sites.written)
        found = combine(rows, effects, threshold=max(limits.values()))
        return finite(found.scalars())

    def _load(self, path: Path) -> SAE:
        return SAE.load(path, device=self.device if self.model is None else self.model.device)

    def _limits(self, sae: SAE) -> dict[Any, float]:
        return thresholds_of(sae, self.store, self.sites.all)
