"""`midlens completion SHELL`: a script that lets a shell complete commands and options."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from midlens.console import Command, finish, say


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print a script that lets a shell complete commands and options.

    bash: put its output into a file that ~/.bashrc sources; zsh: into `_midlens` in a folder of $fpath; fish: into
    ~/.config/fish/completions/midlens.fish. The script is made for the options of the installed version."""

    example: ClassVar[str] = "midlens completion bash"
    figures: ClassVar[str] = "script"

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """For which shell."""

    def run(self) -> int:
        """Print the script."""
        import contextlib
        import io

        from midlens.commands import options

        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
            tyro.cli(options(), prog="midlens", args=["--tyro-print-completion", self.shell])  # pyright: ignore[reportArgumentType, reportCallIssue]
        say(written.getvalue())
        return finish(figures={"script": written.getvalue()})
