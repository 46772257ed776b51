"""Words as tokens: which entries of a vocabulary stand for the words of several sets.

    sets = token_sets(tokenizer, {"joy": ["joy", "glee"], "fear": ["fear", "dread"]})
    sets.words[0]        # (WordTokens("joy", (25922, 7365, ...)), ...): "joy", " joy", "Joy", " Joy", ... if they exist

A word's tokens are all single tokens that decode to it, with and without a leading blank, as given, in lower case, in
capitals and capitalised. The unembedding has no row for a word of several tokens. Such a word is left out, or, with
`multi_token="first"`, stands for the first token of " word", which speaks for every word that begins like it: a wider
net with more noise, for languages and vocabularies where most words would be lost. A token that words of two sets
claim speaks for neither; within a set it belongs to the first word that claims it. What is left out is listed, and so
is what counts by its first token. A set of which nothing is left is an error: its score would be a score of nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from interp.errors import InputError
from interp.lens import token_strings

MultiToken = Literal["drop", "first"]


class WordTokens(NamedTuple):
    """A word and the tokens that stand for it."""

    word: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenSets:
    """Sets of words, in order, with the tokens of each word."""

    names: tuple[str, ...]
    words: tuple[tuple[WordTokens, ...], ...]
    """Of each set; none is empty."""
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By set: words that no token stands for."""
    by_first: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By set: words of several tokens that count by the first of them."""

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.words) or len(set(self.names)) != len(self.names):
            raise InputError(
                f"expected one list of words for each of one or more different names, got {len(self.words)} for "
                f"{list(self.names)}"
            )
        for name, words in zip(self.names, self.words, strict=True):
            if not words or not all(word.ids for word in words):
                raise InputError(
                    f"no token stands for any word of {name!r} (left out: {', '.join(self.left_out.get(name, ()))}). "
                    "Add words that are single tokens of this model (words, --words), or take first tokens "
                    '(multi_token="first", --multi-token first)'
                )

    def plus(self, other: "TokenSets") -> "TokenSets":
        """These sets, then those of `other`; a token may stand in both."""
        return TokenSets(self.names + other.names, self.words + other.words, self.left_out | other.left_out,
                         self.by_first | other.by_first)  # fmt: skip


def token_sets(tokenizer: Any, words: Mapping[str, Sequence[str]], *, multi_token: MultiToken = "drop") -> TokenSets:
    """Look every word up; see the module's docstring for words of several tokens."""
    if multi_token not in get_args(MultiToken):
        raise InputError(f"multi_token={multi_token!r}: expected one of {', '.join(get_args(MultiToken))}")
    if tokenizer is None:
        raise InputError("this model came without a tokenizer, and words cannot be looked up: give one to `wrap`")
    if empty := [name for name, given in words.items() if not given]:
        raise InputError(f"the word list of {empty[0]!r} is empty; give it a word or leave it out")
    table = _by_string(tokenizer)
    found = {
        name: [(word, _tokens_of(word, table, tokenizer, multi_token)) for word in given]
        for name, given in words.items()
    }
    shared = _claimed_twice({name: {i for _, ids in rows for i in ids} for name, rows in found.items()})
    kept: list[tuple[WordTokens, ...]] = []
    left_out, by_first = dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()
    for name, rows in found.items():
        taken, own = set(shared), []
        for word, ids in rows:
            own.append(WordTokens(word, tuple(i for i in ids if i not in taken)))
            taken.update(ids)
        kept.append(tuple(word for word in own if word.ids))
        if lost := tuple(word.word for word in own if not word.ids):
            left_out[name] = lost
        if first := tuple(word.word for word in kept[-1] if not any(text in table for text in _spellings(word.word))):
            by_first[name] = first
    return TokenSets(tuple(words), tuple(kept), left_out, by_first)


def _by_string(tokenizer: Any) -> dict[str, list[int]]:
    """Ordinary tokens by what they decode to, a leading blank kept."""
    special = set(tokenizer.all_special_ids)
    table: dict[str, list[int]] = {}
    for i, text in token_strings(tokenizer, [i for i in range(len(tokenizer)) if i not in special]).items():
        table.setdefault(text, []).append(i)
    return table


def _tokens_of(word: str, table: Mapping[str, list[int]], tokenizer: Any, multi_token: MultiToken) -> tuple[int, ...]:
    ids = [i for text in _spellings(word) for i in table.get(text, ())]
    if ids or multi_token == "drop":
        return tuple(dict.fromkeys(ids))
    first = tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"][:1]
    return tuple(i for i in first if i not in tokenizer.all_special_ids and tokenizer.decode([i]).strip())


def _spellings(word: str) -> list[str]:
    word = word.strip()
    variants = dict.fromkeys([word, word.lower(), word.upper(), word[:1].upper() + word[1:].lower()])
    return [text for variant in variants for text in (variant, f" {variant}")]


def _claimed_twice(claims: Mapping[str, Iterable[int]]) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for ids in claims.values():
        twice |= seen & set(ids)
        seen |= set(ids)
    return twice
