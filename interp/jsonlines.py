"""JSON lines: one value a line, with mistakes named by file and line.

A line ends with a line feed and nothing else: U+2028, U+0085 and form feeds may stand in a JSON text as they are.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import NOT_JSON


def json_values(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    """The values of a file and the lines they stand in, counted from 1; blank lines are passed over.

    `what` says in an error what was to be read: "cannot read a contrast set from ...".
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _value(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror or error}") from error


def json_objects(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of a file that holds objects alone."""
    for number, row in json_values(path, what):
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, got {row!r:.200}")
        yield number, row


def _value(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 (byte {error.start}: {error.reason}); one object a line") from error
    except NOT_JSON as error:
        raise InputError(f"{place} is not JSON ({error}); one object a line") from error
