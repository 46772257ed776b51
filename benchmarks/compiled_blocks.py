"""Eager against compiled blocks: SmolLM2 up to layer 15, batches of several lengths, in turns.

    .venv/bin/python benchmarks/compiled_blocks.py [--rounds 5] [--out results/compiled_blocks.json]

Needs a C++ compiler on CPUs. Ratios are of processor seconds within a round (one thread: a busy machine disturbs them
less than the clock); the time to compile is told apart.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from interp.bench.measure import environment
from interp.model import HookedModel

SITE = "resid_post.15"
SHAPES = ((8, 128), (4, 256), (2, 512), (33, 31), (14, 73))


def passes(model: HookedModel, batches: list[torch.Tensor]) -> float:
    begun = time.process_time()
    with torch.inference_mode():
        for tokens in batches:
            model.capture(tokens, [SITE])
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compiled_blocks.json")
    options = parser.parse_args()
    eager, compiled = (
        HookedModel.load("smollm2-135m", upto=SITE, dtype=options.dtype, device="cpu", compile=compile)
        for compile in (False, True)
    )
    random = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 49_000, shape, generator=random) for shape in SHAPES]
    with torch.inference_mode():
        a = eager.capture(batches[0], [SITE])
        begun = time.perf_counter()
        b = compiled.capture(batches[0], [SITE])
        compiling = time.perf_counter() - begun
    (site,) = a
    far = float(((a[site] - b[site]).abs().amax(-1) / a[site].abs().amax(-1)).max())
    passes(compiled, batches)
    rounds = [(passes(eager, batches), passes(compiled, batches)) for _ in range(options.rounds)]
    ratios = [e / c for e, c in rounds]
    tokens = sum(b * t for b, t in SHAPES)
    row = {
        "site": SITE,
        "dtype": options.dtype,
        "tokens": tokens,
        "eager_tokens_per_cpu_second": [tokens / e for e, _ in rounds],
        "compiled_tokens_per_cpu_second": [tokens / c for _, c in rounds],
        "ratio": ratios,
        "compile_seconds": compiling,
        "largest_relative_deviation": far,
        "environment": environment(("torch", "transformers")),
    }
    options.out.write_text(json.dumps(row, indent=1) + "\n")
    print(
        f"{SITE}, {options.dtype}: compiled/eager speed {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {options.rounds} rounds); compiled in {compiling:.0f} s; "
        f"largest relative deviation {far:.1e}"
    )


if __name__ == "__main__":
    main()
