"""Rounds: a fault in a job, the same command again until it is done, and whether anything was lost.

A round survives if the last run finishes, every file is the undisturbed run's byte for byte, no unit that was sealed
was done again, and every error on the way said what is the matter (`told`).
"""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults_calls import CHANGING, SHARED, Point, arm, jumping_clock
from benchmarks.faults_jobs import Job, Jobs, contents

FAILING = (errno.EIO, errno.ESTALE, errno.EROFS)
PATIENCE = 90
STUCK = 10
"""Seconds after which a process without address space is killed: Python waits forever for a thread that dies early."""
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Ended:
    """How a run ended: `done`, `killed`, `refused` (an InputError), `failed` (any other error), `died` or `hung`."""

    how: str
    text: str = ""
    shown: str = ""
    """Standard error."""


@dataclass
class Row:
    """Faults of one kind in one job."""

    fault: str
    job: str
    injected: int = 0
    survived: int = 0
    reruns: int = 0
    where: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """What did not survive, in words."""

    def count(self, injected: int, wrong: list[str]) -> None:
        """Enter a round: all of its faults survived, or none did."""
        self.injected += injected
        self.survived += 0 if wrong else injected
        self.lost += wrong


def attempt(
    act: Callable[[], object], home: Path, *, kill_after: float | None = None, space: int | None = None
) -> Ended:
    """`act` in a forked child, which may be killed after some seconds, or have little address space left."""
    told, shown = home / "told", home / "shown"
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(act, told, shown, space)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # at worst a zombie, that waitpid has not been told of
    status = _wait(child, PATIENCE if space is None else STUCK)
    text = shown.read_text(errors="replace") if shown.exists() else ""
    if status is None:
        return Ended("hung", "no end in sight", text)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Ended("killed" if number == signal.SIGKILL else "died", signal.Signals(number).name, text)
    if os.WEXITSTATUS(status) == 0:
        return Ended("done", "", text)
    how, words = json.loads(told.read_text())
    return Ended(how, words, text)


def _wait(child: int, seconds: float) -> int | None:
    """The status with which a child ended; None if it hangs, which ends it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(act: Callable[[], object], told: Path, shown: Path, space: int | None) -> None:
    from interp.errors import InputError

    code = 1
    try:
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        if space is not None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + space, resource.RLIM_INFINITY))
        act()
        code = 0
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        how = "refused" if isinstance(error, InputError) else "failed"
        told.write_text(json.dumps([how, f"{type(error).__name__}: {error}"]))
    finally:
        os._exit(code)


class Course:
    """One job and its rounds."""

    def __init__(self, jobs: Jobs, job: Job, home: Path, seed: int) -> None:
        self.jobs, self.job, self.home = jobs, job, home / job.name
        self.random = np.random.default_rng([seed, *job.name.encode()])
        shutil.rmtree(self.home, ignore_errors=True)
        self.folder = self.home / "folder"
        self.home.mkdir(parents=True)
        self.reference, self.seconds, self.calls, self.bytes = self._undisturbed()

    def _undisturbed(self) -> tuple[dict[str, str], float, int, int]:
        counts: list[int] = []
        seconds, found = 0.0, []
        for action in ("count", "room"):
            self.fresh()
            begun = time.monotonic()
            ended = self.run(Point(action, at=1 << 40))
            seconds = time.monotonic() - begun
            assert ended.how == "done", ended
            counts.append(SHARED.calls)
            found.append(contents(self.folder))
        assert found[0] == found[1], "two undisturbed runs differ"
        return found[0], seconds, counts[0], counts[1]

    def fresh(self) -> None:
        """An empty folder, or what is there when the command is first given."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.job.begin(self.folder)

    def run(
        self, point: Point | None = None, *, clock: int = 0, change: Callable[[], None] | None = None, **options: Any
    ) -> Ended:
        """The command, with a fault."""
        self.jobs.log.unlink(missing_ok=True)
        SHARED.clear()

        def act() -> None:
            if change is not None:
                change()
            if clock:
                jumping_clock(clock)
            if point is not None:
                arm(point, self.folder)
            self.job.run(self.folder)

        return attempt(act, self.home, **options)

    def again(self, sealed: set[str], *, clock: int = 0) -> list[str]:
        """The command once more, undisturbed: what is wrong afterwards."""
        ended = self.run(clock=clock)
        wrong = [] if ended.how == "done" else [f"{self.job.name} did not finish: {ended.text}"]
        return wrong + self.repeated(sealed) + self.different()

    def repeated(self, sealed: set[str]) -> list[str]:
        """Units done again that were sealed before."""
        twice = sorted(sealed.intersection(self.jobs.units()))
        return [f"{self.job.name}: sealed and done again: {', '.join(twice[:5])}"] if twice else []

    def different(self) -> list[str]:
        """Files that are not the undisturbed run's."""
        found = contents(self.folder)
        names = {name for name, _ in found.items() ^ self.reference.items()}
        names -= set(self.job.unlike)
        return [f"{self.job.name}: files differ: {', '.join(sorted(names))}"] if names else []

    def kills(self, rounds: int, *, clock: bool = False) -> Row:
        """SIGKILL, half of them at random times, half at random system calls, one to four before a run gets through."""
        row = Row("clock jumps, and SIGKILL" if clock else "SIGKILL", self.job.name)
        for _ in range(rounds):
            self.fresh()
            wrong, injected = [], 0
            for _ in range(self.random.integers(1, 5)):
                sealed, seed = self.job.sealed(self.folder), int(self.random.integers(1, 1 << 30)) if clock else 0
                ended = self._killed(seed)
                wrong += self.repeated(sealed)
                if ended.how != "killed":
                    wrong += [] if ended.how == "done" else [f"{self.job.name}: {ended.text}"]
                    break
                injected += 1
                row.where[SHARED.happened or "time"] += 1
                if negative := re.search(r"[\[<, ]-\d.*", ended.shown):
                    wrong.append(f"{self.job.name}: progress: {negative[0]:.80}")
                if clock:
                    self._age(seed)
            wrong += self.again(self.job.sealed(self.folder), clock=int(clock))
            row.count(injected, wrong)
            row.reruns += 1
        return row

    def _killed(self, clock: int) -> Ended:
        if self.random.random() < 0.5:
            return self.run(clock=clock, kill_after=float(self.random.uniform(0, self.seconds)))
        side = self.random.choice(["kill before", "kill midway", "kill after"])
        return self.run(Point(side, at=int(self.random.integers(1, self.calls + 1))), clock=clock)

    def _age(self, seed: int) -> None:
        """Give every file a time of change within ten years of now, either way."""
        random = np.random.default_rng(seed)
        for path in self.folder.rglob("*"):
            when = time.time() + random.uniform(-3e8, 3e8)
            os.utime(path, (when, when))

    def full(self, rounds: int) -> Row:
        """A disk that is full after some bytes, or on which every write fails from some call on; then there is room."""
        row = Row("disk full", self.job.name)
        for _ in range(rounds):
            if self.random.random() < 0.7:
                point = Point("room", at=int(self.random.integers(0, self.bytes)))
            else:
                number = int(self.random.choice(FULL))
                kinds = ("open", "write", "sync", "mkdir")
                point = Point("fail on", at=int(self.random.integers(1, self.calls)), value=number, kinds=kinds)
            self.fresh()
            self._failing(row, self.run(point), told="is full")
        return row

    def small_disk(self, rounds: int) -> Row:
        """A file system in memory, too small by a random part of what the job needs, and then made larger."""
        row = Row("disk full, a real one", self.job.name)
        for _ in range(rounds):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            size = 16384 + int(self.random.integers(0, self.bytes))
            mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.folder)
            try:
                ended = self.run()
                told = ["is full", "are free: make room"]
                wrong = [] if ended.how == "done" or any(t in ended.text for t in told) else [f"unclear: {ended.text}"]
                mount("-o", "remount,size=1g", self.folder)
                wrong += self.again(self.job.sealed(self.folder))
            finally:
                subprocess.run(["umount", str(self.folder)], check=True)
            row.count(int(ended.how != "done"), wrong)
            if ended.how != "done":
                row.where["full" if "is full" in ended.text else "refused before it began"] += 1
            row.reruns += 1
        return row

    def failing(self, rounds: int) -> Row:
        """A call that fails with EIO, ESTALE or EROFS, once or from then on."""
        row = Row("file system fails", self.job.name)
        for _ in range(rounds):
            number = int(self.random.choice(FAILING))
            action = str(self.random.choice(["fail once", "fail on"]))
            at = int(self.random.integers(1, self.calls + 1))
            self.fresh()
            self._failing(row, self.run(Point(action, at, number)), told=os.strerror(number))
        return row

    def _failing(self, row: Row, ended: Ended, *, told: str) -> None:
        """Enter the round of a run that was to fail, after the same command again."""
        happened = SHARED.happened
        wrong = []
        if ended.how in ("refused", "failed"):
            if ended.how == "failed" or told not in ended.text or str(self.folder) not in ended.text:
                wrong.append(f"{self.job.name}, {happened}: unclear: {ended.text}")
        elif ended.how != "done":
            wrong.append(f"{self.job.name}: {ended.text}")
        if happened:
            row.where[happened] += 1
        wrong += self.again(self.job.sealed(self.folder))
        row.count(int(happened is not None), wrong)
        row.reruns += 1

    def awkward(self, rounds: int) -> Row:
        """Short reads and writes, interruptions, slowness: the run itself gets through."""
        row = Row("short, interrupted or slow calls", self.job.name)
        for _ in range(rounds):
            kind = self.random.integers(3)
            at = int(self.random.integers(1, self.calls + 1))
            interruptible = ("open", "write", "read", "sync")
            point = [
                Point("short", kinds=("write", "read")),
                Point("fail once", at, errno.EINTR, interruptible),
                Point("slow", value=int(self.random.integers(100, 3000)), kinds=(*CHANGING, "read")),
            ][kind]
            self.fresh()
            ended = self.run(point)
            wrong = [] if ended.how == "done" else [f"{self.job.name}, {point}: {ended.text}"]
            if SHARED.happened:
                row.where[("short", "interrupted", "slow")[kind]] += 1
            row.count(int(SHARED.happened is not None), wrong + self.different())
        return row

    def memory(self, rounds: int) -> Row:
        """Memory that runs out in a random batch or step, in PyTorch's words or Python's; or a small address space."""
        row = Row("out of memory", self.job.name)
        for _ in range(rounds):
            self.fresh()
            if self.random.random() < 0.5:
                kind, at = int(self.random.integers(3)), int(self.random.integers(1, 20))
                ended, name = self.run(change=lambda: out_of_memory(kind, at)), "one allocation"  # noqa: B023
                injected = SHARED.numbers[2]
            else:
                ended, name = self.run(space=int(self.random.integers(0, 3 << 20))), "address space"
                injected = int(ended.how != "done")
                name += ", hung" if ended.how == "hung" else ""
            row.where.update({name: 1} if injected else {})
            # what C++ throws outside of Python's reach ends the process; the next run has to cope with that too
            row.count(injected, self.again(self.job.sealed(self.folder)))
            row.reruns += 1
        return row


def can_mount(folder: Path) -> bool:
    """Whether this process may mount: root may, except in most containers."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mount("-t", "tmpfs", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def mount(*arguments: object) -> None:
    """`mount`, which only root may."""
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def out_of_memory(kind: int, at: int) -> None:
    """The `at`-th batch or step of this process finds no memory."""
    import torch

    import saes.fitting
    from interp.pipeline import Runner

    errors = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    )
    left = [at]

    def short(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                SHARED.numbers[2] += 1
                raise errors[kind]
            return real(*arguments, **options)

        return called

    Runner.compute = short(Runner.compute)
    saes.fitting.step = short(saes.fitting.step)  # pyright: ignore[reportPrivateImportUsage]
