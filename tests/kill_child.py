"""Runs extractions that kill themselves: `python kill_child.py ROOT TOKENS POINTS...`, one forked process per point.

A point is KIND:N:SIDE: SIGKILL before or after the N-th call of os.KIND (`replace` is the rename), or `time:SECONDS:`.
Each point's store is ROOT/POINT/s, and ROOT/POINT/log has one byte per forward pass. STORE_DTYPE, in the environment,
is that of the rows.
"""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

SETTINGS = {"max_length": 16, "token_budget": 64, "rows_per_shard": 60, "progress": False}


def arm(point: str) -> None:
    kind, number, side = point.split(":")
    if kind == "time":
        signal.setitimer(signal.ITIMER_REAL, float(number))
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return
    real, calls = getattr(os, kind), [0]

    def counted(*args):
        calls[0] += 1
        if calls[0] == int(number) and side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args)
        if calls[0] == int(number) and side == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, kind, counted)


def main(root: Path, tokens: Path, points: list[str]) -> None:
    from interp.extract import extract
    from interp.tokenfile import TokenFile
    from tests.toy_store import SITES, ToyModel

    class Slow(ToyModel):
        def capture(self, *args, **options):
            time.sleep(0.002 if points[0].startswith("time") else 0)
            return super().capture(*args, **options)

    for point in points:
        folder = root / point
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            arm(point)
            dtype = os.environ.get("STORE_DTYPE", "bfloat16")
            model = Slow(log=folder / "log")
            extract(model, TokenFile.open(tokens), SITES, folder / "s", store_dtype=dtype, **SETTINGS)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        (folder / "killed").write_text(str(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
