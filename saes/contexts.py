"""The text around rows of a store, with one feature's activation on every token of it.

Rows of one fed sequence are stored one after the other, in order of position, so that whatever belongs to the window
`p - before ... p + after` lies within as many rows of row p. Tokens that no store holds (position 0 of each fed
sequence, special tokens, templates) are part of the text and have activation 0.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from saes.fires import FireLog


class Contexts(NamedTuple):
    """One window per (row, feature); column `before` is the row itself."""

    doc: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    tokens: Int[Tensor, "n w"]
    """Token ids; -1 outside the document."""
    activations: Float[Tensor, "n w"]


def contexts(
    log: FireLog,
    tokens: TokenFile,
    rows: Int[Tensor, " n"],
    features: Int[Tensor, " n"],
    *,
    before: int,
    after: int,
) -> Contexts:
    """The windows around `rows`, each with the activations of its feature."""
    width = before + after + 1
    if not len(rows):
        empty = torch.zeros(0, width)
        return Contexts(rows, rows.clone(), empty.long(), empty)
    shift = torch.arange(-before, after + 1)
    neighbours = (rows[:, None] + shift).clamp(0, len(log.store) - 1)
    unique, inverse = neighbours.unique(return_inverse=True)
    keys = log.store.gather([], unique.numpy())
    docs, positions = keys.doc.long()[inverse], keys.position.long()[inverse]
    doc, position = docs[:, before], positions[:, before]
    gap = positions - position[:, None]
    # A neighbour clamped at the store's end is a row met twice: writing it twice writes the same number.
    inside = (docs == doc[:, None]) & (gap >= -before) & (gap <= after)
    example, _ = torch.nonzero(inside, as_tuple=True)
    activations = torch.zeros(len(rows), width)
    activations[example, gap[inside] + before] = log.lookup(neighbours[inside], features[example])
    return Contexts(doc, position, _text(tokens, doc, position[:, None] + shift), activations)


def check_tokens(store: ActivationStore, tokens: TokenFile) -> None:
    """Refuse a token file that the store was not made from: its text would not be what the rows were computed on."""
    for spec in store.specs:
        if spec.tokens != tokens.digest:
            raise InputError(
                f"{store.path} was made from the token file of digest {str(spec.tokens)[:12]}, and {tokens.path} has "
                f"{tokens.digest[:12]}: give the token file of this store"
            )


def _text(tokens: TokenFile, doc: Int[Tensor, " n"], positions: Int[Tensor, "n w"]) -> Int[Tensor, "n w"]:
    offsets = torch.from_numpy(np.asarray(tokens.offsets))
    place = offsets[doc][:, None] + positions
    inside = (positions >= 0) & (place < offsets[doc + 1][:, None])
    found = np.asarray(tokens.tokens[place.clamp(0, int(offsets[-1]) - 1).numpy()]).astype(np.int64)
    return torch.where(inside, torch.from_numpy(found), -1)
