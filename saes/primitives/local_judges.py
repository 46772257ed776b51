"""Five judges that run here, for a panel without an endpoint: no one of them is good, and they err in different ways.

    feeling      log p(" joyful" or another of its words | text, "full of"), calibrated
    narrator     the same, asked after the person in the text
    embedding    nearest meaning of the emotion's words, all-MiniLM-L6-v2
    examples     nearest to bundled scenes and sentences of the emotion, by the same embedding
    lexicon      words that name the emotion

`WordsJudge` reads the next-token probabilities of the words of every category, one row a text, in place of 27 options
one by one:

    score_c = log mean over words w of c of p(w | text, prompt)  -  the same behind neutral texts, averaged

Two and two of them share a model, one of which may have written the texts (it runs without steering here), so their
errors are not independent, and chances computed for judges who guess apart are too small. They know an emotion that is
named, and hardly one that is evoked: benchmarks/primitives_judges.py measures both on texts of known emotion, and what
it finds belongs beside every coverage these judges give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import InputError
from interp.judges import EmbeddingJudge, Judge, LexiconJudge, Question, Scores
from interp.judging.embedding import Embed, normalise, sentence_embeddings
from interp.judging.logprob import NEUTRAL
from interp.judging.question import check_texts
from interp.model import HookedModel
from saes.primitives.categories import Categories
from saes.primitives.data import scenes, show_tell
from saes.primitives.word_tokens import token_sets

FEELING = 'Passage: "{text}"\nIn one word, the passage is full of'
NARRATOR = "{text}\n\nQuestion: How does the person in this story feel?\nAnswer: they feel"
_BUDGET = 2_048
"""Tokens a batch: the logits of 2,048 over a vocabulary of 49,152 are 400 MB."""


@dataclass(frozen=True)
class ExamplesJudge:
    """Nearest by examples of each emotion; see the module's docstring."""

    emotions: Categories
    examples: dict[str, tuple[str, ...]]
    embed: Embed = sentence_embeddings
    temperature: float = 0.05
    order_free: bool = True
    name: str = "examples"

    def __post_init__(self) -> None:
        if missing := [name for name in self.emotions.names if len(self.examples.get(name, ())) < 2]:
            raise InputError(f"{self.name}: {missing[0]!r} has fewer than two examples; give every emotion two or more")

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Softmax of cosines with the emotions' examples; a yes where the emotion's is above the mean of all."""
        check_texts(texts, self.name)
        gain = self._gain(texts)
        if len(question.options) == 2 and question.words:
            own = [list(self.emotions.words[name]) == list(question.words[1]) for name in self.emotions.names]
            if sum(own) != 1:
                raise InputError(f"{self.name}: {question.text!r} has the words of none of the emotions")
            yes = gain[:, [own.index(True)]]
            return Scores(self.name, question, _softmax(np.concatenate([np.zeros_like(yes), yes], axis=1)))
        at = [self.emotions.index(option) for option in question.options]
        return Scores(self.name, question, _softmax(gain[:, at]))

    def _gain(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Cosines over temperature, less their mean over the emotions. A text leaves its own example out."""
        everything = tuple(example for name in self.emotions.names for example in self.examples[name])
        rows, known = self.embed(list(texts)), _embedded(self.embed, everything)
        at, gain = 0, np.zeros((len(texts), len(self.emotions)))
        for c, name in enumerate(self.emotions.names):
            own = self.examples[name]
            part = known[at : at + len(own)]
            at += len(own)
            for i, text in enumerate(texts):
                kept = part[[example != text for example in own]]
                gain[i, c] = rows[i] @ normalise(kept.sum(0))
        return (gain - gain.mean(1, keepdims=True)) / self.temperature


@dataclass(frozen=True)
class WordsJudge:
    """Which option's words come next; see the module's docstring."""

    model: HookedModel
    wording: str = FEELING
    temperature: float = 1.0
    longest: int = 400
    """Characters of a text that are read."""
    order_free: bool = True
    name: str = "feeling"

    def __post_init__(self) -> None:
        if self.wording.count("{text}") != 1:
            raise InputError(f"{self.name}: the wording {self.wording!r} must have {{text}} exactly once")

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Softmax of calibrated scores over the options; options without a single-token word get none."""
        check_texts(texts, self.name)
        words = {option: list(some) or [option] for option, some in zip(
            question.options, question.words or ((),) * len(question.options), strict=True)}  # fmt: skip
        if len(question.options) == 2:
            return self._yes_no(texts, question, words)
        found = self._scores(texts, words)
        return Scores(self.name, question, _softmax(found / self.temperature))

    def _yes_no(self, texts: Sequence[str], question: Question, words: dict[str, list[str]]) -> Scores:
        """Yes where the words are likelier behind the text than behind neutral ones."""
        if not question.words or not question.words[1]:
            raise InputError(f"{self.name}: {question.text!r} has no words that speak for a yes")
        gain = self._scores(texts, {"yes": words["yes"]})
        return Scores(self.name, question, _softmax(np.concatenate([np.zeros_like(gain), gain], axis=1)))

    def _scores(self, texts: Sequence[str], words: dict[str, list[str]]) -> Float[np.ndarray, "n c"]:
        sets = token_sets(self.model.tokenizer, words, multi_token="first")
        ids = [sorted({i for word in found for i in word.ids}) for found in sets.words]
        prompts = [self.wording.replace("{text}", text[: self.longest].strip()) for text in (*texts, *NEUTRAL)]
        logs = _next_token(self.model, prompts, sorted({i for some in ids for i in some}))
        scores = np.stack([[np.logaddexp.reduce([row[i] for i in some]) - np.log(len(some)) for some in ids]
                           for row in logs])  # fmt: skip
        return scores[: len(texts)] - scores[len(texts) :].mean(0)


def known_examples(emotions: Categories) -> dict[str, tuple[str, ...]]:
    """The bundled scenes and show-don't-tell pairs, both sides, by emotion."""
    found: dict[str, list[str]] = {name: [] for name in emotions.names}
    for pair in show_tell():
        if pair.emotion in found:
            found[pair.emotion] += [pair.show, pair.tell]
    for scene in scenes():
        if scene.emotion in found:
            found[scene.emotion].append(scene.text)
    return {name: tuple(some) for name, some in found.items()}


def local_panel(model: HookedModel, emotions: Categories) -> tuple[Judge, ...]:
    """The five of the module's docstring; without `examples` where an emotion of the set has no scenes bundled."""
    known = known_examples(emotions)
    judges: list[Judge] = [WordsJudge(model), WordsJudge(model, NARRATOR, name="narrator"), EmbeddingJudge()]
    if all(len(some) > 1 for some in known.values()):
        judges.append(ExamplesJudge(emotions, known))
    return (*judges, LexiconJudge())


@lru_cache(maxsize=4)
def _embedded(embed: Embed, texts: tuple[str, ...]) -> Float[np.ndarray, "n d"]:
    """Rows of texts that are compared with again and again."""
    return embed(list(texts))


@torch.no_grad()
def _next_token(model: HookedModel, prompts: Sequence[str], tokens: Sequence[int]) -> list[dict[int, float]]:
    """log p of some tokens behind each prompt."""
    batch = model.to_tokens(list(prompts))
    lengths, wanted = batch.lengths.cpu(), torch.tensor(tokens)
    order, found, at = torch.argsort(lengths, descending=True).tolist(), {}, 0
    while at < len(order):
        longest = int(lengths[order[at]])
        part = order[at : at + max(1, _BUDGET // longest)]
        at += len(part)
        own = lengths[part].to(model.device)
        logits = model(batch.tokens[part, :longest].to(model.device), lengths=own)
        last = logits[torch.arange(len(part), device=logits.device), own.to(logits.device) - 1]
        logs = torch.log_softmax(last.float(), dim=-1).cpu()[:, wanted]
        found |= {row: dict(zip(tokens, values, strict=True)) for row, values in zip(part, logs.tolist(), strict=True)}
    return [found[row] for row in range(len(prompts))]


def _softmax(x: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    exps = np.exp(x - x.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)
