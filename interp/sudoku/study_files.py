"""Results of Sudoku studies as JSON files: each says what it was made with, and what is there is not made again.

    {"format": "midlens-sudoku", "version": 1, "part": "circuit", "name": "seed0", "settings": {..}, "result": {..}}

`part` is one of `PARTS`; `name` is the model's, or those of several with commas between.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import InputError
from interp.sealing import differences, read_json, write_json
from interp.sudoku.model import WEIGHTS
from interp.sudoku.records import Record

FORMAT, VERSION = "midlens-sudoku", 1
PARTS = ("solving", "probes", "interventions", "circuit")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Result:
    """One file."""

    part: str
    name: str
    settings: dict[str, Any]
    value: Record


def kept(path: str | Path, part: str, name: str, settings: Mapping[str, Any], make: Callable[[], R]) -> R:
    """The result in `path`, made and written if there is none; a result of other settings is refused."""
    path, asked = Path(path), {"part": part, "name": name, **settings}
    if path.exists():
        found = read_result(path)
        if differ := differences({"part": found.part, "name": found.name, **found.settings}, asked):
            raise InputError(f"{path} holds a result of other settings ({differ}); give the same ones, or another path")
        return found.value  # type: ignore[return-value]
    value = make()
    head = {"format": FORMAT, "version": VERSION, "part": part, "name": name, "settings": dict(settings)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, head | {"result": value.to_json()})
    return value


def read_result(path: str | Path) -> Result:
    """What `kept` wrote."""
    held = read_json(Path(path), "result of a Sudoku study")
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise InputError(f"{path} is no result of a Sudoku study: its format is not {FORMAT!r}")
    if held.get("version") != VERSION or held.get("part") not in [*PARTS]:
        raise InputError(
            f"{path} holds {held.get('part')!r} of version {held.get('version')!r}; expected one of "
            f"{', '.join(PARTS)} of version {VERSION}"
        )
    missing = [name for name, kind in (("name", str), ("settings", dict)) if not isinstance(held.get(name), kind)]
    if missing or "result" not in held:
        raise InputError(f"{path} is damaged: it lacks {', '.join(missing) or 'result'}; make it again")
    return Result(held["part"], held["name"], held["settings"], _kind(held["part"]).from_json(held["result"]))


def read_results(paths: Iterable[str | Path]) -> list[Result]:
    """Of files, and of folders: all results that lie in these, in the order of their names."""
    found = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        held = [read_result(file) for file in files if not path.is_dir() or _is_result(file)]
        if not held:
            raise InputError(f"{path} holds no result of a Sudoku study; expected files of `midlens sudoku`")
        found += held
    return found


def weights_digest(folder: str | Path) -> str:
    """Which weights a folder of a model holds."""
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise InputError(f"{folder} holds no trained Sudoku model ({WEIGHTS}); train one with `midlens sudoku train`")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_result(path: Path) -> bool:
    held = read_json(path, "file")
    return isinstance(held, dict) and held.get("format") == FORMAT


def _kind(part: str) -> type[Record]:
    from interp.sudoku.interventions import PatchStudy
    from interp.sudoku.jobs import CircuitFindings
    from interp.sudoku.probe_records import ProbeStudy
    from interp.sudoku.solving_study import SolvingStudy

    return {"solving": SolvingStudy, "probes": ProbeStudy, "interventions": PatchStudy, "circuit": CircuitFindings}[
        part
    ]
