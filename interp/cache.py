"""The user's cache folder, and files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/midlens` (`~/.cache/midlens` by default), created if absent."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(base).expanduser() / "midlens"
    path.mkdir(parents=True, exist_ok=True)
    return path


def sealed_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
