"""JSON lines: one object a line, with mistakes named by file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.errors import InputError


def json_objects(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file and the lines they stand in, counted from 1; blank lines are passed over.

    `what` says in an error what was to be read: "cannot read a contrast set from ...".
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {what} from {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error.msg}); one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {row!r}")
        yield number, row
