"""What the workers of the tests of the Ray engine load: a toy model that may be slow, fail, or end its process."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from interp.tokenfile import TokenFile
from tests.toy_store import ToyModel


@dataclass(frozen=True)
class Load:
    """Model and token file. Passes of all workers add a byte to `root/log`."""

    tokens: Path
    root: Path
    kill_after: int = -1
    """The worker that comes to this many passes in all is killed there, `kills` times."""
    kills: int = 1
    fail: str = ""
    wait: float = 0.0

    def __call__(self) -> "tuple[Faulty, TokenFile]":
        return Faulty(self), TokenFile.open(self.tokens)


class Faulty(ToyModel):
    def __init__(self, load: Load) -> None:
        super().__init__(log=load.root / "log")
        self.load = load

    def capture(self, tokens, sites, **options):
        if tokens.numel() > 1:
            time.sleep(self.load.wait)
            if self.load.fail:
                raise RuntimeError(self.load.fail)
            if self.load.kill_after >= 0 and (self.load.root / "log").stat().st_size >= self.load.kill_after:
                killed = len(list(self.load.root.glob("killed-*")))
                if killed < self.load.kills:
                    (self.load.root / f"killed-{os.getpid()}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().capture(tokens, sites, **options)
