"""Batches assembled ahead by a thread, a few at a time, in an order that may be changed on the way."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

AHEAD = 2


class Feed(Generic[_Item]):
    """`take()` is `make(number)` for each of `start`'s numbers, made up to `AHEAD` calls before it is taken."""

    def __init__(self, make: Callable[[int], _Item]) -> None:
        self._make = make
        self._numbers: Iterator[int] = iter(())
        self._waiting: deque[Future[_Item]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="assemble")

    def start(self, numbers: Iterator[int]) -> None:
        """Go on with these numbers; what was made for others is dropped."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._numbers = numbers
        self._fill()

    def _fill(self) -> None:
        for number in islice(self._numbers, max(0, AHEAD - len(self._waiting))):
            self._waiting.append(self._pool.submit(self._make, number))

    def take(self) -> _Item:
        """The next item; an error in making it is raised here."""
        result = self._waiting.popleft().result()
        self._fill()
        return result

    def __enter__(self) -> "Feed[_Item]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
