"""The catalogue: which features of an SAE are naming-gates, selves or register modulators, each by a rule of its class.

    catalogue = find_candidates(model, sae, literary_data(), Selection())
    catalogue.of("naming", "joy")                # candidates, best first

    naming    p: enrichment of the best category's words among the `top_k` promoted tokens, and its score
              and `min_hits` of its words are there (all, where it has fewer), and the second category's score is at
              most `max_second` of the best one's; q also against decoys, see `saes.primitives.decoys`
    self      p: the larger of the lens's p-value of the first person and that of the activations' contrast
              and `min_hits` words as above, and more active in the first person than in the third
    register  p: contrast of a register's pairs, each register a family of tests of its own
              and more active on the marked side

Of each family are selected the features with a false discovery rate (Benjamini and Hochberg) of at most `alpha`, after
the p-value of those that fail a further condition has been set to 1: that only enlarges p-values, so the rate is kept,
which picking among the discoveries afterwards would not promise. The larger of two p-values is a valid test of "one of
the two effects is missing" (intersection-union, Berger 1982). What is found is a candidate: whether a model steered
with it writes what the class promises is for judges. The classes are of arXiv 2605.18808, of which only the abstract
was at hand; the rules are our own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from interp.errors import InputError
from interp.lens import Lens
from interp.model import HookedModel
from interp.sites import Point, Site
from interp.stats import benjamini_hochberg
from interp.typed import built
from saes.belongs import check_belongs, places_of
from saes.primitives.categories import Categories, categories
from saes.primitives.contrast_scores import ContrastScores, Lengths, TextPair, contrast_scores
from saes.primitives.data import person_pairs, show_tell, technique_pairs
from saes.primitives.decoys import decoy_q, decoy_readings
from saes.primitives.lens_scores import (
    CHUNK_BYTES,
    ENGLISH_PERSONS,
    PERSONS,
    NamingScores,
    SelfScores,
    SetReadings,
    naming_of,
    read_sets,
    self_of,
)
from saes.primitives.sign_tests import needed
from saes.primitives.word_tokens import MultiToken, TokenSets, token_sets
from saes.sae import SAE

Kind = Literal["naming", "self", "register"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEADING = 4
"""Features of each category that a catalogue's facts name though nothing speaks for them but their score."""
_IN_STREAM = (Point.EMBED, Point.RESID_PRE, Point.ATTN_OUT, Point.RESID_MID, Point.MLP_OUT, Point.RESID_POST)


@dataclass(frozen=True)
class Candidate:
    """A feature, the class it was found for, and what speaks for it."""

    feature: int
    kind: Kind
    category: str
    """The emotion of a naming-gate, the register of a modulator, "first person" of a self."""
    scores: dict[str, float]


@dataclass(frozen=True)
class LiteraryData:
    """What features are looked for with: words of emotions and of persons, and contrast pairs (marked, plain)."""

    emotions: Categories
    persons: Sequence[TextPair]
    """First person, third person."""
    registers: Mapping[str, Sequence[TextPair]]
    person_words: Mapping[str, Sequence[str]] = field(default_factory=lambda: ENGLISH_PERSONS)


@dataclass(frozen=True)
class Selection:
    """The rules' numbers; see the module's docstring."""

    alpha: float = 0.05
    top_k: int = 100
    min_hits: int = 3
    max_second: float = 0.5
    decoys: int = 20_000
    """Random directions for naming-gates, at least as many as features; 0 leaves them out."""
    multi_token: MultiToken = "drop"
    lengths: Lengths = "matched"
    draws: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        shares = 0 < self.alpha < 1 and 0 < self.max_second <= 1
        if not shares or min(self.min_hits, self.draws) < 1 or self.decoys < 0:
            raise InputError(
                "expected alpha in (0, 1), max_second in (0, 1], min_hits and draws of at least 1, decoys of at least "
                f"0; got {self}"
            )


@dataclass(frozen=True)
class Catalogue:
    """Candidates of every class, by class, category and then strength, and the circumstances."""

    candidates: tuple[Candidate, ...]
    facts: dict[str, Any]
    """JSON-able: model, site, selection; the `leading` features by score, which are no candidates; words with tokens,
    pairs and features tested of each family of tests, and how many features would have to reach the family's smallest
    p-value together before any of them could be found."""

    def of(self, kind: Kind, category: str | None = None) -> tuple[Candidate, ...]:
        """Those of one class, or of one category of it."""
        if kind not in KINDS:
            raise InputError(f"unknown class {kind!r}; known: {', '.join(KINDS)}")
        return tuple(c for c in self.candidates if c.kind == kind and category in (None, c.category))

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return {"facts": self.facts, "candidates": [dataclasses.asdict(c) for c in self.candidates]}

    @classmethod
    def from_json(cls, value: Any) -> "Catalogue":
        """What `to_json` gave; refuses anything else."""
        return built(cls, value, "a catalogue")


def literary_data(emotions: Categories | None = None) -> LiteraryData:
    """The bundled English words and pairs."""
    registers = {"show-dont-tell": tuple((pair.show, pair.tell) for pair in show_tell())}
    for pair in technique_pairs():
        registers[pair.technique] = (*registers.get(pair.technique, ()), (pair.marked, pair.plain))
    persons = tuple((pair.first, pair.third) for pair in person_pairs())
    return LiteraryData(emotions or categories(), persons, registers)


def word_sets(model: HookedModel, data: LiteraryData, multi_token: MultiToken = "drop") -> tuple[TokenSets, TokenSets]:
    """The tokens of the emotions' and of the persons' words; refuses a list of which no word has one."""
    emotions, persons = (token_sets(model.tokenizer, words, multi_token=multi_token)
                         for words in (data.emotions.words, data.person_words))  # fmt: skip
    return emotions, persons


def find_candidates(
    model: HookedModel,
    sae: SAE,
    data: LiteraryData,
    config: Selection | None = None,
    *,
    site: Site | str | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    force: bool = False,
    show: bool | None = False,
) -> Catalogue:
    """Lens and contrasts for every feature, then the rules; `site`: by default the SAE's own."""
    config = config or Selection()
    place = _place(model, sae, site, force)
    words, persons = word_sets(model, data, config.multi_token)
    sets = words.plus(persons)
    decoder, lens = sae.W_dec.detach(), Lens.of(model)
    found = read_sets(decoder, lens, sets, top_k=config.top_k, chunk_bytes=chunk_bytes, show=show)
    contrasts = {
        name: contrast_scores(
            model, sae, pairs, site=place, lengths=config.lengths, alpha=config.alpha, draws=config.draws,
            seed=config.seed, force=force, show=show,
        )
        for name, pairs in {PERSONS[0]: data.persons, **data.registers}.items()
    }  # fmt: skip
    selves = contrasts.pop(PERSONS[0])
    decoys = None
    if config.decoys:
        count = max(config.decoys, sae.config.d_sae)
        decoys = decoy_readings(decoder, lens, words, count, seed=config.seed, top_k=config.top_k,
                                chunk_bytes=chunk_bytes, show=show)  # fmt: skip
    candidates = naming_gates(found.of(words.names), config, decoys) + self_features(found, selves, config)
    for name, scores in contrasts.items():
        candidates += register_modulators(name, scores, config)
    facts = {
        "model": model.name,
        "site": str(place),
        "features": sae.config.d_sae,
        "selection": dataclasses.asdict(config),
        "categories": data.emotions.name,
        "leading": leading(found, words.names),
        "words": _word_facts(found, len(words.names), config),
        "words_without_token": {name: list(left) for name, left in sets.left_out.items()},
        "words_by_first_token": {name: list(first) for name, first in sets.by_first.items()},
        "contrasts": {name: _facts(c, config) for name, c in {PERSONS[0]: selves, **contrasts}.items()},
    }
    return Catalogue(tuple(candidates), facts)


def naming_gates(readings: SetReadings, config: Selection, decoys: SetReadings | None = None) -> list[Candidate]:
    """The rule for naming-gates, from the readings of the categories' words, and of decoys for a rate against them."""
    s = naming_of(readings)
    top, eligible = _naming_rule(s, readings, config)
    q = _adjusted(s.p, eligible)
    if decoys is not None:
        score, passed = _naming_rule(naming_of(decoys), decoys, config)
        q = np.maximum(q, decoy_q(np.where(eligible, top, -np.inf), np.where(passed, score, -np.inf)))
    columns = {"score": top, "second": s.second, "margin": s.margin, "hits": s.hits, "p": s.p, "q": q}
    found = [
        Candidate(int(j), "naming", s.names[s.best[j]], _row(columns, j)) for j in np.nonzero(q <= config.alpha)[0]
    ]
    return sorted(found, key=lambda c: (s.names.index(c.category), -c.scores["score"]))


def leading(readings: SetReadings, names: Sequence[str]) -> dict[str, list[int]]:
    """The features of the highest scores for each category and for the first person, significant or not, best first."""
    s = naming_of(readings.of(names))
    scores = dict(zip(s.names, s.score.T, strict=True)) | {PERSONS[0]: self_of(readings).score}
    return {name: np.argsort(-column, kind="stable")[:LEADING].tolist() for name, column in scores.items()}


def _naming_rule(
    s: NamingScores, readings: SetReadings, config: Selection
) -> tuple[Float[np.ndarray, " f"], Bool[np.ndarray, " f"]]:
    """The best category's score, and whether all conditions but significance hold."""
    top = s.score[np.arange(len(s.best)), s.best]
    enough = s.hits >= np.minimum(config.min_hits, readings.n_words[s.best])
    return top, enough & (s.second <= config.max_second * top)


def self_features(readings: SetReadings, contrast: ContrastScores, config: Selection) -> list[Candidate]:
    """The rule for selves, from readings that include the persons' words and the contrast of first and third person."""
    s: SelfScores = self_of(readings)
    at, n_words = contrast.features, int(readings.of(PERSONS).n_words[0])
    p = np.maximum(s.p[at], contrast.p)
    q = _adjusted(p, (s.hits[at] >= min(config.min_hits, n_words)) & (contrast.effect > 0))
    columns = _contrast_columns(contrast) | {"score": s.score[at], "hits": s.hits[at], "p": p, "q": q}
    found = [Candidate(int(at[i]), "self", PERSONS[0], _row(columns, i)) for i in np.nonzero(q <= config.alpha)[0]]
    return sorted(found, key=lambda c: -c.scores["score"])


def register_modulators(name: str, contrast: ContrastScores, config: Selection) -> list[Candidate]:
    """The rule for register modulators, from the contrast of one register."""
    q = _adjusted(contrast.p, contrast.effect > 0)
    columns = _contrast_columns(contrast) | {"p": contrast.p, "q": q}
    chosen = np.nonzero(q <= config.alpha)[0]
    found = [Candidate(int(contrast.features[i]), "register", name, _row(columns, i)) for i in chosen]
    return sorted(found, key=lambda c: (c.scores["p"], -c.scores["effect"]))


def _adjusted(p: Float[np.ndarray, " m"], eligible: Bool[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    return benjamini_hochberg(np.where(eligible, p, 1.0))


def _contrast_columns(contrast: ContrastScores) -> dict[str, np.ndarray]:
    return {"effect": contrast.effect, "marked": contrast.marked, "plain": contrast.plain}


def _place(model: HookedModel, sae: SAE, site: Site | str | None, force: bool) -> Site:
    """The one site that the SAE reads and writes; it has to be one that adds to the residual stream, or is it."""
    if sae.config.is_transcoder or sae.config.sources:
        raise InputError("primitives are looked for in an SAE that writes where it reads, not a trans- or crosscoder")
    (place,) = places_of(sae, site=site).reads
    check_belongs(sae, model=model, site=place, force=force)
    if place.point not in _IN_STREAM:
        raise InputError(
            f"the SAE is of {place}, which is not in the residual stream: its decoder rows cannot be read through the "
            f"unembedding. Expected one of {', '.join(point.short for point in _IN_STREAM)}"
        )
    return place


def _word_facts(readings: SetReadings, c: int, config: Selection) -> dict[str, Any]:
    """Of the words of c categories, and then of persons: how many have tokens, and what that many can show."""
    f, factor = len(readings.p), np.where(np.arange(len(readings.names)) < c, c, 1)
    smallest = np.minimum(1.0, readings.smallest_p * factor)
    return {
        name: {"usable": int(n), "smallest_p": float(p), "needed_at_smallest_p": needed(float(p), f, config.alpha)}
        for name, n, p in zip(readings.names, readings.n_words, smallest, strict=True)
    }


def _facts(contrast: ContrastScores, config: Selection) -> dict[str, Any]:
    return {
        "pairs": contrast.n_pairs,
        "fired": contrast.n_fired,
        "tested": len(contrast.features),
        "smallest_p": contrast.floor,
        "needed_at_smallest_p": contrast.needed(config.alpha),
    }


def _row(columns: Mapping[str, np.ndarray], j: Any) -> dict[str, float]:
    return {name: float(column[j]) for name, column in columns.items()}
