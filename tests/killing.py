"""Training runs in a process of their own that stop and wait at a chosen step, to be killed there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STOPPING = """
import sys
import time
from pathlib import Path
from saes import fitting
wait, path = int(sys.argv[1]), Path(sys.argv[2])
taken, step = 0, fitting.step
def counted(state, x, y=None):
    global taken
    taken += 1
    if taken > wait:  # the parent kills here
        (path / "waiting").touch()
        time.sleep(600)
    return step(state, x, y)
fitting.step = counted
"""


def begin(training: str, path: Path, *, wait: int) -> subprocess.Popen:
    """Run `training` (which writes under `path`); it takes `wait` steps and then waits."""
    path.mkdir(exist_ok=True)
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STOPPING + training, str(wait), str(path)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def kill_where_it_waits(process: subprocess.Popen, path: Path) -> None:
    """SIGKILL once the steps are taken."""
    deadline = time.monotonic() + 120
    while not (path / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
