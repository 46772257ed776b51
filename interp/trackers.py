"""Metrics beyond the JSON lines: one callback that gets every line."""

import logging
from collections.abc import Callable, Mapping

Tracker = Callable[[Mapping[str, float]], None]
"""Gets each line of metrics, `step` included."""

_log = logging.getLogger(__name__)


class Guarded:
    """A tracker whose failures do not reach the run: the first is logged, and it is tried again at the next line."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.failed = tracker, False

    def __call__(self, line: Mapping[str, float]) -> None:
        try:
            self.tracker(line)
        except Exception as error:
            if not self.failed:
                _log.warning(
                    "metrics of step %d did not reach the tracker (%s: %s); training goes on and metrics.jsonl holds "
                    "every line",
                    line["step"],
                    type(error).__name__,
                    error,
                )
            self.failed = True
