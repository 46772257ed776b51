"""Faults in system calls, from Python: `arm(Point(...), folder)` in a process that `run_preloaded` started.

`faults_calls.c` sits between every library and the kernel; what it does is said there. `SHARED` is seen by a forked
child and its parent alike: how many calls the child made, and whether the fault happened.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "MIDLENS_FAULTS"
ACTIONS = ("count", "kill before", "kill after", "kill midway", "fail once", "fail on", "short", "slow", "room")
KINDS = {"open": 1, "write": 2, "sync": 4, "rename": 8, "unlink": 16, "read": 32, "mkdir": 64, "truncate": 128}
CHANGING = tuple(kind for kind in KINDS if kind != "read")
"""Calls that change the disk."""


@dataclass(frozen=True)
class Point:
    """Where a fault happens: at the `at`-th call of `kinds` below a folder (`room`: after so many bytes)."""

    action: str
    at: int = 0
    value: int = 0
    """errno, or microseconds of slowness."""
    kinds: tuple[str, ...] = CHANGING


class Shared:
    """Three numbers that a forked child writes and its parent reads."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.numbers = (ctypes.c_long * 3).from_buffer(self._memory)

    def clear(self) -> None:
        self.numbers[:] = [0, 0, 0]

    @property
    def calls(self) -> int:
        """Calls so far; with `room`, bytes."""
        return self.numbers[0]

    @property
    def happened(self) -> str | None:
        """The kind of call at which the last fault happened."""
        names = {value: name for name, value in KINDS.items()}
        return names.get(self.numbers[1])


SHARED = Shared()


def library() -> ctypes.CDLL:
    """The preloaded library."""
    return ctypes.CDLL(os.environ[VARIABLE])


def arm(point: Point, folder: Path) -> None:
    """From here on, count calls below `folder` and commit the fault."""
    SHARED.clear()
    which = sum(KINDS[kind] for kind in point.kinds)
    arguments = (ACTIONS.index(point.action), ctypes.c_long(point.at), point.value, which, SHARED.numbers)
    library().faults_arm(os.fsencode(folder), *arguments)


def jumping_clock(seed: int) -> None:
    """From here on the wall clock jumps at every look."""
    library().faults_clock(seed)


def run_preloaded(script: str) -> None:
    """Compile the library and start this script again under it; returns at once where that has happened."""
    if VARIABLE in os.environ:
        return
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "faults_calls.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"], check=True)
        env = {**os.environ, "LD_PRELOAD": str(built), VARIABLE: str(built), "OMP_NUM_THREADS": "1"}
        env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        sys.exit(subprocess.run([sys.executable, script, *sys.argv[1:]], env=env).returncode)
