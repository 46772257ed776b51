"""A thread that does jobs in order, with a bounded queue, for work that must not hold up the main loop."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType

_Job = Callable[[], None]


class Background:
    """`do(job)` queues a job and returns at once, unless `depth` jobs wait already; the first to fail stops the rest.

    Its error is raised by the next `do` or `drain`. Leaving the context drains, or drops what waits if there was an
    error.
    """

    def __init__(self, name: str, *, depth: int) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None and not self._dropping:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def do(self, job: _Job) -> None:
        """Queue `job`."""
        self._raise()
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until every queued job is done."""
        self._jobs.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dropping = kind is not None
        self._jobs.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
