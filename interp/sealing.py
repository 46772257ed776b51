"""Artefacts that are whole or absent: temporary name, fsync, rename; and digests and comparisons of their settings.

    publish(partial, final):   fsync(partial) -> rename(partial, final) -> fsync(folder)

After a crash at any point `final` is either the old file, the new one, or missing; what ends in `.partial` is refuse
that the next run removes. The temporary name is a function of the final one, so that a killed run leaves one leftover,
not many.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interp.errors import InputError

KEPT_WHOLE = "What was written before is whole."
WRITER = ".writer.partial"
"""The note of who writes a folder."""
_FAILING = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ENXIO, errno.ENODEV)
MOST_JSON = 256 * 2**20
"""Bytes of a JSON file that are read; manifests of 100,000 shards take 50 MB."""
NOT_JSON = (ValueError, RecursionError)
"""What `json.loads` raises: also on bytes that are no text, numbers of thousands of digits, and deep nesting."""


def plain_name(name: Any) -> bool:
    """Whether `name` is that of a file in a folder, and no path that could lead elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def partial_name(final: Path) -> Path:
    """The temporary name under which `final` is written."""
    return final.with_name(f".{final.name}.partial")


def publish(partial: Path, final: Path) -> None:
    """Give `partial` (a file, or a folder of fsynced files) its final name, durably."""
    sync(partial)
    os.replace(partial, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder by name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_sealed(path: Path, content: bytes | str) -> None:
    """Write a small file so that it is never seen half-written."""
    partial, whole = partial_name(path), content.encode() if isinstance(content, str) else content
    try:
        partial.unlink(missing_ok=True)  # a link of that name would be written through
        partial.write_bytes(whole)
        publish(partial, path)
    except OSError as error:
        discard(partial)
        raise disk_error(error, path.parent, needed=len(whole)) from error


def finite(value: Any) -> Any:
    """Values with null for NaN and the infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, sealed; the same value always gives the same bytes."""
    write_sealed(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, what: str, *, most: int = MOST_JSON) -> Any:
    """Read JSON of at most `most` bytes; `what` names the thing in the error."""
    if path.is_file() and (size := path.stat().st_size) > most:
        raise InputError(f"{path} holds {size:,} bytes, more than any {what} has there; it is not read")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}, so it is no finished {what}") from None
    except NOT_JSON as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}); make the {what} again") from None


def beyond_memory(size: int, what: str) -> None:
    """Refuse what is many times larger than this machine's memory, before it is allocated."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > 4 * memory:
        raise InputError(
            f"{what} takes {size / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB of memory; is the "
            "file what it should be?"
        )


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The fields in which two settings differ, as `name: FOUND there, ASKED asked for`; empty when they agree."""
    names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
    return "; ".join(f"{name}: {found.get(name)!r} there, {asked.get(name)!r} asked for" for name in names)


def discard(partial: Path) -> None:
    """Remove what was not finished, if the disk still lets us: whatever went wrong before is the error to be told."""
    with suppress(OSError):
        partial.unlink(missing_ok=True)


def full_disk(error: OSError, path: Path, *, needed: int | None, kept: str) -> InputError | None:
    """What to tell the user when `error` says that the disk (or the quota) under `path` is used up, else None."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    free = f"{shutil.disk_usage(path).free / 2**20:,.1f} MiB are free"
    room = free if needed is None else f"{needed / 2**20:,.1f} MiB more are needed and {free}"
    return InputError(
        f"the disk under {path} is full ({error.strerror}): {room}. {kept} Make room and run the same command again"
    )


def disk_error(error: OSError, path: Path, *, needed: int | None = None, kept: str = KEPT_WHOLE) -> Exception:
    """What to raise for `error`, met while writing under `path`: in words if the disk is full or fails."""
    if error.errno not in _FAILING:
        return full_disk(error, path, needed=needed, kept=kept) or error
    return InputError(
        f"the disk under {path} fails ({error.strerror}, at {error.filename or path}): it has a fault, its network is "
        f"gone, or it became read-only. {kept} See to it and run the same command again"
    )


@contextmanager
def only_writer(folder: Path, *, kept: str = KEPT_WHOLE) -> Iterator[None]:
    """Hold `folder` for writing; a second writer is refused. The kernel lets go however the process ends.

    Who holds it stands in a note beside what is written, which only a killed process leaves behind. What the disk does
    to the writer is told in words.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is writing {folder}{_owner(folder)}; wait for it, or give another path"
        ) from None
    try:
        _sign(folder)
        yield
    except OSError as error:
        if (told := disk_error(error, folder, kept=kept)) is error:
            raise
        raise told from error
    finally:
        discard(folder / WRITER)
        os.close(handle)


def _sign(folder: Path) -> None:
    """Leave the note. Without it (a full or read-only disk) the lock holds all the same."""
    now = datetime.now(UTC).isoformat(" ", "seconds")
    note = {"pid": os.getpid(), "host": platform.node(), "since": now, "started": _started(os.getpid())}
    with suppress(OSError):
        (folder / WRITER).write_text(json.dumps(note))


def _owner(folder: Path) -> str:
    """The process that holds `folder`, as far as its note tells; a note of one that is gone is not believed."""
    for _ in range(100):  # who has just got the lock needs a moment to write its own
        with suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads((folder / WRITER).read_text())
            if note["host"] != platform.node() or note["started"] == _started(note["pid"]):
                return f" (process {note['pid']} on {note['host']}, since {note['since']})"
        time.sleep(0.01)
    return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the boot, so that a reused number is known for another."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def is_held(folder: Path) -> bool:
    """Whether someone is inside `in_turn` or `only_writer` for `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """One process after the other: wait until no other is inside for `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
