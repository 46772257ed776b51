"""A judge that counts words: each option has its list, a negated word speaks for the opposite.

    count_c = Σ over words w of option c in the text:  1, or -1 if negated
    weight_c = (max(count_c, 0) + 1 / C') / Σ ...                         C' = number of options (a prior of one word)

A word counts where it stands between word boundaries, in any case. It is negated if one of the three words before it,
in the same clause, is a negation ("not", "never", "hardly", "n't", ...). With two options, a negated word of the one
counts for the other; with more, it counts against its own. A text with no word of any list has equal weights and is an
unusable answer: a lexicon that knows no word of a text has nothing to say about it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import InputError
from interp.judging.question import Question, Scores, check_texts

NEGATIONS = frozenset(
    "not no never none nobody nothing neither nor hardly barely scarcely without cannot lacks lacking".split()
)
_REACH = 3  # words before the counted one
_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[.,;:!?()\n]")
_BREAK = frozenset(".,;:!?()\n")


@dataclass(frozen=True)
class LexiconJudge:
    """Counts the words of `Question.words`, or of its own lists by option name."""

    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(option, its words); where empty, the question's own lists are used."""
    name: str = "lexicon"

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """The counts' shares as weights."""
        check_texts(texts, self.name)
        lists = [compile_words(words) for words in self._words(question)]
        counts = np.array([count_words(text, lists) for text in texts])
        return Scores(self.name, question, _shares(counts))

    def _words(self, question: Question) -> list[tuple[str, ...]]:
        own = dict(self.lists)
        words = [own.get(option, ()) for option in question.options] if own else list(question.words)
        if not any(words):
            raise InputError(
                f"{self.name}: no words for {', '.join(question.options)}; give the question `words`, or the judge "
                "lists of these names"
            )
        return words


def compile_words(words: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of the words or phrases whole; None for no words."""
    if not words:
        return None
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE)


def count_words(text: str, lists: Sequence[re.Pattern[str] | None]) -> Float[np.ndarray, " c"]:
    """Signed counts of each list's words in a text."""
    counts = np.zeros(len(lists))
    seen = 0
    for option, pattern in enumerate(lists):
        for match in pattern.finditer(text) if pattern else ():
            seen += 1
            if not negated(text[: match.start()]):
                counts[option] += 1
            elif len(lists) == 2:
                counts[1 - option] += 1
            else:
                counts[option] -= 1
    return counts if seen else np.full(len(lists), math.nan)


def negated(before: str) -> bool:
    """Whether the words in front negate what comes next."""
    for word in list(_TOKEN.finditer(before.lower()))[: -_REACH - 1 : -1]:
        if word[0] in _BREAK:
            return False
        if word[0] in NEGATIONS or word[0].endswith(("n't", "n’t")):
            return True
    return False


def _shares(counts: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    smoothed = np.maximum(counts, 0) + 1 / counts.shape[1]
    smoothed[np.isnan(counts)] = math.nan
    return smoothed / smoothed.sum(1, keepdims=True)
