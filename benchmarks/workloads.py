"""What the extraction benchmark runs over: real text as one TokenFile, and the batches that forward passes are given.

    equal    documents of exactly `length` tokens, cut from the built-in corpus: all batches are full, nothing is padded
    mixed    whole documents of the built-in corpus; those over `max_length` tokens are fed as several windows

Windows never cross documents. Rows are numbered as in the token file: row r is its r-th token, whoever computes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.corpus import Document, id_hash, read_corpus
from interp.tokenfile import TokenFile, tokenize


class Window(NamedTuple):
    """Tokens `start` to `start + length` of the token file, fed as one sequence."""

    start: int
    length: int


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences "b t" and their windows. Causal attention never looks right: no mask is needed."""

    tokens: Tensor
    windows: tuple[Window, ...]

    def place(self, acts: Tensor, rows: Tensor) -> None:
        """Copy the activations "b t d" of real tokens to their places in `rows` "n d"."""
        for sequence, (start, length) in zip(acts, self.windows, strict=True):
            rows[start : start + length] = sequence[:length]


@dataclass(frozen=True)
class Workload:
    """One set of documents and the ways of batching them."""

    name: str
    file: TokenFile
    windows: tuple[Window, ...]
    max_length: int
    batch_tokens: int
    packed_length: int

    @property
    def n_tokens(self) -> int:
        """Real tokens: what throughput counts."""
        return self.file.n_tokens

    @property
    def n_packed(self) -> int:
        """Tokens in whole sequences of `packed_length`; the rest at the end is dropped by packing."""
        return self.n_tokens - self.n_tokens % self.packed_length

    def exact(self) -> list[Batch]:
        """Only windows of exactly the same length share a batch: no padding, but many small batches."""
        ordered = sorted(self.windows, key=lambda window: -window.length)
        groups = (list(group) for _, group in groupby(ordered, key=lambda window: window.length))
        return self._batches(part for group in groups for part in self._filled(group))

    def padded(self) -> list[Batch]:
        """Windows sorted by length in batches of at most `batch_tokens`; a fifth of a row at most is padding."""
        return self._batches(self._filled(sorted(self.windows, key=lambda window: -window.length)))

    def packed(self) -> list[Batch]:
        """All tokens on end, cut every `packed_length`: full batches, but attention crosses documents."""
        size = self.packed_length
        return self._batches(self._filled([Window(at, size) for at in range(0, self.n_packed, size)]))

    def _filled(self, windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
        at = 0
        while at < len(windows):
            longest = windows[at].length
            stop = at + 1
            while (
                stop < len(windows)
                and (stop - at) < self.batch_tokens // longest
                and windows[stop].length >= 0.8 * longest
            ):
                stop += 1
            yield windows[at:stop]
            at = stop

    def _batches(self, parts: Iterable[Sequence[Window]]) -> list[Batch]:
        found = []
        for part in parts:
            tokens = np.zeros((len(part), max(length for _, length in part)), np.int64)
            for row, (start, length) in zip(tokens, part, strict=True):
                row[:length] = self.file.tokens[start : start + length]
            found.append(Batch(torch.from_numpy(tokens), tuple(part)))
        return found

    def describe(self) -> dict[str, Any]:
        """The workload in numbers, for the record."""
        lengths = np.array([window.length for window in self.windows])
        fed = sum(batch.tokens.numel() for batch in self.padded())
        return {
            "tokens": self.n_tokens,
            "documents": len(self.file),
            "windows": len(self.windows),
            "window_lengths_min_median_max": [int(lengths.min()), float(np.median(lengths)), int(lengths.max())],
            "max_length": self.max_length,
            "tokens_per_batch": self.batch_tokens,
            "batches_exact_padded_packed": [len(self.exact()), len(self.padded()), len(self.packed())],
            "padding_share_of_padded": round(1 - self.n_tokens / fed, 4),
            "tokens_sha256": self.file.digest,
        }


def workloads(
    tokenizer: Any, folder: Path, *, n_tokens: int, batch: int, length: int, max_length: int
) -> list[Workload]:
    """(a) equal-length and (b) mixed-length documents of about `n_tokens` tokens each; (a) is whole batches."""
    corpus = sorted(read_corpus("builtin"), key=lambda document: id_hash("bench:" + document.id))
    count = max(1, n_tokens // (batch * length)) * batch
    equal = tokenize(_of_exactly(length, corpus, tokenizer, count), tokenizer, folder / "equal")
    assert set(equal.lengths) == {length}, "a slice of tokens did not come back as it was"
    mixed = tokenize(corpus, tokenizer, folder / "mixed", max_tokens=n_tokens)
    return [
        Workload(name, file, _windows(file, max_length), max_length, batch * length, length)
        for name, file in (("equal", equal), ("mixed", mixed))
    ]


def _of_exactly(length: int, corpus: Iterable[Document], tokenizer: Any, count: int) -> list[Document]:
    """Documents of `length` tokens: slices of real ones whose text, tokenised again, gives the same ids."""
    found: list[Document] = []
    for document in corpus:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for at in range(0, len(ids) - length + 1, length):
            text = tokenizer.decode(ids[at : at + length])
            if tokenizer(text, add_special_tokens=False)["input_ids"] == ids[at : at + length]:
                found.append(Document(f"{document.id}[{at}]", text))
            if len(found) == count:
                return found
    raise ValueError(f"the built-in corpus gives only {len(found)} slices of {length} tokens, {count} were asked for")


def _windows(file: TokenFile, max_length: int) -> tuple[Window, ...]:
    return tuple(
        Window(at, min(max_length, stop - at))
        for first, stop in zip(file.offsets[:-1].tolist(), file.offsets[1:].tolist(), strict=True)
        for at in range(first, stop, max_length)
    )
