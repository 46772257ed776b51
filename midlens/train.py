"""`midlens train`: an SAE from an activation store, or straight from a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from midlens.console import finish
from midlens.rows import RowsOptions
from saes.recipe import TrainConfig
from saes.team import Parallel


@dataclass(frozen=True, kw_only=True)
class Train(RowsOptions, TrainConfig):
    """Train an SAE, transcoder or crosscoder on activations from a store, or streamed from a model without one.

    The same command again continues after an interruption.

    `out` is the folder of the SAE (SAELens v6 format) and, in `training/`, of metrics and checkpoints."""

    example: ClassVar[str] = "midlens train --store runs/store --architecture batchtopk --k 32 --out runs/sae"
    figures: ClassVar[str] = "architecture, d_in, d_sae, rows"
    parallel: Parallel | None = None
    """Under `torchrun --nproc-per-node N -m midlens train ...`: what the processes divide, the tokens of each batch
    (data) or the features (dictionary: for a width that one device cannot hold)."""

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
        from saes.team import team
        from saes.train import fit

        recipe = self.settings(TrainConfig)
        rows, site = self.rows(recipe.batch_size, recipe.seed)
        with contextlib.ExitStack() as held:
            tracker = None
            if self.track is not None:
                facts = settings(rows, recipe, TrainedSites.parse(site, self.site_out))
                tracker = held.enter_context(open_tracker(self.track, name=self.out.name, config=facts))
            places = {"site": site, "site_out": self.site_out, "parallel": self.parallel}
            sae = fit(rows, recipe, self.out, **places, device=self.chosen_device(), tracker=tracker)
        if team(self.parallel).rank:
            return 0  # the first process speaks
        shape = {"architecture": sae.config.architecture, "d_in": sae.config.d_in, "d_sae": sae.config.d_sae}
        return finish(self.out, figures=shape | {"rows": len(rows)})
