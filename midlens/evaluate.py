"""`midlens evaluate`: how good an SAE is on held-out activations and on the text they came from."""

from dataclasses import dataclass
from pathlib import Path

from midlens.console import say


@dataclass(frozen=True)
class Evaluate:
    """Evaluate an SAE: explained variance, L0, dead features, and the model's loss with the SAE spliced in."""

    sae: Path
    """The SAE's folder (`cfg.json`, `sae_weights.safetensors`)."""
    store: Path
    """A store of held-out activations."""
    tokens: Path
    """The token file that the store was made from; the model is run on it."""
    model: str | None = None
    """A preset, a hub id, a local folder or a GGUF file; by default the model named in the store."""
    site: str | None = None
    """By default the site the SAE was trained on."""
    out: Path | None = None
    """Write the figures to this file, as JSON."""
    loss_tokens: int = 8_000
    """Predicted tokens behind CE and KL; each costs three runs of the whole model."""
    device: str | None = None
    """Where model and SAE run: cpu, cuda, ...; by default a GPU where there is one."""
    seed: int = 0
    """Chooses the text behind CE and KL."""

    def run(self) -> int:
        """Evaluate and print the figures."""
        from interp.model import HookedModel
        from interp.store import ActivationStore
        from interp.tokenfile import TokenFile
        from saes.evaluate import evaluate, names_of
        from saes.sae import SAE

        sae, store, tokens = SAE.load(self.sae), ActivationStore.open(self.store), TokenFile.open(self.tokens)
        name, site = names_of(sae, store, model=self.model, site=self.site)
        model = HookedModel.load(name, device=self.device)
        found = evaluate(
            sae.to(model.device),
            store,
            site,
            model=model,
            tokens=tokens,
            max_ce_tokens=self.loss_tokens,
            seed=self.seed,
            show=None,
        )
        say(found.text())
        if self.out is not None:
            say(str(found.save(self.out)))
        return 0
