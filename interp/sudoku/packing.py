"""Documents of different lengths in rows of one length, none of which sees another.

    row      | A A A A | B B B | C C C C C | . . |        documents 0 0 0 0 1 1 1 2 2 2 2 2 -1 -1
    position   0 1 2 3   0 1 2   0 1 2 3 4   0 0          they restart with every document
    query t sees source s   iff   s <= t  and  document(s) = document(t)

so the logits of a document are those it has alone. Documents are placed in the order given, each behind the last one if
it fits and in a new row if it does not ("next fit"), as the paper's code packs them into rows of 300. Where every row
holds a single document there is nothing to hide: no mask is made, and attention is plainly causal.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError

NOTHING = -1  # the document of padding


class Places(NamedTuple):
    """Where documents stand: row and first column of each."""

    row: Int[np.ndarray, " m"]
    start: Int[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def n_rows(self) -> int:
        """Rows begun."""
        return int(self.row[-1]) + 1 if len(self.row) else 0


class Rows(NamedTuple):
    """Packed rows, as the model takes them."""

    tokens: Int[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    documents: Int[Tensor, "b t"] | None
    """Which document of its row each position belongs to, -1 for padding; `None`: every row holds one alone."""


def place(lengths: Int[np.ndarray, " m"], n_ctx: int, *, rows: int | None = None) -> Places:
    """Next fit into rows of `n_ctx`; with `rows`, only the documents that fit into so many."""
    if len(lengths) and (longest := int(lengths.max())) > n_ctx:
        raise InputError(
            f"document {int(lengths.argmax())} has {longest} tokens, more than the {n_ctx} positions of the model "
            f"(n_ctx): leave it out, or give the model more"
        )
    row, column, places = 0, 0, []
    for length in lengths.tolist():
        if column + length > n_ctx:
            row, column = row + 1, 0
            if row == rows:
                break
        places.append((row, column))
        column += length
    found = np.array(places, np.int64).reshape(-1, 2)
    return Places(found[:, 0], found[:, 1])


def pack(
    tokens: Int[np.ndarray, "m t"], lengths: Int[np.ndarray, " m"], places: Places, *, n_ctx: int, rows: int, pad: int
) -> Rows:
    """The rows that hold the first `len(places)` documents at their places."""
    lengths = lengths[: len(places)]
    doc, position = every_position(lengths)
    flat = places.row[doc] * n_ctx + places.start[doc] + position
    packed = np.full(rows * n_ctx, pad, np.int64)
    packed[flat] = tokens[doc, position]
    positions = np.zeros(rows * n_ctx, np.int64)
    positions[flat] = position
    documents = None
    if len(places) > places.n_rows:
        first = np.searchsorted(places.row, places.row)  # of each document, the first document of its row
        numbered = np.full(rows * n_ctx, NOTHING, np.int64)
        numbered[flat] = (np.arange(len(places)) - first)[doc]
        documents = torch.from_numpy(numbered.reshape(rows, n_ctx))
    shape = rows, n_ctx
    return Rows(torch.from_numpy(packed.reshape(shape)), torch.from_numpy(positions.reshape(shape)), documents)


def every_position(lengths: Int[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Document and position of every token, document after document."""
    doc = np.repeat(np.arange(len(lengths)), lengths)
    return doc, np.arange(len(doc)) - (np.cumsum(lengths) - lengths)[doc]


def block_mask(documents: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """True where a query may look: back, within its document. Padding sees padding, so that no softmax is empty."""
    t = documents.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


def hidden_states(hf: torch.nn.Module, rows: Rows) -> Float[Tensor, "b t d"]:
    """What the unembedding reads, at every position of packed rows."""
    mask = None if rows.documents is None else block_mask(rows.documents)
    body = hf.get_submodule("transformer")
    # One document a row: positions are those the model counts itself, and naming them would make transformers look
    # for packed sequences, which waits for a GPU.
    positions = None if mask is None else rows.positions
    return body(rows.tokens, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
