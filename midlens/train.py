"""`midlens train`: an SAE from an activation store."""

from dataclasses import dataclass
from pathlib import Path

from midlens.console import say
from saes.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a TopK SAE on one site of an activation store; the same command again continues after an interruption."""

    store: Path
    """An activation store, see `midlens extract`."""
    out: Path
    """Folder of the SAE (SAELens v6 format) and, in `training/`, of metrics and checkpoints."""
    site: str | None = None
    """The site to train on, e.g. resid_post.15; may be left out where the store holds one."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""

    def run(self) -> int:
        """Train, save, say where."""
        import dataclasses

        import torch

        from interp.errors import InputError
        from interp.store import ActivationStore
        from saes.train import fit

        store = ActivationStore.open(self.store)
        if self.site is None and len(store.sites) > 1:
            raise InputError(f"{self.store} holds {', '.join(map(str, store.sites))}; say which with --site")
        recipe = TrainConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)})
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        fit(store, recipe, self.out, site=self.site or store.sites[0], device=device)
        say(str(self.out.resolve()))
        return 0
