"""The order in which a store is read: a true shuffle with a stated horizon, as a function of (seed, epoch).

A store of n rows and a horizon ("window") of w rows:

    n <= w:   one permutation of all rows
    n > w:    blocks of 256 rows are permuted over the whole store, then the rows within each run of w / 256 blocks

Two rows are neighbours in the order of one epoch with the same chance wherever they stand in the store, up to their
block. Any stretch of the order is computed without the ones before it, which is what makes `first=k` free.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np
from jaxtyping import Int

BLOCK = 256
HORIZON_BYTES = 2 << 30

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Order:
    """The shuffled order of `n` rows; `rows(start, stop)` is the stretch start..stop of it."""

    def __init__(self, n: int, *, seed: int, epoch: int = 0, window: int) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch
        self.window = n if n <= window else max(1, window // BLOCK) * BLOCK
        self._lock = threading.Lock()
        self._kept: dict[int, Int[np.ndarray, " w"]] = {}

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *stream])

    @cached_property
    def _blocks(self) -> Int[np.ndarray, " blocks"]:
        """Blocks in reading order. A short last block stays last, so that windows begin at multiples of `window`."""
        whole = self.n // BLOCK
        return np.concatenate([self._random(0).permutation(whole), np.arange(whole, -(-self.n // BLOCK))])

    def _window(self, index: int) -> Int[np.ndarray, " w"]:
        with self._lock:
            if index not in self._kept:
                while len(self._kept) >= 2:
                    del self._kept[next(iter(self._kept))]
                self._kept[index] = self._shuffled(index)
            return self._kept[index]

    def _shuffled(self, index: int) -> Int[np.ndarray, " w"]:
        if self.window >= self.n:
            return self._random(1, 0).permutation(self.n)
        per_window = self.window // BLOCK
        blocks = self._blocks[index * per_window : (index + 1) * per_window]
        rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        return self._random(1, index).permutation(rows[rows < self.n])

    def rows(self, start: int, stop: int) -> Int[np.ndarray, " n"]:
        """Which rows stand at places start..stop of the order."""
        pieces: list[Int[np.ndarray, " i"]] = []
        while start < stop:
            index, offset = divmod(start, self.window)
            piece = self._window(index)[offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def prefetched(read: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Iterator[_Result]:
    """`map(read, items)`, in order, with `workers` threads reading up to `workers + 1` items ahead."""
    left = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="reader") as pool:
        waiting: deque[Future[_Result]] = deque(pool.submit(read, item) for item in islice(left, workers + 1))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in islice(left, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
