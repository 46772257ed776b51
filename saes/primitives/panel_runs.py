"""A panel's answers about texts: which emotion each expresses, and whether it expresses one; each asked once.

    run = PanelRun(judges, categories(), folder)
    run.votes(texts, seed=0)            one dict a text: {judge: emotion, or None where the answer could not be read}
    run.weights(texts, seed=0)          n j c, the judges' weights of the emotions; nan rows for unusable answers
    run.says(texts, "joy", seed=0)      one dict a text: {judge: True, False or None}

The forced choice is among all categories, its options in an order that text and seed decide. An `EndpointJudge` draws
one for each text by itself, and judges that read no list of options (`order_free`, embeddings, lexicon) need none; all
others are asked in `orders` of them, among which the text's digest chooses, so that texts of one order share a batch.
What a judge answered is kept under (judge and its settings, question, text, seed) before anything is made of it, and
endpoints without a cache of answers get one in the folder: a run that is called again repeats no question.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import InputError
from interp.judges import EmbeddingJudge, EndpointJudge, Judge, LexiconJudge, Question
from interp.model import HookedModel
from interp.sealing import digest
from interp.stats import fleiss_kappa
from interp.steering.fingerprint import fingerprint
from saes.primitives.categories import Categories
from saes.primitives.kept import Kept

CHOICE = "Which emotion does the text express most?"
Vote = dict[str, str | None]
YesNo = dict[str, bool | None]


@dataclass
class PanelRun:
    """Judges, what they choose from, and what they have answered; `asked` counts texts put to each judge."""

    judges: tuple[Judge, ...]
    emotions: Categories
    folder: Path | None = None
    orders: int = 8
    """Orders of the options for judges that do not draw their own."""
    chunk: int = 16
    """Texts between two writes to the file of answers."""
    asked: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [judge.name for judge in self.judges]
        if not names or len(set(names)) != len(names):
            raise InputError(f"a panel needs one judge or more, of different names; got {names}")
        if self.orders < 1 or self.chunk < 1:
            raise InputError(f"orders={self.orders} and chunk={self.chunk}: expected 1 or more of both")
        self.judges = tuple(self._with_cache(judge) for judge in self.judges)
        self.kept = Kept(None if self.folder is None else self.folder / "answers.jsonl")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the judges."""
        return tuple(judge.name for judge in self.judges)

    @cached_property
    def question(self) -> Question:
        """The forced choice, options in the order of the categories."""
        names = self.emotions.names
        return Question.choice(
            CHOICE, names, descriptions=[described(name, self.emotions) for name in names],
            words=[self.emotions.words[name] for name in names],
        )  # fmt: skip

    def asks(self, emotion: str) -> Question:
        """The yes/no question about one emotion."""
        self.emotions.index(emotion)
        return Question.yes_no(
            f"Does the text express {emotion}?", description=described(emotion, self.emotions),
            words=self.emotions.words[emotion],
        )  # fmt: skip

    def weights(self, texts: Sequence[str], *, seed: int) -> Float[np.ndarray, "n j c"]:
        """Every judge's weights of the emotions, in the order of the categories; nan rows for unusable answers."""
        return np.stack([self._answers(judge, texts, self.question, seed) for judge in self.judges], axis=1)

    def votes(self, texts: Sequence[str], *, seed: int) -> list[Vote]:
        """What each judge chose for each text."""
        return [
            {judge: self.emotions.names[row.argmax()] if row[0] == row[0] else None for judge, row in zip(
                self.names, rows, strict=True)}
            for rows in self.weights(texts, seed=seed)
        ]  # fmt: skip

    def says(self, texts: Sequence[str], emotion: str, *, seed: int) -> list[YesNo]:
        """What each judge answered to whether each text expresses the emotion."""
        question = self.asks(emotion)
        answers = np.stack([self._answers(judge, texts, question, seed) for judge in self.judges], axis=1)
        return [
            {judge: bool(row[1] > row[0]) if row[0] == row[0] else None for judge, row in zip(
                self.names, rows, strict=True)}
            for rows in answers
        ]  # fmt: skip

    def _answers(self, judge: Judge, texts: Sequence[str], question: Question, seed: int) -> Float[np.ndarray, "n c"]:
        common = {"judge": self._identities[judge.name], "seed": seed, "question": question.facts(),
                  "words": [list(words) for words in question.words]}  # fmt: skip
        common = {"asked": digest(common)}
        todo = [t for t in dict.fromkeys(texts) if self.kept.get(common | {"text": t}) is None]
        groups: dict[int, list[str]] = {}
        for text in todo:
            own = _needs_no_order(judge) or len(question.options) == 2
            groups.setdefault(0 if own else int(digest([text, seed])[:8], 16) % self.orders, []).append(text)
        for number, group in sorted(groups.items()):
            asked, places = (
                _ordered(question, number, seed)
                if not _needs_no_order(judge) and len(question.options) > 2
                else (question, range(len(question.options)))
            )
            for start in range(0, len(group), self.chunk):
                part = group[start : start + self.chunk]
                found = judge.score(part, asked, seed=seed).weights[:, np.argsort(places)]
                self.asked[judge.name] = self.asked.get(judge.name, 0) + len(part)
                rows = [[None if math.isnan(w) else round(float(w), 6) for w in row] for row in found]
                self.kept.add((common | {"text": text}, row) for text, row in zip(part, rows, strict=True))
        return np.array([self.kept.get(common | {"text": text}) for text in texts], dtype=float)

    def _with_cache(self, judge: Judge) -> Judge:
        if not isinstance(judge, EndpointJudge) or judge.endpoint.cache is not None or self.folder is None:
            return judge
        endpoint = dataclasses.replace(judge.endpoint, cache=self.folder / "endpoint")
        return EndpointJudge(endpoint, name=judge.name, instruction=judge.instruction)

    @cached_property
    def _identities(self) -> dict[str, Any]:
        return {judge.name: identity(judge) for judge in self.judges}


def _needs_no_order(judge: Judge) -> bool:
    """Whether it orders the options by itself, or reads them without any order."""
    return isinstance(judge, EndpointJudge | EmbeddingJudge | LexiconJudge) or getattr(judge, "order_free", False)


def identity(judge: Judge) -> dict[str, Any]:
    """What a judge's answers depend on: its kind, its settings, the weights or the address of its model."""
    facts: dict[str, Any] = {"kind": type(judge).__name__, "name": judge.name}
    if isinstance(judge, EndpointJudge):
        e = judge.endpoint
        return facts | {"url": e.url, "model": e.model, "temperature": e.temperature, "max_tokens": e.max_tokens,
                        "instruction": judge.instruction}  # fmt: skip
    for entry in dataclasses.fields(judge) if dataclasses.is_dataclass(judge) else ():
        value = getattr(judge, entry.name)
        if isinstance(value, HookedModel):
            facts[entry.name] = fingerprint(value)
        elif isinstance(value, str | int | float | tuple | dict | None):
            facts[entry.name] = value
    return facts


def described(emotion: str, emotions: Categories) -> str:
    """An emotion in a phrase, for judges that compare meanings: its name and the first words that name it."""
    others = [word for word in emotions.words[emotion] if word != emotion][:4]
    return f"{emotion}: {', '.join(others)}" if others else emotion


def agreement(votes: Sequence[Mapping[str, str | None]], emotions: Sequence[str]) -> float:
    """Fleiss' kappa of forced choices; unusable answers are a category of their own. NaN for fewer than two judges."""
    if not votes or len(votes[0]) < 2:
        return math.nan
    options = [None, *emotions]
    return fleiss_kappa(np.array([[list(vote.values()).count(option) for option in options] for vote in votes]))


def _ordered(question: Question, number: int, seed: int) -> tuple[Question, Sequence[int]]:
    """The question with its options in the order drawn from number and seed, and where each new place was before."""
    places = np.random.default_rng((number, seed)).permutation(len(question.options)).tolist()
    moved = {
        name: tuple(getattr(question, name)[i] for i in places)
        for name in ("options", "descriptions", "exemplars", "words")
        if getattr(question, name)
    }
    return dataclasses.replace(question, **moved), places
