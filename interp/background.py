"""A chain of threads that do jobs in order, with a bound on how many are under way.

do(first, second)      first runs in thread 0; then second in thread 1, while thread 0 begins the next job
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType

_Step = Callable[[], object]
_Job = tuple[_Step | None, ...]


class Background:
    """`do(*steps)` queues a job and returns at once, unless `depth` jobs are under way; the first to fail stops all.

    There is a thread for each of `names`, and a job has a step for each (None: nothing to do there). Jobs keep their
    order in every thread, and one is under way until its last step is done. An error in a step is raised by the next
    `do`, `room` or `drain`. Leaving the context drains, or drops what waits if there was an error.
    """

    def __init__(self, *names: str, depth: int) -> None:
        self.depth = depth
        self._queues: list[queue.SimpleQueue[_Job | None]] = [queue.SimpleQueue() for _ in names]
        self._threads = [
            threading.Thread(target=self._run, args=(place,), name=name, daemon=True)
            for place, name in enumerate(names)
        ]
        self._state = threading.Condition()
        self._under_way = 0
        self._error: BaseException | None = None
        self._dropping = False

    def _run(self, place: int) -> None:
        own, last = self._queues[place], place + 1 == len(self._queues)
        while (job := own.get()) is not None:
            step = job[place]
            try:
                if step is not None and self._error is None and not self._dropping:
                    step()
            except BaseException as error:
                with self._state:
                    self._error = self._error or error
            if not last:
                self._queues[place + 1].put(job)
            step = job = None  # whoever waits for room may count on its memory
            if last:
                with self._state:
                    self._under_way -= 1
                    self._state.notify_all()
        if not last:
            self._queues[place + 1].put(None)

    def room(self) -> None:
        """Wait until `do` would return at once."""
        self._wait(lambda: self._under_way < self.depth)

    def do(self, *steps: _Step | None) -> None:
        """Queue a job."""
        assert len(steps) == len(self._queues), f"{len(steps)} steps for {len(self._queues)} threads"
        self.room()
        with self._state:
            self._under_way += 1
        self._queues[0].put(steps)

    def drain(self) -> None:
        """Wait until every queued job is done."""
        self._wait(lambda: self._under_way == 0)

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._state:
            self._state.wait_for(lambda: self._error is not None or done())
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Background":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dropping = kind is not None
        self._queues[0].put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error
