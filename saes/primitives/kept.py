"""Values that cost something, kept in a file of JSON lines as they come: what is there is never made again.

    kept = Kept(folder / "texts.jsonl")
    kept.add([(key, value), ...])          one line for all of them, synced: they are there together or not at all
    kept.get(key)

A last line that a crash cut off is ignored and overwritten. A key is any JSON value that says all the value depends on.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import NOT_JSON, digest


class Kept:
    """A file of values by key; without a path they last as long as this object."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._held: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                found = json.loads(line)
            except NOT_JSON as error:
                found = error
            if not isinstance(found, dict):
                raise InputError(
                    f"{path}, line {number} is damaged ({found!r:.80}); remove the line, and what it held is made again"
                )
            self._held.update(found)

    def get(self, key: Any) -> Any:
        """The value of a key, None where there is none."""
        return self._held.get(digest(key))

    def add(self, values: Iterable[tuple[Any, Any]]) -> None:
        """Keep values, all of them or none."""
        new = {digest(key): value for key, value in values}
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(json.dumps(new, separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        self._held.update(new)
