"""What an evaluation has done so far, a file for each step: an interrupted one goes on, a changed one starts anew.

    records/<label>-<digest of the key>.json = {"key": ..., "value": ...}

The key says everything the value depends on (model, edit, prompts, options), so a file is used only for the very same
step; files of other settings lie beside it unused. Each is written under a temporary name and renamed.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import digest, read_json, write_json


class Records:
    """The records of a folder; without a folder they are kept as long as this object."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[tuple[str, str], Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, label: str, key: Any) -> Path | None:
        """Where the record of a step is, or would be."""
        name = re.sub(r"[^\w.+-]+", "_", label)[:80]
        return None if self.folder is None else self.folder / f"{name}-{digest(key)[:12]}.json"

    def have(self, label: str, key: Any) -> bool:
        """Whether the step was done."""
        path = self.path(label, key)
        return path is not None and path.exists()

    def get(self, label: str, key: Any, make: Callable[[], Any]) -> Any:
        """The step's value: read if it was made before, else made and written."""
        place = (label, digest(key))
        if place not in self._held:
            self._held[place] = self._get(label, key, make)
        return self._held[place]

    def _get(self, label: str, key: Any, make: Callable[[], Any]) -> Any:
        path, key = self.path(label, key), json.loads(json.dumps(key))
        if path is not None and path.exists():
            held = read_json(path, "record of an evaluation")
            if not isinstance(held, dict) or "value" not in held or held.get("key") != key:
                raise InputError(f"{path} is no record of this evaluation; remove it, and the step is done again")
            return held["value"]
        value = make()
        if path is not None:
            write_json(path, {"key": key, "value": value})
        return value
