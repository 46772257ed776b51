"""`midlens COMMAND …` and `python -m midlens COMMAND …`.

Exit status: 0 done, 1 a check failed (parity above tolerance, a damaged store), 2 bad input, 130 interrupted.
"""

import contextlib
import io
import os
import sys
from typing import Annotated, Any

from interp.errors import InputError


def commands() -> object:
    """The union of all subcommands, as tyro wants it. Imported here so that `import midlens` stays light."""
    import tyro

    from midlens.attention import Attention
    from midlens.bench import Bench
    from midlens.discover import Discover
    from midlens.evaluate import Evaluate
    from midlens.extract import Extract
    from midlens.parity import Parity
    from midlens.steer import Steer
    from midlens.store import Store
    from midlens.sudoku import Sudoku
    from midlens.sweep import Sweep
    from midlens.train import Train

    sub = tyro.conf.subcommand
    return (
        Annotated[Discover, sub("discover", description="From a model and text to a trained, evaluated, readable SAE.")]
        | Annotated[Extract, sub("extract", description="Run a model over text and store activations.")]
        | Annotated[Store, sub("store", description="Check or describe an activation store.")]
        | Annotated[Train, sub("train", description="Train an SAE from an activation store, or straight from a model.")]
        | Annotated[Sweep, sub("sweep", description="Train many SAEs from one read of the rows, and compare them.")]
        | Annotated[Evaluate, sub("evaluate", description="Evaluate an SAE on held-out activations and text.")]
        | Annotated[Parity, sub("parity", description="Compare every site with independent implementations.")]
        | Annotated[Attention, sub("attention", description="Routing and filtering of attention.")]
        | Annotated[Steer, sub("steer", description="Fit, apply, evaluate and fold affine steering.")]
        | Annotated[Sudoku, sub("sudoku", description="World models of Sudoku solvers: train, probe, intervene.")]
        | Annotated[Bench, sub("bench", description="How near this machine's limit extraction and SAE steps run.")]
    )


def _parsed(arguments: list[str] | None) -> Any:
    """The command. What a record of options refuses is the caller's mistake like any other: tyro, which catches it as
    a `ValueError`, would print it under a name of its own making."""
    import tyro

    said = io.StringIO()
    said.isatty = sys.stderr.isatty  # tyro's own messages keep their colours
    mistake: BaseException | None = None
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands(), args=arguments, prog="midlens")  # pyright: ignore[reportArgumentType, reportCallIssue]
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


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn the caller's mistakes into one line."""
    try:
        return int(_parsed(arguments).run() or 0)
    except InputError as error:
        if os.environ.get("MIDLENS_TRACEBACK"):
            raise
        sys.stderr.write(f"midlens: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("midlens: interrupted; what was finished is kept. Give the same command again to go on.\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
