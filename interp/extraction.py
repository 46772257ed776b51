"""A planned extraction and its execution: one shard after the other, every stage of each overlapped.

    assemble (thread) -> compute (caller's thread, device) -> check, hash (thread) -> write, fsync, rename (thread)

At most `interp.pinned.SLOTS` batches are between compute and disk: a slow disk holds up the device, and memory stays
where it is. The first batch of a shard waits until the shard before it is durable, so that a killed run loses one shard
at most. The wait is short: the disk syncs as it goes, and what is left at the end of a shard is its last 64 MiB.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from interp import ledger
from interp.background import Background
from interp.budget import Search
from interp.errors import InputError
from interp.feeding import Feed
from interp.finishing import facts_here, seal
from interp.heap import trimmed
from interp.manifest import FORMAT, part_file, shard_file, version_of
from interp.pieces import Piece
from interp.pinned import SLOTS
from interp.pipeline import Ready, Rows, Runner, assemble, is_out_of_memory, peak_memory, refuse_nonfinite
from interp.plan import Plan, Selector, describe
from interp.progress import bar
from interp.sealing import disk_error, only_writer
from interp.shards import ShardWriter, raw
from interp.stages import Stages
from interp.store import ActivationStore

_MOST_THREADS = 4
SPOOLED = 4
"""Shards in a folder from which each goes elsewhere: one under way, one being sent, two waiting."""
Entry = dict[str, Any]


class Target(NamedTuple):
    """Where shards are written, and what is told of each that is durable there."""

    folder: Path
    record: Callable[[int, Entry], None]


class Extraction:
    """A planned extraction: `describe()` says what it will do, `run()` does it."""

    def __init__(
        self,
        runner: Runner,
        selector: Selector,
        plan: Plan,
        part: int,
        found: ledger.Progress,
        *,
        allow_nonfinite: bool,
        tried: Search | None = None,
        piece: Piece | None = None,
    ) -> None:
        self.runner, self.selector, self.plan, self.part, self.found = runner, selector, plan, part, found
        self.path, self.allow_nonfinite = found.folder, allow_nonfinite
        self.first_shard = found.first_shard(part)
        self.shards = range(self.first_shard, self.first_shard + len(plan.shard_rows))
        self.finished = found.finished(self.shards)
        self.stages, self.tried, self.piece = Stages(), tried, piece
        self.own = range(len(plan.shard_rows)) if piece is None else piece.shards(len(plan.shard_rows))
        self.keep: Callable[[int, Entry], None] | None = None
        """Takes every finished shard elsewhere; the folder is then but a spool."""
        self.facts = facts_here(len(selector.tokens))
        self.seconds: float | None = None
        self._first: Rows | None = None
        self._sink: ShardWriter | None = None
        self._planned = False

    @property
    def missing(self) -> list[int]:
        """The shards to compute, counted within this part."""
        return [shard for shard in self.own if self.first_shard + shard not in self.finished]

    @property
    def bytes_left(self) -> int:
        """Bytes to be written."""
        return sum(int(self.plan.shard_rows[shard]) for shard in self.missing) * self.plan.layout.row_bytes

    def describe(self) -> str:
        """The plan in words. Runs the first batch, to time it; `run` uses its rows."""
        folder = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        self.seconds = self.estimate()
        text = describe(self.plan, folder, bytes_left=self.bytes_left, seconds=self.seconds, memory=peak_memory())
        return text if self.tried is None else f"{text}\ntried       {self.tried}"

    def estimate(self) -> float | None:
        """Seconds for what is missing, from a run of the first batch, whose rows are kept; None if nothing is."""
        if not (missing := self.missing):
            return None
        self._begin()
        begun = time.perf_counter()
        with Feed(self._assemble) as feed:
            feed.start(self._numbers(missing))
            self._first = self.runner.send(next(self._computed(missing, feed)))
        self._first.wait()
        sizes = self.plan.buckets.padded
        left = sum(int(sizes[batches.start : batches.stop].sum()) for batches in map(self.plan.batches_of, missing))
        return (time.perf_counter() - begun) * left / int(sizes[self._first.number])

    def run(self, *, progress: bool | None = None) -> ActivationStore:
        """Compute what is missing, seal the store, open it. `progress=None` shows a bar, `False` none."""
        self.fill(progress=progress)
        return ActivationStore.open(self.path)

    @trimmed()
    def fill(self, *, progress: bool | None = None) -> None:
        """Compute what is missing, and seal the store if this is the whole of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path):
            if ledger.Progress.of(self.path).entries != self.found.entries:
                raise InputError(f"{self.path} has changed since this extraction was planned; plan it again")
            sealed = self.found.manifest is not None and self.part < len(self.found.manifest["parts"])
            if self.missing or not sealed:
                self._check_space()
                ledger.clean(self.path)
                self.save_plan()
                try:
                    ledger.rewrite(self.path, self.finished)
                    self.compute(self.missing, Target(self.path, self._record), progress=progress)
                    if self.piece is None:
                        seal(self.path, self.plan, self.part, self.found.manifest, self.finished, self.facts)
                except OSError as error:
                    kept = f"All {len(self.finished)} finished shards are kept."
                    raise disk_error(error, self.path, needed=self.bytes_left, kept=kept) from error
            if self.piece is None:
                ledger.close(self.path)

    def _record(self, number: int, entry: Entry) -> None:
        ledger.record(self.path, number, entry)
        self.finished[number] = entry
        if self.keep is not None:
            self.keep(number, entry)

    def _begin(self) -> None:
        self.runner.begin(int(self.plan.buckets.padded.max()))

    def save_plan(self) -> None:
        """Write the plan, and which piece of it this is, where they are not yet."""
        known = self.part < len(self.found.plans)
        if not known or self.plan.splits != self.found.plans[self.part].splits:
            self.plan.save(self.path / part_file(self.part))
        if self.piece is not None:
            self.piece.save(self.path, self.facts)
        self._planned = True

    def _check_space(self) -> None:
        free, needed = shutil.disk_usage(self.path).free, self.bytes_left
        if self.keep is not None:
            needed = min(needed, SPOOLED * int(self.plan.shard_rows.max()) * self.plan.layout.row_bytes)
        if needed > free:
            raise InputError(
                f"{self.path} needs {needed / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are free: make "
                "room, give a path on another disk, or extract fewer documents or sites"
            )

    def compute(self, missing: list[int], target: Target, *, progress: bool | None = None) -> None:
        """Compute these shards, whatever else is there, one after the other."""
        total, left = self._tokens(self.own), self._tokens(missing)
        self._begin()
        try:
            with (
                bar(total, "extract", done=total - left, show=progress) as meter,
                ThreadPoolExecutor(_threads(), thread_name_prefix="spread") as pool,
                Background("hash", "disk", depth=SLOTS) as writers,
                Feed(self._assemble) as feed,
            ):
                feed.start(self._numbers(missing))
                for place in range(len(missing)):
                    self._extract_shard(missing[place:], target, feed, writers, pool.map, meter.update)
        finally:
            if self._sink is not None:
                self._sink.abandon()

    def _extract_shard(
        self,
        missing: list[int],
        target: Target,
        feed: Feed[Ready],
        writers: Background,
        spread: Callable[..., Iterable[Any]],
        update: Callable[[int], Any],
    ) -> None:
        """The first of the `missing` shards, from its first batch to its record."""
        number = self.first_shard + missing[0]
        metadata = {
            "format": FORMAT,
            "version": str(version_of(self.plan.layout.dtype)),
            "spec": json.dumps(asdict(self.plan.spec)),
        }
        rows = int(self.plan.shard_rows[missing[0]])
        sink = ShardWriter(target.folder / shard_file(number), self.plan.layout, rows, metadata, spread=spread)
        self._sink = sink

        def finish() -> None:
            with self.stages.timed("disk"):
                target.record(number, sink.seal())

        for computed in self._computed(missing, feed):
            with self.stages.timed("stall"):
                writers.room()
            writers.do(*self._steps(sink, self.runner.send(computed)))
            update(int(self.plan.buckets.windows.length[slice(*self.plan.buckets.span(computed.number))].sum()))
        with self.stages.timed("stall"):
            writers.do(None, finish)
            writers.drain()  # the next shard begins when this one cannot be lost any more

    def _tokens(self, shards: Iterable[int]) -> int:
        """Tokens fed for these shards."""
        ends, before = self.plan.shard_windows, [0, *self.plan.buckets.windows.length.cumsum().tolist()]
        return sum(before[ends[shard]] - (before[ends[shard - 1]] if shard else 0) for shard in shards)

    def _steps(self, sink: ShardWriter, rows: Rows) -> tuple[Callable[[], None], Callable[[], None]]:
        """What the two writing threads do with the rows of a batch."""
        columns: dict[str, memoryview] = {}

        def check() -> None:
            rows.wait()
            rows.time(self.stages)
            with self.stages.timed("writer"):
                if not self.allow_nonfinite:
                    refuse_nonfinite(rows, self.selector.tokens.ids)
                columns.update(raw(rows.columns()))
                sink.digest(columns)
                sink.measured(rows.errors())

        def put() -> None:
            with self.stages.timed("disk"):
                sink.put(columns)
            rows.release()

        return check, put

    def _assemble(self, index: int) -> Ready:
        with self.stages.timed("tokens"):
            return self.runner.near(assemble(self.plan, self.selector, index))

    def _numbers(self, missing: list[int], first: int | None = None) -> Iterator[int]:
        """The batches of these shards, of the first of them from batch `first` on."""
        for shard in missing:
            batches = self.plan.batches_of(shard)
            yield from batches if first is None else range(first, batches.stop)
            first = None

    def _computed(self, missing: list[int], feed: Feed[Ready]) -> Iterator[Rows]:
        """The rows of each batch of the first missing shard; a batch too large for memory is cut in two, and so on."""
        index = self.plan.batches_of(missing[0]).start
        while index < self.plan.batches_of(missing[0]).stop:
            ready = feed.take()
            assert ready.number == index, f"batch {ready.number} came where {index} was to come"
            if self._first is not None and self._first.number == index:
                rows, self._first = self._first, None
            else:
                rows = self._attempt(ready)
            if rows is None:
                feed.start(self._numbers(missing, index))
                continue
            yield rows
            index += 1

    def _attempt(self, ready: Ready) -> Rows | None:
        """Compute a batch; None if memory ran out and the plan has been changed instead."""
        try:
            return self.runner.compute(ready)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            b, t = ready.batch.tokens.shape
            if b == 1:
                raise InputError(
                    f"out of memory on a single window of {t} tokens ({error}). The finished shards are kept. Free "
                    "memory and call again; or start another store with a smaller max_length, dtype or model"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.plan = self.plan.halved(ready.number)
        if self._planned:
            self.plan.save(self.path / part_file(self.part))
        return None


def _threads() -> int:
    """For hashing and writing several tensors at once: few, the model needs the cores more."""
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 4))
