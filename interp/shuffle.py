"""The order in which a store is read: a true shuffle with a stated horizon, as a function of (seed, epoch).

A store of n rows and a horizon ("window") of w rows:

    n <= w:   one permutation of all rows
    n > w:    blocks of 256 rows are permuted over the whole store, then the rows within each run of w / 256 blocks

Two rows are neighbours in the order of one epoch with the same chance wherever they stand in the store, up to their
block. Any stretch of the order is computed without the ones before it, which is what makes `first=k` free.
"""

import atexit
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

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


_open: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """End the iterators that nobody has ended, while the modules that their ends rely on are still whole."""
    for iterator in list(_open):
        with contextlib.suppress(ValueError):  # at work in a thread that nobody waits for
            iterator.close()


def _closed_at_exit(iterator: Generator[_Result, None, None]) -> Generator[_Result, None, None]:
    _open.add(iterator)
    return iterator


def prefetched(
    read: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[_Result, None, None]:
    """`map(read, items)`, in order, with `workers` threads reading up to `workers + 1` items ahead."""
    return _closed_at_exit(_prefetched(read, items, workers))


def _prefetched(
    read: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[_Result, None, None]:
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


Stopped = Callable[[], bool]


class _Job:
    """One call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._box: list[Any] = []
        self._error: BaseException | None = None
        self._call: Callable[[], Any] | None = call
        self.thread = threading.Thread(target=self._run, name="one ahead")
        self.thread.start()

    def _run(self) -> None:
        assert self._call is not None
        try:
            self._box.append(self._call())
        except BaseException as error:
            self._error = error
        finally:
            self._call = None

    def take(self) -> Any:
        """Wait for the result, and let go of it."""
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._box.pop()


def one_ahead(make: Callable[[_Item, Stopped], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
    """`make(item, stopped)` for each item, in order; while one result is used the next is made, and no other.

    Two results exist at most: whoever takes one lets go of it before asking for the next. Each is made in a thread of
    its own, which is asked to stop (`stopped()` turns true) when the iterator is left or the interpreter ends, and is
    waited for. An error in `make` is raised where its result would have come.
    """
    return _closed_at_exit(_one_ahead(make, items))


def _one_ahead(make: Callable[[_Item, Stopped], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
    leave = threading.Event()

    def stopped() -> bool:
        # Threads are waited for at the end of the interpreter, also when a traceback still holds this iterator.
        return leave.is_set() or not threading.main_thread().is_alive()

    left = iter(items)
    job: _Job | None = None
    try:
        job = next((_Job(partial(make, item, stopped)) for item in left), None)
        while job is not None:
            ready = [job.take()]
            job = next((_Job(partial(make, item, stopped)) for item in left), None)
            yield ready.pop()
    finally:
        leave.set()
        if job is not None:
            job.thread.join()
