"""Windows of equal length for operating statistics: one document each, its first `length` positions.

The rank of a sequence of n positions is n at most, so windows of different lengths would mix different ceilings; those
shorter than 2e would hide how much of the kernel's capacity is used. Documents with too few tokens are passed over.
"""

from typing import Any

import numpy as np
import torch

from interp.batching import Batch
from interp.chat import adds_bos
from interp.corpus import Corpus
from interp.errors import InputError
from interp.model import HookedModel
from interp.tokens import Encoder

_AT_ONCE = 64


def even_windows(
    model: HookedModel, corpus: Corpus, *, max_tokens: int, length: int, prepend_bos: bool | None = None
) -> list[Batch]:
    """`max_tokens // length` windows (at least one) in the corpus's order, one to a batch, none of them padded."""
    length, wanted = min(length, model.cfg.n_ctx), max(1, max_tokens // min(length, model.cfg.n_ctx))
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so no text can be fed to it; give batches of tokens instead")
    bos = prepend_bos
    if bos is None:
        bos = model.preset.prepend_bos if model.preset is not None else adds_bos(model.tokenizer)
    encoder = Encoder.of(model.tokenizer, prepend_bos=bos)
    first = [encoder.bos] if bos and encoder.bos is not None else []
    found: list[Batch] = []
    for start in range(0, len(corpus), _AT_ONCE):
        if len(found) == wanted:
            break
        for place, pieces in enumerate(encoder.encode(corpus.documents[start : start + _AT_ONCE])):
            if len(first) + len(pieces.ids) >= length and len(found) < wanted:
                found.append(_window(first, pieces.ids, length, start + place))
    if not found:
        raise InputError(
            f"no document of {corpus.source!r} has {length} tokens; give longer documents, or a smaller max_length"
        )
    return found


def _window(first: list[Any], ids: np.ndarray, length: int, doc: int) -> Batch:
    row = np.concatenate([np.asarray(first, np.int64), ids])[:length]
    columns = (row[None], [length], [doc], [-len(first)])
    return Batch(*(torch.as_tensor(np.asarray(column, np.int64)) for column in columns))
