"""`midlens train`: an SAE from an activation store, or straight from a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from midlens.console import finish
from midlens.rows import RowsOptions
from saes.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(RowsOptions, TrainConfig):
    """Train an SAE, transcoder or crosscoder on activations from a store, or streamed from a model without one.

    The same command again continues after an interruption.

    `out` is the folder of the SAE (SAELens v6 format) and, in `training/`, of metrics and checkpoints."""

    example: ClassVar[str] = "midlens train --store runs/store --architecture batchtopk --k 32 --out runs/sae"
    figures: ClassVar[str] = "architecture, d_in, d_sae, rows"

    def plan(self) -> Mapping[str, object]:
        """The rows, the steps and what they take; no weight is loaded."""
        from saes.outline import training_outline

        found = self.outlined_rows()
        trained = training_outline(self.settings(TrainConfig), found.shape, found.rows, self.out, device=self.device)
        return {**found.plan, **trained}

    def run(self) -> int:
        """Train, save, say where."""
        import contextlib

        from interp.trackers import open_tracker
        from saes.fitting import TrainedSites, settings
        from saes.train import fit

        recipe = self.settings(TrainConfig)
        rows, site = self.rows(recipe.batch_size, recipe.seed)
        with contextlib.ExitStack() as held:
            tracker = None
            if self.track is not None:
                facts = settings(rows, recipe, TrainedSites.parse(site, self.site_out))
                tracker = held.enter_context(open_tracker(self.track, name=self.out.name, config=facts))
            sae = fit(
                rows, recipe, self.out, site=site, site_out=self.site_out, device=self.chosen_device(), tracker=tracker
            )
        shape = {"architecture": sae.config.architecture, "d_in": sae.config.d_in, "d_sae": sae.config.d_sae}
        return finish(self.out, figures=shape | {"rows": len(rows)})
