"""The stages before the search: text, dictionary, facts of the site, and the catalogue beside an untrained SAE's.

    out/stories.jsonl   out/tokens/{train,held_out}   out/store/{train,held_out}   out/sae/   out/evaluation.json
    out/parts.json   out/site.safetensors   out/catalogue.json   out/untrained.json

Each function makes what is missing and reads what is there. Stories and stores exist only where an SAE is trained here;
a given SAE is measured on the narrative text alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from interp.corpus import split
from interp.errors import InputError
from interp.extract import extract
from interp.loading import parse_dtype
from interp.model import HookedModel
from interp.sealing import read_json, write_json
from interp.sites import Site
from interp.steering.fingerprint import fingerprint
from interp.store import ActivationStore
from interp.tokenfile import TokenFile, tokenize
from saes.belongs import places_of
from saes.evaluate import Evaluation, evaluate
from saes.primitives.catalogue import KINDS, Catalogue, Kind, Selection, find_candidates, word_sets
from saes.primitives.categories import Categories
from saes.primitives.data import story_openings
from saes.primitives.dictionary import SiteFacts, given_sae, sampled_digest, site_facts, untrained_like
from saes.primitives.narrative import narrative_corpus, own_documents, write_stories
from saes.primitives.options import PrimitivesConfig, data_of, site_of
from saes.sae import SAE
from saes.train import fit

MAX_LENGTH = 256
Say = Callable[[str], None]


class Dictionary(NamedTuple):
    """What is steered with, and where."""

    model: HookedModel
    sae: SAE
    site: Site


def load_model(config: PrimitivesConfig) -> HookedModel:
    """The model, whole: it has to write."""
    return HookedModel.load(config.model, dtype=parse_dtype(config.dtype), **config.placing())


def check_words(config: PrimitivesConfig, model: HookedModel, emotions: Categories) -> None:
    """Refuse word lists that this model has no tokens for, before an SAE is trained."""
    if not (config.out / "catalogue.json").exists():
        word_sets(model, data_of(config, emotions), config.multi_token)


def written_stories(config: PrimitivesConfig, model: HookedModel) -> None:
    """Let the model write what the SAE is trained on, unless one is given."""
    if config.sae is None and config.stories:
        write_stories(model, story_openings(config.openings), config.out / "stories.jsonl", n=config.stories,
                      seed=config.seed)  # fmt: skip


def dictionary(config: PrimitivesConfig, model: HookedModel, emotions: Categories, say: Say) -> Dictionary:
    """The SAE given, checked to belong here; or one trained on narrative and other text."""
    site = site_of(config, model)
    if config.sae is not None:
        sae = given_sae(config.sae, model, site, force=config.force)
        (place,) = places_of(sae, site=site).reads
        model.anatomy.check(model.hf, place)
        return Dictionary(model, sae, place)
    assert site is not None
    config.recipe.shape(model.cfg.d_model)  # what cannot be trained is found out before the extraction
    stores = _stores(config, model, emotions, site)
    fit(stores["train"], config.recipe, config.out / "sae", site=site, device=model.device)
    sae = SAE.load(config.out / "sae").to(model.device)  # as a run that goes on finds it
    path = config.out / "evaluation.json"
    if not path.exists():
        tokens = TokenFile.open(config.out / "tokens" / "held_out")
        evaluate(sae, stores["held_out"], site, model=model, tokens=tokens, max_ce_tokens=2_000,
                 seed=config.seed).save(path)  # fmt: skip
    found = Evaluation.load(path)
    say(f"      on {found.n_tokens:,} held-out tokens: explained variance {found.explained_variance:.3f}, "
        f"{found.l0:.1f} active features, {found.dead_fraction:.1%} never active")  # fmt: skip
    return Dictionary(model, sae, site)


def check_same_parts(config: PrimitivesConfig, found: Dictionary) -> None:
    """Refuse to go on with another model or SAE than this folder's results are of, under whatever name it comes."""
    path, own = config.out / "parts.json", {"model": fingerprint(found.model), "sae": sampled_digest(found.sae)}
    if not path.exists():
        write_json(path, own)
        return
    kept = read_json(path, "run")
    names = {"model": f"the model {config.model}", "sae": f"the SAE {config.sae or config.out / 'sae'}"}
    if other := [names[part] for part in own if kept.get(part) != own[part]]:
        raise InputError(
            f"{' and '.join(other)} has other weights than when {config.out} was begun, and results of both would mix. "
            "Put the earlier files back, or give another folder with --out; what is there is left as it is"
        )


def _stores(
    config: PrimitivesConfig, model: HookedModel, emotions: Categories, site: Site
) -> dict[str, ActivationStore]:
    own = own_documents(config, emotions=emotions)
    if config.stories:
        own += write_stories(model, story_openings(config.openings), config.out / "stories.jsonl", n=config.stories,
                             seed=config.seed)  # fmt: skip
    sides = dict(zip(("train", "held_out"), split(narrative_corpus(own, behind=config.corpus)), strict=True))
    wanted = {"train": config.train_tokens, "held_out": config.held_out_tokens}
    bos = bool(model.preset and model.preset.prepend_bos)
    stores = {}
    for side, corpus in sides.items():
        path = config.out / "tokens" / side
        tokens = tokenize(corpus, model.tokenizer, path, prepend_bos=bos, max_tokens=wanted[side])
        stores[side] = extract(model, tokens, [site], config.out / "store" / side, max_length=MAX_LENGTH,
                               seed=config.seed)  # fmt: skip
    return stores


def facts_of_site(config: PrimitivesConfig, found: Dictionary, emotions: Categories, say: Say) -> SiteFacts:
    """Mean norm and firing rates on the narrative text."""
    path = config.out / "site.safetensors"
    if not path.exists():
        texts = [document.text for document in own_documents(config, emotions=emotions)]
        site_facts(found.model, found.sae, texts, found.site).save(path)
    facts = SiteFacts.load(path)
    say(f"      mean norm {facts.mean_norm:.4g}, {facts.l0:.1f} active features on {facts.n_tokens:,} tokens")
    return facts


def catalogues(
    config: PrimitivesConfig, found: Dictionary, emotions: Categories, facts: SiteFacts, say: Say
) -> tuple[Catalogue, Catalogue]:
    """The catalogue, and that of an untrained SAE by the same rules; counts of both are said side by side."""
    data = data_of(config, emotions)
    selection = Selection(multi_token=config.multi_token, seed=config.seed, decoys=config.decoys)
    made = []
    for name in ("catalogue", "untrained"):
        path = config.out / f"{name}.json"
        if not path.exists():
            sae = found.sae if name == "catalogue" else untrained_like(found.sae, l0=facts.l0, seed=config.seed)
            one = find_candidates(found.model, sae, data, selection, site=found.site, force=True)
            write_json(path, one.to_json())
        made.append(Catalogue.from_json(read_json(path, "a catalogue of literary primitives")))
    own, twin = made
    for line in counted(own, twin):
        say(f"      {line['class']}, {line['category']}: {line['trained']} candidates, untrained {line['untrained']}")
    for line in words_said(own):
        say(f"      {line}")
    return own, twin


def words_said(catalogue: Catalogue) -> list[str]:
    """What was done with words that are not single tokens, in words."""
    lost, first = (sum(map(len, catalogue.facts.get(name, {}).values()))
                   for name in ("words_without_token", "words_by_first_token"))  # fmt: skip
    n = lost + sum(one["usable"] for one in catalogue.facts["words"].values())
    lines = [f"{first} of {n} words are several tokens and count by their first; the page lists them"] if first else []
    if lost:
        lines.append(f"{lost} of {n} words have no token of their own and are left out; the page lists them")
    return lines


def counted(catalogue: Catalogue, untrained: Catalogue) -> list[dict[str, Any]]:
    """Candidates of each class and category in both."""
    places: dict[tuple[Kind, str], None] = dict.fromkeys(
        (c.kind, c.category) for one in (catalogue, untrained) for c in one.candidates
    )
    return [
        {"class": kind, "category": name, "trained": len(catalogue.of(kind, name)),
         "untrained": len(untrained.of(kind, name))}
        for kind, name in sorted(places, key=lambda place: KINDS.index(place[0]))
    ]  # fmt: skip
