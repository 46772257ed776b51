"""Several processes that begin to write one store in the same moment, and owners that are dead.

A second writer is refused with the number, machine and beginning of the first; the lock is the kernel's and goes with
its process, so that a note left by a dead owner, or one whose number now belongs to another, holds nobody up.
"""

import fcntl
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.faults_jobs import EXTRACTION, SITES, record_units
from benchmarks.faults_rounds import Course, Row, attempt
from interp.errors import InputError
from interp.extract import extract
from interp.sealing import WRITER, only_writer
from interp.tokenfile import TokenFile


class Contest:
    """Processes that wait for one signal and then all write `course.folder`."""

    def __init__(self, course: Course) -> None:
        self.course, self.folder = course, course.folder

    def race(self, rounds: int) -> Row:
        """Two to five at once."""
        row = Row("several writers at once", "extract")
        for _ in range(rounds):
            self.course.fresh()
            self.course.jobs.log.unlink(missing_ok=True)
            said = self.outcomes(int(self.course.random.integers(2, 6)))
            winners = {pid for pid, (how, _) in said.items() if how == "done"}
            wrong = [] if winners else [f"nobody finished: {said}"]
            for pid, (how, text) in said.items():
                if how == "done":
                    continue
                owner = re.search(r"another process is writing .* \(process (\d+) on (\S+), since \d{4}-", text)
                if owner and int(owner[1]) in winners - {pid} and owner[2] == platform.node():
                    row.where["refused by name"] += 1
                elif "has changed since this extraction was planned" in text:
                    row.where["came when it was done"] += 1
                else:
                    wrong.append(f"{how}: {text}")
            units = self.course.jobs.units()
            if len(set(units)) < len(units):
                wrong.append("batches were computed twice")
            row.count(len(said) - 1, wrong + self.course.different())
        return row

    def outcomes(self, writers: int) -> dict[int, tuple[str, str]]:
        """How each of them ended, by process number."""
        reading, writing = os.pipe()
        children = []
        for number in range(writers):
            told = self.course.home / f"told-{number}"
            told.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)  # until the parent closes its end, which all see at once
                os._exit(self.write(told))
            children.append((child, told))
        os.close(reading)
        time.sleep(0.02)
        os.close(writing)
        said = {}
        for child, told in children:
            os.waitpid(child, 0)
            said[child] = tuple(json.loads(told.read_text())) if told.exists() else ("died", "")
        return said

    def write(self, told: Path) -> int:
        """In a child: extract, slowly, and tell how it went."""
        record_units(self.course.jobs.log)
        jobs = self.course.jobs
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            time.sleep(0)
            extract(Slow(jobs.model), TokenFile.open(jobs.tokens.path), SITES, self.folder, **EXTRACTION)
            outcome = ["done", ""]
        except BaseException as error:
            outcome = ["refused" if isinstance(error, InputError) else "failed", f"{type(error).__name__}: {error}"]
        told.write_text(json.dumps(outcome))
        return 0

    def dead_owners(self, rounds: int) -> Row:
        """An owner that was killed, its number reused, or a note that cannot be read; and then a living one."""
        row = Row("note of a dead owner", "extract")
        for number in range(rounds):
            self.course.fresh()
            wrong: list[str] = []
            kind = ("killed", "number reused", "unreadable")[number % 3]
            if kind == "killed":
                killed = self.course.run(kill_after=float(self.course.random.uniform(0.2, 0.9)) * self.course.seconds)
                row.where["killed"] += killed.how == "killed"
            else:
                other = {"pid": os.getpid(), "host": platform.node(), "since": "2001-01-01", "started": "1"}
                note = json.dumps(other) if kind == "number reused" else '{"pid": '
                (self.folder / WRITER).write_text(note)
                wrong += self._held_by_nameless(str(os.getpid()))
                row.where[kind] += 1
            wrong += self.course.again(self.course.job.sealed(self.folder))
            row.count(1, wrong)
            row.reruns += 1
        return row

    def _held_by_nameless(self, not_this: str) -> list[str]:
        """While someone holds the folder who has left no note: the stale one must not be believed."""
        handle = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        ended = attempt(lambda: only_writer(self.folder).__enter__(), self.course.home)
        os.close(handle)
        sound = ended.how == "refused" and "another process is writing" in ended.text and not_this not in ended.text
        return [] if sound else [f"{ended}"]


class Slow:
    """A model that takes its time, so that all others come while it writes."""

    def __init__(self, model: Any) -> None:
        self.model, self.name, self.revision = model, model.name, getattr(model, "revision", None)

    def capture(self, *arguments: Any, **options: Any) -> Any:
        """As the model's, a little later."""
        time.sleep(0.01)
        return self.model.capture(*arguments, **options)
