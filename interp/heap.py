"""Memory that a long job has freed goes back to the system at its end.

glibc keeps what is freed for the next allocation. Tensors of many sizes, of several threads, leave it in pieces: a
process that loads, extracts and trains over and over grows by about 1 GiB an hour though it holds nothing more
(`benchmarks/soak.py`). `malloc_trim(0)` hands every free page of every arena back, in milliseconds; other systems and
C libraries lack it, and there nothing is done.
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
