"""What is asked about texts, and what comes back: the contract of every judge.

    scores = judge.score(texts, Question.choice("What mood does it have?", ["positive", "negative"]))
    scores.choice        n       index of the option chosen, -1 where the judge gave no usable answer
    scores.weights       n c     its weight of each option, summing to 1 (nan where it gave no usable answer)
    scores.values        n       for ratings: the number chosen, nan where there is none

A judge sees texts and a question, never the model that wrote the texts nor the set it is asked about; an answer that
cannot be read is counted, not guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from interp.errors import InputError


@dataclass(frozen=True)
class Question:
    """One question with its possible answers. Exemplars and words say what an option means to judges that read no
    question."""

    text: str
    options: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    """What each option means, in a phrase; the options themselves where nothing is given."""
    exemplars: tuple[tuple[str, ...], ...] = ()
    """Texts of which each option is true; none of them may be a text that is judged."""
    words: tuple[tuple[str, ...], ...] = ()
    """Words that speak for each option."""
    values: tuple[float, ...] | None = field(default=None)
    """The number each option stands for, in a rating."""

    def __post_init__(self) -> None:
        if not self.text.strip() or len(self.options) < 2 or len(set(self.options)) != len(self.options):
            raise InputError(
                f"a question needs a text and two or more different options, got {self.text!r} and {self.options!r}"
            )
        if not all(option.strip() for option in self.options):
            raise InputError(f"the options {self.options!r} must not be empty")
        for name in ("descriptions", "exemplars", "words", "values"):
            given = getattr(self, name)
            if given and len(given) != len(self.options):
                raise InputError(f"{name} of {len(given)} options, but the question has {len(self.options)}")

    @classmethod
    def choice(
        cls,
        text: str,
        options: Sequence[str],
        *,
        descriptions: Sequence[str] = (),
        exemplars: Sequence[Sequence[str]] = (),
        words: Sequence[Sequence[str]] = (),
    ) -> "Question":
        """Exactly one of `options` is true."""
        return cls(
            text,
            tuple(options),
            descriptions=tuple(descriptions),
            exemplars=tuple(tuple(texts) for texts in exemplars),
            words=tuple(tuple(some) for some in words),
        )

    @classmethod
    def yes_no(cls, text: str, *, description: str = "", words: Sequence[str] = ()) -> "Question":
        """Options "no" (index 0) and "yes" (index 1); `description` and `words` say what a yes means."""
        return cls(
            text,
            ("no", "yes"),
            descriptions=("something else", description) if description else (),
            words=((), tuple(words)) if words else (),
        )

    @classmethod
    def rating(cls, text: str, *, low: int = 0, high: int = 10) -> "Question":
        """A whole number from `low` to `high`."""
        numbers = range(low, high + 1)
        return cls(text, tuple(map(str, numbers)), values=tuple(map(float, numbers)))

    def meaning(self, option: int) -> str:
        """What an option means, in words."""
        return (self.descriptions or self.options)[option]

    def facts(self) -> dict[str, Any]:
        """The question as JSON."""
        return {"text": self.text, "options": list(self.options), "descriptions": list(self.descriptions)}


@dataclass(frozen=True)
class Scores:
    """A judge's answers to one question about some texts."""

    judge: str
    question: Question
    weights: Float[np.ndarray, "n c"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else there is to know: cost, retries, the reasons of failures."""

    def __post_init__(self) -> None:
        w = self.weights
        assert w.ndim == 2 and w.shape[1] == len(self.question.options), w.shape
        bad = np.isnan(w).any(1)
        assert np.isnan(w[bad]).all() and np.allclose(w[~bad].sum(1), 1, atol=1e-4) and (w[~bad] >= 0).all()

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def choice(self) -> Int[np.ndarray, " n"]:
        """The option of largest weight, the first of equals; -1 for no usable answer."""
        return np.where(self.failed, -1, np.argmax(np.nan_to_num(self.weights), axis=1))

    @property
    def failed(self) -> np.ndarray:
        """Which texts got no usable answer."""
        return np.asarray(np.isnan(self.weights).any(1))

    @property
    def n_failed(self) -> int:
        """How many texts got no usable answer."""
        return int(self.failed.sum())

    @property
    def values(self) -> Float[np.ndarray, " n"]:
        """The number chosen in a rating, nan without an answer."""
        return np.where(self.failed, math.nan, self._numbers()[self.choice])

    @property
    def expected(self) -> Float[np.ndarray, " n"]:
        """The mean number under the judge's weights, nan without an answer."""
        return self.weights @ self._numbers()

    def weight(self, option: str) -> Float[np.ndarray, " n"]:
        """The weight of one option, nan without an answer."""
        return self.weights[:, index_of(option, self.question)]

    def hits(self, answer: str) -> np.ndarray:
        """Which texts were judged to be `answer`; no usable answer is a miss."""
        return self.choice == index_of(answer, self.question)

    def _numbers(self) -> np.ndarray:
        if self.question.values is None:
            raise InputError(f"{self.question.text!r} is no rating: its options stand for no numbers")
        return np.array(self.question.values)


@runtime_checkable
class Judge(Protocol):
    """Anything that answers a question about texts."""

    @property
    def name(self) -> str:
        """Under which its answers appear in tables."""
        ...

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Answer for every text; `seed` moves what is random in the judge (order of options), nothing else."""
        ...


def index_of(option: str, question: Question) -> int:
    """The place of an option, by its name."""
    if option not in question.options:
        raise InputError(f"unknown option {option!r} of {question.text!r}; known: {', '.join(question.options)}")
    return question.options.index(option)


def one_hot(choice: Sequence[int | None], c: int) -> Float[np.ndarray, "n c"]:
    """Weights of answers that are one option each; nan rows for None."""
    weights = np.zeros((len(choice), c))
    for i, option in enumerate(choice):
        weights[i] = math.nan if option is None else 0.0
        if option is not None:
            weights[i, option] = 1.0
    return weights


def check_texts(texts: Sequence[str], judge: str) -> None:
    """Refuse what a judge cannot read."""
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"{judge}: expected a list of one text or more, got {texts!r}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{judge}: text {i} is of type {type(text).__name__}, expected str")
