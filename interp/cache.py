"""The user's cache folder. What lies in it can be made again, and several processes may make it at the same time."""

import os
import threading
from pathlib import Path

from interp.sealing import publish


def cache_path() -> Path:
    """`$XDG_CACHE_HOME/midlens` (`~/.cache/midlens` by default), whether it is there or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "midlens"


def cache_dir() -> Path:
    """`cache_path()`, created if absent."""
    path = cache_path()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_cached(path: Path, content: bytes) -> None:
    """Write a cache file that readers see whole or not at all; the last of several writers wins.

    `interp.sealing.write_sealed` is for folders with one writer: here each writer needs a temporary name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        partial.write_bytes(content)
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
