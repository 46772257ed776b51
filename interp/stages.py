"""Where the time of an extraction went: seconds per stage, and which stage the others waited for.

    tokens    a batch is assembled                                       a thread of its own
    forward   the model runs, and rows are selected and converted        the caller's thread, or the device
    copy      rows on their way from the device to the host              the device's copy engine
    writer    rows checked and hashed                                    a thread of its own
    disk      rows written and synced, shards renamed                    a thread of its own
    stall     the caller's thread waited for the writer                  idle, not work

The stages run at the same time, so the seconds do not add up to those of the run. Each is timed with two readings of
the clock; on a GPU forward and copy are the device's own seconds, read from events that have passed already.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = ("tokens", "forward", "copy", "writer", "disk")
NAMES = (*BUSY, "stall")


class Stages:
    """Seconds per stage; several threads may add to it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {name: 0.0 for name in NAMES}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` of work for a stage."""
        with self._lock:
            self._seconds[stage] += seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time spent in this block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begun)

    def as_dict(self) -> dict[str, float]:
        """The seconds of every stage."""
        with self._lock:
            return dict(self._seconds)

    def limiting(self) -> str:
        """The stage that was at work longest, which is what the run took; "none" before anything ran."""
        seconds = self.as_dict()
        busiest = max(BUSY, key=lambda stage: seconds[stage])
        return busiest if seconds[busiest] > 0 else "none"
