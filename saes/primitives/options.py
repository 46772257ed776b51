"""Options of one run of the literary primitives, and what they come to: categories, emotions, data, site, judges."""

import dataclasses
import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.judges import Endpoint, EndpointJudge
from interp.model import HookedModel
from interp.placement import PLACING, PlacingConfig
from interp.presets import PRESETS, default_site
from interp.sealing import read_json
from interp.sites import Site
from saes.primitives.catalogue import LiteraryData
from saes.primitives.categories import Categories, categories
from saes.primitives.data import person_pairs, show_tell, technique_pairs
from saes.primitives.dictionary import sae_preset
from saes.primitives.narrative import TextFiles
from saes.primitives.word_tokens import MultiToken
from saes.recipe import TrainConfig, Training

FEW = ("joy", "sadness", "anger", "fear", "awe", "nostalgia", "boredom", "disgust")
"""The emotions of a short run: all of them in both published sets but anger."""


@dataclass(frozen=True, kw_only=True)
class PrimitivesConfig(TextFiles, PlacingConfig):
    """The defaults are a run of 8 emotions on SmolLM2, SAE training included, within 25 minutes on two quiet cores."""

    model: str = "smollm2-135m"
    """A preset, a hub id, a local folder or a GGUF file."""
    sae: str | None = None
    """A folder, a preset or a hub name (SAELens's `llama_scope:l15r_32x` too); by default one is trained here."""
    site: str | None = None
    """Where to steer; by default the SAE's own site, or the model's mid-depth residual stream."""
    force: bool = False
    """Use an SAE whose files name another model, as for a fine-tuned or renamed copy of the model it was made for."""
    out: Path = Path("runs/primitives")
    """The run's folder; call again with the same options to go on after an interruption."""
    emotions: tuple[str, ...] = ()
    """Which to look for: names, or `all`; by default eight."""
    categories: str = "cowen-keltner-2017"
    """The set that judges choose from: `cowen-keltner-2017`, `press-release`, or a JSON file."""
    words: Path | None = None
    """A JSON file with word lists for the categories, in place of the bundled English ones."""
    multi_token: MultiToken = "drop"
    """Words of several tokens: left out and listed (`drop`), or counted by their first token (`first`)."""
    decoys: int = 5_000
    """Random directions that naming-gates have to beat, at least as many as the SAE has features; 0: none."""
    judges: tuple[str, ...] = ("local",)
    """`local` (judges that run here), and names of models behind `endpoint`."""
    endpoint: str | None = None
    """An OpenAI-compatible address, up to and without `/chat/completions`."""
    endpoint_key: str | None = None
    """The environment variable that holds the endpoint's key."""
    seeds: int = 2
    """Generations of every text; an emotion passes strictly if it passes on each."""
    budget: float = 25.0
    """Minutes that the run may take; the search is cut to fit, and says what it left out."""
    stories: int = 48
    """Stories that the model writes for the SAE to be trained on."""
    corpus: str | None = "builtin"
    """Text behind the narrative, see `midlens extract`; for training and for measuring firing rates."""
    train_tokens: int = 100_000
    """Tokens of training text."""
    held_out_tokens: int = 10_000
    """Tokens of held-out text, from other documents."""
    architecture: Training = "batchtopk"
    """Of the SAE trained here."""
    expansion: int = 8
    """Its width as a multiple of the model's."""
    k: int = 32
    """Its active features per token."""
    epochs: float = 6.0
    """Passes over the activations."""
    dtype: str | None = None
    """Precision of the model: float32, bfloat16, float16; by default bfloat16 where the hardware has it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.stories < 0 or not self.budget > 0:
            raise InputError(
                f"expected seeds of at least 1, stories of at least 0 and a budget above 0 minutes; got {self.seeds}, "
                f"{self.stories} and {self.budget}"
            )
        if len(set(self.judges)) != len(self.judges) or not self.judges:
            raise InputError(f"expected one judge or more, each once; got {list(self.judges)}")
        if self.remote and self.endpoint is None:
            raise InputError(
                f"judges {', '.join(self.remote)} are models behind an endpoint: give its address (endpoint, "
                "--endpoint http://...). Without one there is `local`"
            )
        if self.endpoint is not None and not self.remote:
            raise InputError("an endpoint was given, and no judge that is behind it: name its models (--judges)")

    @property
    def remote(self) -> tuple[str, ...]:
        """Judges behind the endpoint."""
        return tuple(name for name in self.judges if name != "local")

    @property
    def recipe(self) -> TrainConfig:
        """How an SAE is trained here."""
        return TrainConfig(architecture=self.architecture, expansion=self.expansion, k=self.k, epochs=self.epochs,
                           seed=self.seed)  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What decides the result, as JSON: all but the folder, where the model lies and what is let through."""
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}
        without = {"out", "force", *PLACING}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items() if name not in without}


def emotion_set(config: PrimitivesConfig) -> Categories:
    """The categories among which judges choose."""
    return categories(config.categories, words=config.words)


def emotions_of(config: PrimitivesConfig, known: Categories) -> tuple[str, ...]:
    """The emotions to look for, in the set's order."""
    asked = config.emotions or tuple(name for name in FEW if name in known.names) or known.names[: len(FEW)]
    if asked == ("all",):
        return known.names
    if unknown := [name for name in asked if name not in known.names]:
        raise InputError(
            f"unknown emotion {', '.join(map(repr, unknown))} in {known.name}; known: {', '.join(known.names)}, or all"
        )
    return tuple(name for name in known.names if name in asked)


def data_of(config: PrimitivesConfig, emotions: Categories) -> LiteraryData:
    """Words and pairs, bundled or from files."""
    shown = show_tell(config.show_tell, emotions=emotions if config.show_tell else None)
    registers = {"show-dont-tell": tuple((pair.show, pair.tell) for pair in shown)}
    for pair in technique_pairs(config.technique_pairs):
        registers[pair.technique] = (*registers.get(pair.technique, ()), (pair.marked, pair.plain))
    persons = tuple((pair.first, pair.third) for pair in person_pairs(config.person_pairs))
    return LiteraryData(emotions, persons, registers)


def site_of(config: PrimitivesConfig, model: HookedModel) -> Site | None:
    """The site asked for; where none is and an SAE is given, that SAE's own (None here)."""
    if config.site is None and config.sae is not None:
        return None
    site = Site.parse(config.site) if config.site else default_site(model.preset, model.cfg.n_layers)
    model.anatomy.check(model.hf, site)
    return site


def remote_judges(config: PrimitivesConfig) -> tuple[EndpointJudge, ...]:
    """Judges behind the endpoint; their answers are kept in the run's folder."""
    if not config.remote:
        return ()
    assert config.endpoint is not None
    cache = config.out / "answers"
    return tuple(
        EndpointJudge(Endpoint(config.endpoint, name, key_env=config.endpoint_key, cache=cache))
        for name in config.remote
    )


def paid(config: PrimitivesConfig) -> dict[str, int]:
    """What the endpoint's answers that are kept took in all, interrupted calls included; empty without an endpoint."""
    if not config.remote:
        return {}
    usages = [read_json(path, "an answer").get("usage", {}) for path in (config.out / "answers").rglob("*.json")]
    tokens = {f"{kind} tokens": sum(int(one.get(f"{kind}_tokens", 0)) for one in usages)
              for kind in ("prompt", "completion")}  # fmt: skip
    return {"answers": len(usages), **tokens}


def check_early(config: PrimitivesConfig) -> None:
    """What can be refused before anything is loaded: names, word lists, an SAE's preset for another model."""
    emotions_of(config, emotion_set(config))
    preset = sae_preset(config.sae) if config.sae else None
    own = PRESETS[config.model].saes if config.model in PRESETS else None
    if preset is not None and own is not None and preset.source.replace(":", "/") not in own and not config.force:
        raise InputError(
            f"the SAE {preset.name} is for the model {preset.model}, and is asked to work on {config.model}. Give the "
            "model it was made for, or another SAE, or insist (force=True, --force)"
        )
    if preset is not None and config.site is not None and Site.parse(config.site) != preset.site:
        raise InputError(
            f"the SAE {preset.name} is for the site {preset.site}, not {Site.parse(config.site)}. Leave the site out, "
            "or give an SAE of that site"
        )


def check_endpoint(config: PrimitivesConfig, *, timeout: float = 10.0) -> None:
    """Refuse an endpoint that nobody answers at, or whose key is not set or not known there (status 401), before there
    is anything to lose. Any other status will do: this costs nothing, and not every server lists its models. A run that
    has answers already goes on without: it may need no more."""
    judges = remote_judges(config)
    if not judges or any((config.out / "answers").rglob("*.json")):
        return
    endpoint = judges[0].endpoint
    headers = {} if (key := endpoint.key()) is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{endpoint.url.rstrip('/')}/models", headers=headers)
    try:
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            given = "no key was given" if key is None else f"the key of {endpoint.key_env} is not accepted"
            raise InputError(
                f"the endpoint {endpoint.url} asks for a key (status 401), and {given}. Name the environment variable "
                "that holds it (--endpoint-key); nothing has been done yet"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"no answer from the endpoint {endpoint.url}, where the judges {', '.join(config.remote)} should be "
            f"({error}). Start it or give another address (--endpoint); nothing has been done yet"
        ) from error
