"""While a parser runs: nothing may be written, executed, unpickled by name, or asked of the network.

Python's audit events say what is about to happen; the hook stays in the process and does nothing outside `guarded()`.
Reading is allowed, and so is importing a module for the first time.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NEVER = (
    "os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty subprocess.Popen pickle.find_class socket.connect "
    "socket.bind socket.getaddrinfo os.remove os.rename os.mkdir os.rmdir os.truncate os.link os.symlink os.chmod "
    "shutil.rmtree shutil.move shutil.copyfile ctypes.dlopen"
)
FORBIDDEN = frozenset(_NEVER.split())
_REPAIRS = ("os.truncate", "os.mkdir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_state = {"installed": False, "on": False, "repairs": False}


class Breach(BaseException):
    """A parser did what no parser may; no `except Exception` on the way hides it."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _state["on"]:
        return
    if _state["repairs"] and (event in _REPAIRS or (event == "open" and arguments[1] in ("r+", "r+b", "rb+"))):
        return
    writes = event == "open" and _writes(*arguments)
    if writes or event in FORBIDDEN:
        _state["on"] = False  # building the message may open files
        raise Breach(f"{event}: {arguments!r:.200}")


def _writes(path: Any, _mode: str | None, flags: int) -> bool:
    return bool(flags & _WRITING) and "__pycache__" not in str(path) and path != os.devnull


@contextmanager
def guarded(*, repairs: bool = False) -> Iterator[None]:
    """Inside, a forbidden event is a `Breach`; with `repairs` a file may be cut shorter."""
    if not _state["installed"]:
        sys.addaudithook(_hook)
        _state["installed"] = True
    _state["on"], _state["repairs"] = True, repairs
    try:
        yield
    finally:
        _state["on"] = False
