"""`midlens evaluate`: how good an SAE is on held-out activations and on the text they came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from interp.placement import PlacingConfig
from midlens.console import Planned, finish, say


@dataclass(frozen=True)
class Evaluate(PlacingConfig, Planned):
    """Evaluate an SAE: explained variance, L0, dead features, the model's loss with the SAE spliced in, and more."""

    example: ClassVar[str] = "midlens evaluate --sae runs/sae --store runs/held-out --tokens runs/held-out.tokens"
    figures: ClassVar[str] = "explained_variance, l0, delta_ce and the rest of the table"

    sae: str
    """The SAE: a folder, a file, a hub repository (organisation/name:folder) or a preset, in any layout that
    `saes.interop.load_sae` knows."""
    store: Path
    """A store of held-out activations."""
    tokens: Path
    """The token file that the store was made from; the model is run on it."""
    model: str | None = None
    """A preset, a hub id, a local folder or a GGUF file; by default the model named in the store."""
    site: str | None = None
    """By default the site the SAE was trained on."""
    site_out: str | None = None
    """The site a transcoder writes; by default the one it was trained on."""
    out: Path | None = None
    """Write the figures to this file, as JSON."""
    loss_tokens: int = 8_000
    """Predicted tokens behind CE and KL; each costs three runs of the whole model."""
    probing: tuple[str, ...] = ()
    """k-sparse probing: language, person, sentiment, tense, topic, all of these, package (which package a docstring is
    from), or .jsonl files of {"text", "label"} and optionally "group"."""
    absorption: bool = False
    """Feature absorption on the first-letter task."""
    words_per_letter: int = 100
    """Words of each letter in the absorption task."""
    geometry: bool = False
    """How the dictionary's directions lie to one another."""
    trust_pickle: bool = False
    """Open SAEs that are pickles, for tensors only; without this they are refused."""
    against: str | None = None
    """Another SAE of the same model and site, named like `sae`: features matched one to one, and splits of the narrower
    in the wider."""
    force: bool = False
    """Evaluate an SAE that was made for another model or site all the same."""
    device: str | None = None
    """Where model and SAE run: cpu, cuda, ...; by default a GPU where there is one."""
    seed: int = 0
    """Chooses the text behind CE and KL, the words, and the split into training and test texts."""

    def plan(self) -> Mapping[str, object]:
        """What would be measured; only the store is opened."""
        from saes.outline import evaluation_outline

        asked = {"absorption": self.absorption, "geometry": self.geometry, "against": self.against}
        parts = [*self.probing, *(name for name, value in asked.items() if value)]
        return evaluation_outline(self.sae, self.store, self.model, self.loss_tokens, parts, self.out)

    def run(self) -> int:
        """Evaluate and print the figures."""
        import dataclasses

        from interp.model import HookedModel
        from interp.store import ActivationStore
        from interp.tokenfile import TokenFile
        from saes.evaluate import evaluate, names_of
        from saes.interop import load_sae
        from saes.suite import SuiteConfig, as_text, ask, fires_in, run_suite

        sae = load_sae(self.sae, trust_pickle=self.trust_pickle)
        store, tokens = ActivationStore.open(self.store), TokenFile.open(self.tokens)
        name, sites = names_of(sae, store, model=self.model, site=self.site)
        site = sites[0] if len(sites) == 1 else sites
        model = HookedModel.load(name, device=self.device, **self.placing())
        sae = sae.to(model.device)
        asked = ask(sae, self.settings(SuiteConfig), site, force=self.force)
        found = evaluate(
            sae,
            store,
            site,
            model=model,
            tokens=tokens,
            site_out=self.site_out,
            max_ce_tokens=self.loss_tokens,
            seed=self.seed,
            force=self.force,
            show=None,
        )
        say(found.text())
        written = [] if self.out is None else [found.save(self.out)]  # kept, should what follows fail
        known = {sae: found.densities > 0}
        alive = fires_in(store, site, site_out=self.site_out, known=known, force=self.force)
        parts = run_suite(sae, model, asked, site, alive=alive, force=self.force, show=None)
        found = dataclasses.replace(found, parts=dict(found.parts) | parts)
        if parts:
            say(as_text(parts))
        written = [found.save(path) for path in written]
        return finish(*written, figures=found.scalars() | {"parts": dict(found.parts)})
