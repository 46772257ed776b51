"""The group of torchrun's processes is closed, its threads and all, before the interpreter ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import atexit, os, sys
from pathlib import Path

def threads():
    print(*(Path(f"/proc/self/task/{one}/comm").read_text().strip() for one in os.listdir("/proc/self/task")))

atexit.register(threads)  # the first to register is the last to be called
import torch
import torch.distributed as dist

if sys.argv[1] == "left":
    from interp.processes import left_at_end, open_group

    open_group()
    open_group()  # a second run of the same process
elif sys.argv[1] == "by another":  # as transformers does
    from interp.processes import left_at_end

    left_at_end()
    dist.init_process_group("gloo")
else:
    atexit.register(dist.destroy_process_group)
    dist.init_process_group("gloo")
import torch.distributed.checkpoint

dist.all_reduce(torch.ones(3))
threads()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("way,stay", [("left", False), ("by another", False), ("destroyed alone", True)])
def test_gloos_threads_are_over_when_the_group_is_closed(way: str, stay: bool):
    """The last way shows what goes wrong without: a module holds the group beyond its closing."""
    here = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, way],
        env={**os.environ, **here},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    open_then, at_end = (sum("gloo" in name for name in line.split()) for line in done.stdout.splitlines())
    assert open_then > 0 and at_end == (open_then if stay else 0)
