"""`midlens COMMAND …` and `python -m midlens COMMAND …`.

Exit status: 0 done, 1 a check failed (parity above tolerance, a damaged store), 2 bad input, 130 interrupted.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from interp.errors import InputError
from midlens.commands import STATUS, Entry, contents, find
from midlens.console import MECHANISM, Command, Planned, finish, harmless, outlined, say, speaking


def described(entry: Entry, kind: type[Command]) -> str:
    """What a command's help says besides its options."""
    text = "\n".join(line.removeprefix("    ") for line in (kind.__doc__ or entry.summary).strip().splitlines())
    figures = f"figures: {kind.figures}" if kind.figures else "figures: none"
    shape = '{"command", "status", "path", "paths", "figures"}'
    if kind.streams:
        shape, figures = "one object a line", f"each with {kind.figures}"
    return f"{text}\n\nExample:\n  {kind.example}\n\nWith --json: {shape}; {figures}.\n\n{STATUS}"


def parsed(arguments: list[str]) -> Command | None:
    """The command that arguments spell, `None` for the list of commands.

    What a record of options refuses is the caller's mistake like any other: tyro, which catches it as a `ValueError`,
    would print it under a name of its own making.
    """
    if (entry := find(arguments)) is None:
        return None
    import tyro

    kind, rest = entry.load(), arguments[len(entry.words) :]
    filled = _from_file(kind, rest)
    given: dict[str, Any] = {} if filled is None else {"default": filled}
    said = io.StringIO()
    said.isatty = sys.stderr.isatty  # tyro's own messages keep their colours
    mistake: BaseException | None = None
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=rest, prog=f"midlens {entry.name}", description=described(entry, kind), **given)
    except SystemExit as ended:
        mistake = ended
        while mistake is not None and not isinstance(mistake, InputError):
            mistake = mistake.__context__
        if mistake is None:
            raise
        raise mistake from None
    finally:
        if not isinstance(mistake, InputError):
            sys.stderr.write(said.getvalue())


def _from_file(kind: type[Command], arguments: list[str]) -> Command | None:
    """The command as `--config FILE` has it, what must be given and is not there left open for flags."""
    path = None
    for at, word in enumerate(arguments):
        if word == "--config" and at + 1 < len(arguments):
            path = arguments[at + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    if path is None:
        return None
    import tyro

    from interp.options_file import filled, read_options

    return filled(kind, read_options(Path(path), kind, without=MECHANISM), tyro.MISSING)


def perform(command: Command, name: str) -> int:
    """Run a command, or say what it would do, or write its options down."""
    with speaking(name, script=command.json):
        if command.write_config is not None:
            return _write_options(command, name)
        if isinstance(command, Planned) and command.dry_run:
            return outlined(command.plan())
        return int(command.run() or 0)


def _write_options(command: Command, name: str) -> int:
    from interp.options_file import options_text

    path, text = command.write_config, options_text(command, title=f"midlens {name}", without=MECHANISM)
    assert path is not None
    if str(path) == "-":
        say(text.rstrip("\n"))
        return finish(figures={"toml": text}) if command.json else 0
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"--write-config {path}: {error.strerror or error}") from error
    return finish(path)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn the caller's mistakes into one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if (command := parsed(arguments)) is None:
            sys.stdout.write(contents(arguments[0] if arguments and not arguments[0].startswith("-") else None))
            return 0
        entry = find(arguments)
        assert entry is not None
        return perform(command, entry.name)
    except InputError as error:
        if os.environ.get("MIDLENS_TRACEBACK"):
            raise
        sys.stderr.write(f"midlens: {harmless(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("midlens: interrupted; what was finished is kept. Give the same command again to go on.\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
