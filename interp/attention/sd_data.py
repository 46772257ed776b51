"""Windows of bytes for the twin language models.

A document's UTF-8 bytes are cut into pieces of n_ctx; a window reads BOS and all but the last byte of a piece, and is
asked for every byte of it. The last piece is moved back to end with the document, so that all windows of a document
longer than n_ctx are full; shorter documents are filled up, and what is filled is not asked for. No window holds two
documents. For measuring (`once=True`) bytes that two windows share are asked for in the first of them only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.attention.sd_model import BOS
from interp.corpus import Corpus, id_hash
from interp.errors import InputError

IGNORED = -1


@dataclass(frozen=True)
class Windows:
    """Windows of several documents; `tokens` in, `targets` out (-1: not asked for)."""

    tokens: Int[Tensor, "n t"]
    targets: Int[Tensor, "n t"]
    documents: Int[Tensor, " n"]
    """Which document each is from, counted from 0."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def full(self) -> Bool[Tensor, " n"]:
        """Windows of which no position is filled up."""
        return self.tokens[:, -1] >= 0

    def spread(self, most: int) -> Int[Tensor, " b"]:
        """The first full window of each of the first `most` documents that have one."""
        found = {int(self.documents[number]): number for number in self.full.nonzero()[:, 0].flip(0).tolist()}
        if not found:
            raise InputError(
                "no window is full: every document is shorter than n_ctx; give longer text or a smaller n_ctx"
            )
        return torch.tensor([found[document] for document in sorted(found)[:most]])

    def batch(self, chosen: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Tokens and targets as int64; positions that were filled up read BOS."""
        tokens = self.tokens[chosen].long()
        return torch.where(tokens < 0, BOS, tokens), self.targets[chosen].long()


def windows(corpus: Corpus, n_ctx: int, *, once: bool = False) -> Windows:
    """Every window of every document, in order."""
    tokens, targets, documents = [], [], []
    for number, document in enumerate(corpus):
        raw = np.frombuffer(document.text.encode(errors="surrogatepass"), np.uint8).astype(np.int16)
        for start in range(0, len(raw), n_ctx):
            moved = max(0, min(start, len(raw) - n_ctx))
            piece = raw[moved : moved + n_ctx]
            line = np.full((2, n_ctx), IGNORED, np.int16)
            line[0, 0] = BOS
            line[0, 1 : len(piece)] = piece[:-1]
            line[1, : len(piece)] = piece
            if once:
                line[1, : start - moved] = IGNORED
            tokens.append(line[0])
            targets.append(line[1])
            documents.append(number)
    if not tokens:
        raise InputError(f"{corpus.source!r} holds no text")
    return Windows(torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.stack(targets)), torch.tensor(documents))


def batches(data: Windows, size: int, *, seed: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from number `first` on: epoch after epoch, each in its own order, a function of (seed, epoch)."""
    if size > len(data):
        raise InputError(f"a batch of {size} windows needs as many; the corpus has {len(data)}")
    per_epoch = len(data) // size
    epoch, place = divmod(first, per_epoch)
    while True:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(data)))
        for number in range(place, per_epoch):
            yield data.batch(order[number * size : (number + 1) * size])
        epoch, place = epoch + 1, 0


def chosen_documents(corpus: Corpus, most: int) -> Corpus:
    """The first `most` documents in the order of a hash of their ids: the same ones on every machine."""
    order = sorted(corpus, key=lambda document: id_hash("twins:" + document.id))
    return Corpus(tuple(order[:most]), corpus.source)
