"""Hand-made attacks: files that lie, that would run code, that point elsewhere or ask for absurd amounts of memory.

    for attack in ATTACKS: attack.open(folder)   must raise `InputError`, and do nothing else

An `Attack` prepares its files in an empty folder and returns the call that opens them as a user would. Attacks may
leave proof that they worked: a file `pwned` anywhere under the folder is one (`run` of `CANARY` writes it). `contained`
bounds what an attack that works can take: address space, processor time and size of files.

The tables are in `tests/hostile_*.py`; `tests/test_hostile.py` and `benchmarks/hostile.py` run all of them.
"""

import contextlib
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError

Open = Callable[[], object]
ROOM = 2 << 30
"""Bytes of address space that an attack may take beyond what the process has."""
SECONDS = 60
LARGEST_FILE = 256 << 20
GROWTH = 200 << 20
"""Bytes of resident memory by which a refused attack may raise the peak (loading the libraries it needs included)."""


@dataclass(frozen=True)
class Attack:
    """One attack on one reader."""

    target: str
    """What is attacked: `model folder`, `GGUF`, `SAE`, `activation store`, ..."""
    name: str
    prepare: Callable[[Path], Open]

    @property
    def id(self) -> str:
        return f"{self.target}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What happened: `refused` with an `InputError`, or `ended` otherwise, and how much it took."""

    refused: bool
    said: str
    escaped: tuple[str, ...]
    """Proof that something ran, or files written outside the folder under attack."""
    seconds: float
    growth: int
    """Bytes by which the peak of resident memory grew."""

    @property
    def held(self) -> bool:
        return self.refused and not self.escaped and self.growth < GROWTH


class Canary:
    """Pickled, it is a program that writes `pwned`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "it ran"))


def canary(folder: Path) -> bytes:
    """A pickle that leaves `folder/pwned` when it is opened without care."""
    return pickle.dumps(Canary(folder / "pwned"))


def canary_code(folder: Path) -> str:
    """Python that leaves `folder/pwned` when it is imported."""
    return f"open({str(folder / 'pwned')!r}, 'w').write('it ran')\n"


class OutOfTime(Exception):
    """An attack kept the reader busy."""


def _late(*_: object) -> None:
    raise OutOfTime(f"still busy after {SECONDS} seconds")


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Bounds on memory, time and written files, put back afterwards."""
    room = _status("VmSize") + ROOM
    before = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)}
    handlers = signal.signal(signal.SIGALRM, _late), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.alarm(SECONDS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (room, before[resource.RLIMIT_AS][1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, before[resource.RLIMIT_FSIZE][1]))
        yield
    finally:
        signal.alarm(0)
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)
        signal.signal(signal.SIGALRM, handlers[0])
        signal.signal(signal.SIGXFSZ, handlers[1])


def _status(name: str) -> int:
    """A size from the process's own status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def tried(attack: Attack, folder: Path) -> Outcome:
    """Run an attack in `folder/in`; anything that appears in `folder` beside it was written outside."""
    inside = folder / "in"
    inside.mkdir()
    call = attack.prepare(inside)
    beside = _files(folder, inside)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of resident memory
    held, started = _status("VmRSS"), time.perf_counter()
    refused, said = False, "opened without a complaint"
    with contained():
        try:
            call()
        except InputError as error:
            refused, said = True, str(error)
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}"
    seconds, growth = time.perf_counter() - started, max(0, _status("VmHWM") - held)
    escaped = [str(path.relative_to(folder)) for path in folder.rglob("*pwned*")]
    escaped += sorted(set(escaped) ^ (_files(folder, inside) ^ beside))
    return Outcome(refused, said, tuple(escaped), seconds, growth)


def _files(folder: Path, without: Path) -> set[str]:
    """What lies in `folder` beside `without`, with the content of small files."""

    def content(path: Path) -> str:
        return path.read_text(errors="replace") if path.is_file() else ""

    return {
        f"{path.relative_to(folder)} {path.lstat().st_size} {content(path)}"
        for path in folder.rglob("*")
        if without not in (path, *path.parents)
    }


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file of `size` bytes that takes no room: `head`, then a hole."""
    with path.open("wb") as file:
        file.write(head)
    os.truncate(path, size)
