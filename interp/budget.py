"""The token budget of batches, found by trying: tokens per second on the plan's own windows, budget by budget.

    budgets b, 2b, 4b, ...;   rate(B) = median over rounds of sum of real tokens / sum of seconds until the rows arrived

over three batches of each budget: a short, a middling and a long one, so that budgets are compared on the same mixture
of lengths. b is the smallest that holds a window. The search ends where memory does, where two doublings in a row gave
nothing, or where the batches take too long to try larger ones. What is chosen is written into the plan: a run that is
continued uses it, and one that should give the same bytes again is given the number.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from interp.batching import Buckets, Windows, group
from interp.errors import InputError
from interp.pipeline import Ready, Rows, batch_of, is_out_of_memory
from interp.plan import Selector

ROUNDS = 3
SMALLEST, MOST = 256, 1 << 18
"""Tokens: smaller and larger batches are not tried."""
PATIENCE = 10.0
"""Seconds: no further round of a budget after so many, and no larger budget."""
GAIN = 1.02
"""How much faster a larger budget has to be: below, the difference is noise, and memory costs more."""
_QUANTILES = (1 / 6, 1 / 2, 5 / 6)


@runtime_checkable
class Running(Protocol):
    """What is timed: `interp.pipeline.Runner`."""

    def begin(self, capacity: int) -> None: ...
    def near(self, ready: Ready) -> Ready: ...
    def run(self, ready: Ready) -> Rows: ...


@dataclass(frozen=True)
class Trial:
    """One budget that was tried; no rate where memory ran out."""

    token_budget: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Search:
    """What was tried and chosen."""

    token_budget: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        said = (
            f"{trial.token_budget:,}: "
            + ("out of memory" if trial.tokens_per_second is None else f"{trial.tokens_per_second:,.0f} tok/s")
            for trial in self.trials
        )
        return ", ".join(said)


def search(
    runner: Running,
    selector: Selector,
    windows: Windows,
    *,
    multiple: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Search:
    """Try budgets on a sample of `windows`."""
    if not len(windows):
        raise InputError("there is no window to find a token budget for")
    some = sample(windows, 4 * MOST, seed=seed)
    longest = -(-int(windows.length.max()) // multiple) * multiple
    budget = best = max(longest, SMALLEST)
    rates: dict[int, float | None] = {}
    since = 0
    while since < 2 and budget <= max(MOST, longest):
        buckets = group(some, token_budget=max(budget, longest), multiple=multiple, seed=seed)
        ready = [runner.near(batch_of(buckets, selector, i)) for i in typical(buckets)]
        begun = clock()
        rate = rates[budget] = _rate(runner, ready, clock)
        if rate is None:
            break
        known = rates[best]
        assert known is not None
        best, since = (budget, 0) if budget == best or rate > GAIN * known else (best, since + 1)
        if clock() - begun > PATIENCE or len(buckets) == 1:
            break
        budget *= 2
    return Search(best, tuple(Trial(*pair) for pair in rates.items()))


def typical(buckets: Buckets) -> list[int]:
    """Three batches (or fewer): those at a sixth, a half and five sixths of all tokens, ordered by length of window."""
    firsts = np.concatenate([[0], buckets.ends[:-1]])
    order = np.argsort(np.maximum.reduceat(buckets.windows.length, firsts), kind="stable")
    done = np.cumsum(buckets.padded[order])
    places = np.searchsorted(done, np.asarray(_QUANTILES) * done[-1])
    return sorted({int(order[place]) for place in places})


def _rate(runner: Running, ready: list[Ready], clock: Callable[[], float]) -> float | None:
    """Tokens per second; None if a batch did not fit into memory. The largest batch goes first, once, to warm up."""
    tokens = sum(int(each.batch.lengths.sum()) for each in ready)
    largest = max(ready, key=lambda each: each.batch.tokens.numel())
    rates: list[float] = []
    runner.begin(largest.batch.tokens.numel())
    try:
        begun = clock()
        _timed(runner, largest, clock)
        while not rates or (len(rates) < ROUNDS and clock() - begun < PATIENCE):
            rates.append(tokens / max(sum(_timed(runner, each, clock) for each in ready), 1e-9))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
    return float(median(rates))


def _timed(runner: Running, ready: Ready, clock: Callable[[], float]) -> float:
    """Seconds until the rows are there: this waits for the device, which extraction itself never does."""
    begun = clock()
    rows = runner.run(ready)
    rows.wait()
    rows.release()
    return clock() - begun


def sample(windows: Windows, tokens: int, *, seed: int = 0) -> Windows:
    """About so many tokens of `windows`, chosen at random: enough to time, without grouping a whole corpus."""
    order = np.random.default_rng(seed).permutation(len(windows))
    stop = int(np.searchsorted(np.cumsum(windows.length[order]), tokens)) + 1
    return windows.take(np.sort(order[:stop]))
