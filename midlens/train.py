"""`midlens train`: an SAE from an activation store, or straight from a model."""

from dataclasses import dataclass

from midlens.console import say
from midlens.rows import RowsOptions
from saes.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(RowsOptions, TrainConfig):
    """Train an SAE, transcoder or crosscoder on activations from a store, or streamed from a model without one.

    The same command again continues after an interruption.

    `out` is the folder of the SAE (SAELens v6 format) and, in `training/`, of metrics and checkpoints."""

    def run(self) -> int:
        """Train, save, say where."""
        import contextlib
        import dataclasses

        from interp.trackers import open_tracker
        from saes.fitting import TrainedSites, settings
        from saes.train import fit

        recipe = TrainConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)})
        rows, site = self.rows(recipe.batch_size, recipe.seed)
        with contextlib.ExitStack() as held:
            tracker = None
            if self.track is not None:
                facts = settings(rows, recipe, TrainedSites.parse(site, self.site_out))
                tracker = held.enter_context(open_tracker(self.track, name=self.out.name, config=facts))
            fit(rows, recipe, self.out, site=site, site_out=self.site_out, device=self.chosen_device(), tracker=tracker)
        say(str(self.out.resolve()))
        return 0
