"""Training steps at full size: width of Llama 3.1 8B, 131,072 features; memory against the formula, tokens/s.

    python benchmarks/full_size.py                                  24 GiB of memory, about four minutes on 2 cores
    python benchmarks/full_size.py --d 576 --features 16384         anywhere

Activations are random numbers: this measures cost, not quality. The peak is the process's own high-water mark over the
steps (`VmHWM`, reset after the start), less what it held before weights existed; it is compared with `saes.memory`.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from interp.bench.measure import environment
from saes.beginning import first_state
from saes.frame import Frame, measure
from saes.memory import memory_of
from saes.optimise import step
from saes.recipe import TrainConfig


def resident(name: str) -> int:
    """Bytes of this process, from /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=4096)
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--dead", type=int, default=0, help="features that the auxiliary loss revives")
    parser.add_argument("--architecture", default="topk")
    parser.add_argument("--compute", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "full_size.json")
    options = parser.parse_args()
    config = TrainConfig(
        architecture=options.architecture,
        d_sae=options.features,
        k=options.k,
        batch_size=options.batch,
        compute=options.compute,
        b_dec="mean",
        aux_weight=1 / 32 if options.dead else 0.0,
    )
    x = torch.randn(options.batch, options.d)
    shape = config.shape(options.d)
    stated = memory_of(config, shape)
    print(stated.text(), flush=True)
    before = resident("VmRSS")
    frame = Frame((measure(x, massive=10.0),), (options.d,))
    state = first_state(config, shape, frame, x, steps=options.steps)
    state.dead = torch.arange(options.dead)
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(options.steps):
        begun = time.perf_counter()
        log = step(state, x)
        seconds.append(time.perf_counter() - begun)
        print(f"step {state.step}: {seconds[-1]:.1f} s, loss {log.loss:.4f}", flush=True)
    peak = resident("VmHWM") - before
    best = options.batch / min(seconds)
    print(f"measured peak {peak / 2**30:.2f} GiB, {peak / stated.peak:.2f} of what is stated; {best:,.0f} tokens/s")
    arguments = {name: value for name, value in vars(options).items() if name != "out"}
    record = {
        "arguments": arguments,
        "stated_peak_bytes": stated.peak,
        "measured_peak_bytes": peak,
        "seconds_per_step": seconds,
        "environment": environment(("torch",)),
    }
    held = json.loads(options.out.read_text()) if options.out.exists() else []
    held = [old for old in held if old["arguments"] != arguments]
    options.out.write_text(json.dumps([*held, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
