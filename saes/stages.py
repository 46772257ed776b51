"""The stages of a long run: what each does, against which budget, and what it took; kept over interruptions."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import differences, read_json, write_json
from interp.typed import fits, read_object

BUDGET = {
    "model": 20,
    "text": 15,
    "activations": 200,
    "training": 130,
    "evaluation": 75,
    "features": 30,
    "report": 10,
}
"""Seconds that the stages of the default run may take on 2 cores: 8 minutes together."""


def claim_run(out: Path, options: Mapping[str, Any]) -> None:
    """Make the run's folder these options' own, or refuse it if it belongs to others."""
    path = out / "config.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, options)
    elif wrong := differences(read_json(path, "run"), options):
        raise InputError(
            f"{out} holds a run with other options ({wrong}). Give the same options to go on with it, or "
            "another folder with --out"
        )


class Stages:
    """Announces stages and times them. A stage that is called again after an interruption adds to its time."""

    def __init__(self, path: Path, say: Callable[[str], None], *, budget: Mapping[str, float] = BUDGET) -> None:
        self.path, self.say, self.budget = path, say, budget
        self.seconds: dict[str, float] = read_object(path, "run") if path.exists() else {}
        if not all(fits(one, float) for one in self.seconds.values()):
            raise InputError(
                f"{path} is damaged: expected the seconds of each stage, got {self.seconds!r:.80}; remove it"
            )

    def usual(self, seconds: float) -> str:
        """What a stage may take, in words."""
        return f"the demo: {seconds:.0f} s at most on 2 cores"

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """One stage: a line before it, its seconds after it, interrupted or not."""
        number = list(self.budget).index(name) + 1
        self.say(f"[{number}/{len(self.budget)}] {name}: {what} ({self.usual(self.budget[name])})")
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 2)
            write_json(self.path, self.seconds)
        self.say(f"      {took:.1f} s")

    def close(self) -> None:
        """Say what the whole run took beside its budget."""
        self.say(f"{sum(self.seconds.values()):.0f} s in all ({self.usual(sum(self.budget.values()))})")
