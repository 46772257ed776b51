"""Batches of documents under a token budget: windows, length buckets, right padding.

A document longer than `max_length` is fed as several windows of at most that many tokens. Windows are sorted by length
and cut greedily: the longest one left, of length t, is batched with as many of the next as give the largest

    sum(lengths) / (b * t + c),    b * t <= token_budget,    c = token_budget / 32, the fixed cost of a batch

t being rounded up to `multiple`. Where lengths are close together this fills the budget; where they are far apart it
stops before padding costs more than another batch. Equal lengths come together, in seeded order, and the
batches are shuffled, so that any stretch of them is a fair sample (of time left, of lengths in a shard). Padding is on
the right: causal attention never looks there, so no mask is needed and fused attention keeps its fast path.

With a BOS, each window is [BOS, tokens...]: `start` is then the document position of its first own token minus 1, so
that always

    position in the document = start + position in the window
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from interp.errors import InputError

_COST = 32


class Batch(NamedTuple):
    """Right-padded windows: row i holds `lengths[i]` tokens of document `doc[i]`, from its position `start[i]` on."""

    tokens: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    doc: Int[Tensor, " b"]
    start: Int[Tensor, " b"]


@runtime_checkable
class TokenSource(Protocol):
    """What batching asks of an `interp.tokenfile.TokenFile`."""

    @property
    def bos(self) -> int | None: ...
    @property
    def lengths(self) -> Int[np.ndarray, " docs"]: ...
    def __getitem__(self, index: int, /) -> Integer[np.ndarray, " t"]: ...


@dataclass(frozen=True)
class Windows:
    """What is fed, before padding: window i is `length[i]` positions of document `doc[i]`, from `start[i]` on."""

    doc: Int[np.ndarray, " w"]
    start: Int[np.ndarray, " w"]
    length: Int[np.ndarray, " w"]

    def __len__(self) -> int:
        return len(self.doc)

    def take(self, index: slice | np.ndarray) -> "Windows":
        """The windows at `index`."""
        return Windows(self.doc[index], self.start[index], self.length[index])


@dataclass(frozen=True)
class Buckets:
    """Windows in the order they are fed; batch i is windows[ends[i - 1]:ends[i]]."""

    windows: Windows
    ends: Int[np.ndarray, " batches"]
    multiple: int

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> tuple[int, int]:
        """First window of batch `index`, and one past its last."""
        return (int(self.ends[index - 1]) if index else 0), int(self.ends[index])

    @property
    def padded(self) -> Int[np.ndarray, " batches"]:
        """Tokens of each batch, padding included."""
        if not len(self):
            return np.zeros(0, np.int64)
        firsts = np.concatenate([[0], self.ends[:-1]])
        longest = np.maximum.reduceat(self.windows.length, firsts)
        return (self.ends - firsts) * _round_up(longest, self.multiple)

    @property
    def waste(self) -> float:
        """The share of all fed tokens that is padding."""
        return 1.0 - float(self.windows.length.sum()) / max(1, int(self.padded.sum()))

    def halve(self, index: int, *, tokens: int) -> "Buckets":
        """The same windows in the same order; from batch `index` on, batches of at least `tokens` are cut in two.

        `tokens` counts padding. A batch of one window stays as it is.
        """
        firsts = np.concatenate([[0], self.ends[:-1]])
        cut = (np.arange(len(self)) >= index) & (self.padded >= tokens) & (self.ends - firsts > 1)
        middles = (firsts[cut] + self.ends[cut]) // 2
        return Buckets(self.windows, np.sort(np.concatenate([self.ends, middles])), self.multiple)

    def batch(self, index: int, source: TokenSource) -> Batch:
        """Assemble batch `index` from the tokens of `source`."""
        windows = self.windows.take(slice(*self.span(index)))
        longest = int(_round_up(windows.length.max(), self.multiple))
        tokens = np.zeros((len(windows), longest), np.int64)
        for row, (doc, start, length) in enumerate(zip(windows.doc, windows.start, windows.length, strict=True)):
            tokens[row, :length] = window_ids(source, int(doc), int(start), int(length))
        columns = (tokens, windows.length, windows.doc, windows.start)
        return Batch(*(torch.from_numpy(np.ascontiguousarray(column)) for column in columns))


def window_ids(source: TokenSource, doc: int, start: int, length: int) -> Integer[np.ndarray, " t"]:
    """The ids fed for one window, the BOS included."""
    if source.bos is None:
        return source[doc][start : start + length]
    return np.concatenate([[source.bos], source[doc][start + 1 : start + length]])


def places(windows: Windows) -> Int[np.ndarray, " n"]:
    """The place in its window of every position of `windows`, one window behind the other."""
    first = np.cumsum(windows.length) - windows.length
    return np.arange(int(windows.length.sum())) - np.repeat(first, windows.length)


def default_token_budget(device: str) -> int:
    """Padded tokens per batch that suit the kind of device.

    CPU: SmolLM2 up to layer 15, float32, one core: 505 tok/s in batches of 64 tokens, 590 of 128, 649 of 256 to 1,024,
    584 of 2,048, 579 of 4,096 (activations leave the cache). GPU: meant to hide launches, not measured.
    """
    return 16_384 if device.startswith("cuda") else 1_024


def windows_of(
    lengths: Sequence[int] | Int[np.ndarray, " docs"],
    *,
    max_length: int,
    bos: bool = False,
    docs: Sequence[int] | Int[np.ndarray, " i"] | None = None,
) -> Windows:
    """Cut documents (all, or those in `docs`) into windows of at most `max_length` tokens, the BOS included."""
    own = 1 if bos else 0
    room = max_length - own
    if room < 1:
        raise InputError(f"max_length must leave room for a token{' behind the BOS' if bos else ''}, got {max_length}")
    every = np.asarray(lengths, np.int64)
    chosen = np.arange(len(every)) if docs is None else np.asarray(docs, np.int64)
    if len(chosen) and not (0 <= chosen.min() and chosen.max() < len(every)):
        raise InputError(f"docs must lie in 0..{len(every) - 1}, got {chosen.min()}..{chosen.max()}")
    counts = -(-every[chosen] // room)
    doc = np.repeat(chosen, counts)
    number = np.arange(len(doc)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * room
    return Windows(doc, begin - own, np.minimum(every[doc] - begin, room) + own)


def group(windows: Windows, *, token_budget: int, multiple: int = 1, seed: int = 0) -> Buckets:
    """Order `windows` into batches of similar length whose padded size respects `token_budget`."""
    return grouped(windows, token_budget=token_budget, multiple=multiple, seed=seed)[0]


def grouped(
    windows: Windows, *, token_budget: int, multiple: int = 1, seed: int = 0
) -> tuple[Buckets, Int[np.ndarray, " w"]]:
    """`group`, and which of the given windows stands at each place of the order."""
    if multiple < 1:
        raise InputError(f"multiple must be at least 1, got {multiple}")
    padded_lengths = _round_up(windows.length, multiple)
    longest = int(padded_lengths.max()) if len(windows) else 0
    if longest > token_budget:
        raise InputError(
            f"token_budget={token_budget} cannot hold one window of {longest} tokens; "
            "raise token_budget, or lower max_length"
        )
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.permutation(len(windows)), -windows.length))
    spans = _cut(windows.length[order], padded_lengths[order], token_budget)
    shuffled = [spans[i] for i in generator.permutation(len(spans))]
    index = np.concatenate([order[a:b] for a, b in shuffled]) if shuffled else order
    ends = np.cumsum([b - a for a, b in shuffled], dtype=np.int64)
    return Buckets(windows.take(index), ends, multiple), index


def _cut(lengths: Int[np.ndarray, " w"], padded: Int[np.ndarray, " w"], token_budget: int) -> list[tuple[int, int]]:
    """Cut windows, sorted from long to short, where the useful share of what a batch costs is best."""
    useful = np.concatenate([[0], np.cumsum(lengths)])
    cost = max(1, token_budget // _COST)
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(lengths):
        sizes = np.arange(1, min(len(lengths) - at, token_budget // padded[at]) + 1)
        gain = (useful[at + sizes] - useful[at]) / (sizes * padded[at] + cost)
        size = int(sizes[len(sizes) - 1 - np.argmax(gain[::-1])])
        spans.append((at, at + size))
        at += size
    return spans


def bucketed(
    lengths: Sequence[int] | Int[np.ndarray, " docs"],
    *,
    token_budget: int,
    max_length: int,
    multiple: int = 1,
    seed: int = 0,
    bos: bool = False,
    docs: Sequence[int] | Int[np.ndarray, " i"] | None = None,
) -> Buckets:
    """`group(windows_of(lengths))`: every token in exactly one window, every window in exactly one batch."""
    windows = windows_of(lengths, max_length=max_length, bos=bos, docs=docs)
    return group(windows, token_budget=token_budget, multiple=multiple, seed=seed)


def batches(
    source: TokenSource,
    *,
    token_budget: int,
    max_length: int,
    docs: Sequence[int] | Int[np.ndarray, " i"] | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """The batches of a token file, assembled one at a time."""
    buckets = bucketed(
        source.lengths,
        token_budget=token_budget,
        max_length=max_length,
        seed=seed,
        bos=source.bos is not None,
        docs=docs,
    )
    for index in range(len(buckets)):
        yield buckets.batch(index, source)


def _round_up(length: Int[np.ndarray, " *w"] | int | np.integer, multiple: int) -> np.ndarray:
    return np.asarray(-(-np.asarray(length) // multiple) * multiple)
