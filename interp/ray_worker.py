"""What a Ray worker does: hold a model, and compute shards of a plan into a folder of its own.

Ray itself is not needed here; `interp.ray_engine` makes actors of this class.
"""

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from interp.extract import Settings, prepare
from interp.extraction import Entry, Extraction, Target
from interp.heap import trimmed
from interp.pipeline import Capturing, peak_memory
from interp.plan import Plan
from interp.tokenfile import TokenFile

Load = Callable[[], tuple[Capturing, TokenFile]]
"""Gives model and token file; it travels to the workers, so it has to be picklable."""


class Task(NamedTuple):
    """What is extracted."""

    load: Load
    sites: Sequence[str]
    path: Path
    settings: Settings


class Planned(NamedTuple):
    """The plan as the worker that made it describes it."""

    text: str
    seconds: float | None
    memory: int
    part: int
    facts: dict[str, Any]
    place: str


class Done(NamedTuple):
    """A shard under its temporary place."""

    file: Path
    entry: Entry
    cut: Plan | None
    """The plan, if batches had to be cut."""


class Worker:
    """Loads the model when it starts."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model, self.tokens = task.load()
        self.folder = task.path / f".worker-{secrets.token_hex(6)}.partial"
        self._extraction: Extraction | None = None

    def hello(self) -> int:
        """Its process, once the model is loaded."""
        return os.getpid()

    def plan(self) -> Planned:
        """Find the plan, or make it and write it."""
        extraction = self._prepare()
        text = extraction.describe()
        extraction.save_plan()
        place = f"{getattr(self.model, 'device', 'cpu')} of {socket.gethostname()}"
        return Planned(text, extraction.seconds, peak_memory(), extraction.part, extraction.facts, place)

    @trimmed()
    def compute(self, shard: int) -> Done:
        """Compute one shard of the plan."""
        if self._extraction is None:
            self._extraction = self._prepare()
        extraction, entries = self._extraction, list[Entry]()
        self.folder.mkdir(exist_ok=True)
        target = Target(self.folder, lambda _, entry: entries.append(entry))
        extraction.compute([shard], target, progress=False)
        return Done(self.folder / entries[0]["name"], entries[0], extraction.plan if extraction.plan.splits else None)

    def _prepare(self) -> Extraction:
        return prepare(self.model, self.tokens, self.task.sites, self.task.path, **self.task.settings)
