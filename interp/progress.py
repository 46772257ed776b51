"""One progress bar for every long stage: items done, rate, and time left estimated from the work that remains.

The estimate is the mean over the whole stage (tqdm's `smoothing=0`): it does not flicker with single slow items, and an
item may count for more than one unit (a batch counts its tokens).
"""

import sys
import time
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):
    """tqdm by a clock that nobody sets: by the wall clock, which may jump, rates and times come out negative."""

    monitor_interval = 0  # its thread compares with the wall clock

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()


def bar(total: int, label: str, *, unit: str = "tok", done: int = 0, show: bool | None = None) -> tqdm:
    """A progress bar of `total` units of which `done` were finished by an earlier run.

    `show=None` shows it where standard error is a terminal or a notebook's, and prints plain lines every few seconds
    elsewhere (a log file); `False` silences it. Use as a context manager and call `.update(units)`.
    """
    terminal = sys.stderr.isatty()
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    # Plain text in a notebook too: no widgets, which warn where they are missing and leave nothing in a saved file.
    # On standard output, for standard error has the ground of an error there.
    width = None if terminal else 76 if notebook else 100  # what a notebook's column holds without a break
    return _Bar(
        file=sys.stdout if notebook else sys.stderr,
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        unit_scale=True,
        smoothing=0,
        disable=show is False,
        mininterval=0.2 if terminal else 0.5 if notebook else 5.0,
        miniters=1,  # without that thread: look at the clock at every update
        ncols=width,
        leave=True,
    )
