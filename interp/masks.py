"""Keeps transformers from waiting for the device in every forward pass.

Without a mask and a cache, transformers looks at the position ids for several sequences packed into one row, and reads
the answer back from the device: one wait per pass. Rows here are one sequence each and positions count up from 0, so
the answer is known: there are none.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "find_packed_sequence_indices"
_lock = threading.Lock()
_here = threading.local()
_own: list[Any] = []  # transformers' function, once for every pass under way


@contextmanager
def one_sequence_per_row(device: torch.device) -> Iterator[None]:
    """In this block, and this thread, transformers takes it as known that no row is packed; on a CPU it may look."""
    from transformers import masking_utils

    if device.type == "cpu" or not hasattr(masking_utils, _NAME):
        yield
        return
    with _lock:
        _own.append(_own[0] if _own else getattr(masking_utils, _NAME))
        setattr(masking_utils, _NAME, _answer)
    _here.passes = getattr(_here, "passes", 0) + 1
    try:
        yield
    finally:
        _here.passes -= 1
        with _lock:
            own = _own.pop()
            if not _own:
                setattr(masking_utils, _NAME, own)


def _answer(position_ids: Any) -> Any:
    return None if getattr(_here, "passes", 0) else _own[0](position_ids)
