"""The stated peak of a training step against the memory a process really takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saes.memory import memory_of
from saes.recipe import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
# VmHWM is reset before the steps, so that the start (random rows, their norms) does not count.
CHILD = """
import json, sys
import torch
from saes.frame import Frame, measure
from saes.init import start
from saes.memory import memory_of
from saes.optimise import TrainState, step
from saes.recipe import TrainConfig
options, d, dead = json.loads(sys.argv[1])
config = TrainConfig(**options)

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

x = torch.randn(config.batch_size, d)
frame = Frame((measure(x, massive=10.0),), (d,))
warm = TrainState(start(TrainConfig(**{**options, "d_sae": 4 * d}).shape(d), frame.scaled(x), b_dec="mean", seed=0),
                  config, frame, 10)
step(warm, x)  # libraries allocate once for themselves
del warm
base = status("VmRSS")
state = TrainState(start(config.shape(d), frame.scaled(x), b_dec="mean", seed=0), config, frame, 10)
state.dead = torch.arange(dead)
for _ in range(2):
    step(state, x)
reset()
step(state, x)
print(json.dumps([status("VmHWM") - base, memory_of(config, state.sae.config).peak]))
"""


@pytest.mark.parametrize(
    ("options", "dead"),
    [
        ({"architecture": "topk"}, 4000),
        ({"architecture": "batchtopk", "compute": "bfloat16"}, 4000),
        ({"architecture": "jumprelu"}, 0),
    ],
    ids=str,
)
def test_the_stated_peak_is_the_measured_one(options, dead):
    """Within a fifth either way, at a size where weights are most of it: 10 million parameters."""
    d, options = 256, {"d_sae": 20480, "batch_size": 512, "k": 32, **options}
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    # Freed memory goes back at once, so that what is resident is what is held.
    env |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    child = [sys.executable, "-c", CHILD, json.dumps([options, d, dead])]
    found = subprocess.run(child, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr
    measured, stated = json.loads(found.stdout)
    assert 0.8 < measured / stated < 1.2, f"measured {measured / 2**20:.0f} MiB, stated {stated / 2**20:.0f} MiB"


def test_full_size_fits_what_is_said():
    """Llama's width with 131,072 features: 24 GiB hold weights, optimiser, gradients and a batch."""
    config = TrainConfig(d_sae=131_072, k=50, batch_size=4096, aux_weight=0.0)
    memory = memory_of(config, config.shape(4096))
    weights = 2 * 4096 * 131_072 * 4
    assert memory.held == pytest.approx(3 * weights, rel=1e-3) and memory.backward == pytest.approx(weights, rel=1e-3)
    assert memory.forward <= 2**26 and memory.peak < 4 * weights * 1.08
    assert memory.text().startswith("peak 17.")
