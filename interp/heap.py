"""Memory that a long job has freed goes back to the system at its end.

glibc keeps what is freed for the next allocation, and tensors of many sizes, of several threads, leave it in pieces.
`malloc_trim(0)` hands every free page of every arena back, in milliseconds, so that what a process holds after a job is
what it needs (`benchmarks/soak.py`); other systems and C libraries lack it, and there nothing is done.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def trimmed() -> Iterator[None]:
    """Hand free memory back when the block, or the function decorated with `trimmed()`, is over."""
    try:
        yield
    finally:
        if trim := _malloc_trim():
            trim(0)


@cache
def _malloc_trim() -> Any | None:
    """glibc's function (man 3 malloc_trim), or None where there is none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no such symbol; no C library to open; Windows
        return None
