"""Runs of the literary primitives in forked processes of a warm parent, some of which kill themselves.

    python kill_primitives.py OPTIONS         OPTIONS: JSON; then a line of standard input a run:

    FOLDER                                    whole; FOLDER.log gets a line `stage function` for every call below
    FOLDER FUNCTION NUMBER before|after       SIGKILL before or after the NUMBER-th of its calls

A line of standard output is the exit status of the run. The search is one that ends in time whatever the machine does.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

WATCHED = ("os.replace", "os.fsync", "saes.fitting.step", "saes.primitives.catalogue.contrast_scores",
           "saes.primitives.writing.generate", "saes.primitives_report.write_primitives_report")  # fmt: skip


def watch(name: str, told: Any) -> None:
    module, _, attribute = name.rpartition(".")
    home = importlib.import_module(module)
    real = getattr(home, attribute)

    def watched(*args: Any, **options: Any) -> Any:
        told(name, "before")
        result = real(*args, **options)
        told(name, "after")
        return result

    setattr(home, attribute, watched)


def run(given: dict[str, Any], folder: Path, point: list[str]) -> None:
    from saes.primitives import planning
    from saes.primitives.options import PrimitivesConfig
    from saes.primitives.pipeline import run_primitives

    planning.EFFORTS = (planning.Effort(4, 1, 6),)
    stage, counts = "", dict.fromkeys(WATCHED, 0)
    # Without a buffer: threads of the run are watched too, and text files of Python are not made for several.
    log = None if point else os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def told(name: str, side: str) -> None:
        counts[name] += side == "before"
        if point and [name, str(counts[name]), side] == point:
            os.kill(os.getpid(), signal.SIGKILL)
        if log is not None and side == "before":
            os.write(log, f"{stage} {name}\n".encode())

    def say(line: str) -> None:
        nonlocal stage
        if line.startswith("["):
            stage = line.split()[1].rstrip(":")

    for name in WATCHED:
        watch(name, told)
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    run_primitives(PrimitivesConfig(**tuples, out=folder), say=say)


def main(given: dict[str, Any]) -> None:
    import saes.primitives.pipeline
    import saes.primitives_report  # noqa: F401
    from interp import figures, page  # noqa: F401

    for line in sys.stdin:
        folder, *point = line.split()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run(given, Path(folder), point)
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
