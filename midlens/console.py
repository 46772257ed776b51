"""Where the command line speaks, and what every command has: `--json`, `--config`, `--write-config`, `--dry-run`.

How a command takes part:

    @dataclass(frozen=True, kw_only=True)
    class Extract(ExtractConfig, Planned):              # Command where a plan would say nothing
        example: ClassVar[str] = "midlens extract --out runs/store"        # shown in the help, parsed by a test
        figures: ClassVar[str] = "rows, shards"                            # names of what `finish` gets

        def plan(self) -> Mapping[str, object]: ...     # of Planned: what would be done; writes nothing
        def run(self) -> int:
            store = extract_text(self.settings(ExtractConfig), self.out, announce=say)
            return finish(self.out, figures={"rows": len(store), ...})

and a line in `midlens.commands.TABLE`. `say` is for people: it goes to standard output, or to standard error under
`--json`, like everything else that a library prints. What `finish` gets is the result: its paths are the last lines of
plain output, and with the figures one JSON object under `--json`:

    {"command": "extract", "status": 0, "path": "...", "paths": ["...", ...], "figures": {...}}

A command that gives results one by one calls `item` for each: one JSON object a line.
"""

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TextIO, TypeVar

Record = TypeVar("Record")


class _Script(NamedTuple):
    """Standard output of a command whose reader is a program."""

    command: str
    stream: TextIO


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_script: ContextVar[_Script | None] = ContextVar("script", default=None)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options that every command has."""

    example: ClassVar[str]
    figures: ClassVar[str] = ""
    streams: ClassVar[bool] = False

    json: bool = field(default=False, compare=False)
    """For scripts: the result as JSON on standard output; messages go to standard error."""
    config: Path | None = field(default=None, compare=False)
    """Options from a TOML file, under their names here; what is given as a flag wins."""
    write_config: Path | None = field(default=None, compare=False)
    """Write the present options to this TOML file and stop; `-` prints them."""

    def run(self) -> int:
        """Do it; the exit status."""
        raise NotImplementedError

    def settings(self, kind: type[Record]) -> Record:
        """Those of the options that make up a record of one of the classes this command is made of."""
        assert dataclasses.is_dataclass(kind)
        return kind(**{one.name: getattr(self, one.name) for one in dataclasses.fields(kind) if one.init})


@dataclass(frozen=True, kw_only=True)
class Planned(Command):
    """A command that costs time, and says beforehand what it would do."""

    dry_run: bool = field(default=False, compare=False)
    """Print what would be done, what it takes and what is there already; write nothing."""

    def plan(self) -> Mapping[str, object]:
        """What `run` would do, by name."""
        raise NotImplementedError


MECHANISM = tuple(one.name for one in dataclasses.fields(Planned))
"""Options that say how a command is run, not what it does: they have no place in a configuration file."""


@contextlib.contextmanager
def speaking(command: str, *, script: bool) -> Iterator[None]:
    """Inside, results are for people, or for a program: then all that is not a result goes to standard error."""
    if not script:
        yield
        return
    token = _script.set(_Script(command, sys.stdout))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _script.reset(token)


def say(text: str = "") -> None:
    """Write one line (or several) for people at once."""
    sys.stdout.write(harmless(text) + "\n")
    sys.stdout.flush()


def harmless(text: str) -> str:
    """`text` without what a terminal would obey: names in files may hold escape sequences, or turn text round."""
    return _OBEYED.sub("\ufffd", text)


def item(value: Mapping[str, Any], text: str) -> None:
    """One of several results: a JSON object on a line of its own for a program, `text` for people."""
    if (script := _script.get()) is None:
        say(text)
    else:
        _write(script, value)


def finish(*paths: Path, figures: Mapping[str, Any] | None = None, status: int = 0) -> int:
    """The result: where it lies, the main path last, and its main figures. Returns `status`."""
    resolved = [str(path.resolve()) for path in paths]
    if (script := _script.get()) is None:
        for path in resolved:
            say(path)
        return status
    head = {"command": script.command, "status": status}
    _write(script, head | {"path": resolved[-1] if resolved else None, "paths": resolved, "figures": figures or {}})
    return status


def outlined(plan: Mapping[str, object]) -> int:
    """Say a plan: `name   what` for people, one object for a program."""
    if (script := _script.get()) is not None:
        _write(script, {"command": script.command, "status": 0, "dry_run": True, "plan": plan})
        return 0
    say("\n".join(_outline(plan)))
    return 0


def _outline(plan: Mapping[str, object], indent: str = "") -> Iterator[str]:
    width = max((len(name) for name, value in plan.items() if not isinstance(value, Mapping)), default=0) + 2
    for name, value in plan.items():
        if isinstance(value, Mapping):
            yield indent + name
            yield from _outline(value, indent + "  ")
        else:
            yield f"{indent}{name.ljust(width)}{f'{value:,}' if isinstance(value, int | float) else value}"


def _write(script: _Script, value: Mapping[str, Any]) -> None:
    script.stream.write(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n")
    script.stream.flush()


def _plain(value: Any) -> Any:
    """Values as JSON has them; it has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inside) for name, inside in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(inside) for inside in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):  # a number of numpy's or torch's
        return _plain(value.item())
    return str(value)
