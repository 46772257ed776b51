"""Routing and filtering spectra of attention heads: by QR, by Gram matrices, and dense, per head.

    python benchmarks/bilinear_speed.py [--threads 1 --rounds 5]

Processor time, which other processes disturb less than the clock (threads are summed). Contestants take turns in every
round and ratios are taken within a round. The dense answer (one head a round) is compared with ours before anything is
timed; it is left out at Llama's size, where one head takes minutes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from midlens_kernels.bilinear_spectrum import (
    BilinearSpectrum,
    bilinear_eigenvalues,
    bilinear_energies,
    bilinear_spectrum,
    bilinear_vectors,
    gram_spectrum,
)
from midlens_kernels.bilinear_spectrum.reference import bilinear_spectrum_reference
from torch import Tensor

from interp.bench.measure import environment

SHAPES = {"smollm2-135m": (9, 576, 64), "llama-3.1-8b": (2, 4096, 128)}  # heads a round, d, e
WHOLE = {"smollm2-135m, 270 heads": (270, 576, 64), "llama-3.1-8b, a layer": (32, 4096, 128)}
DENSE_UP_TO = 1024


def by_gram(left: Tensor, right: Tensor) -> BilinearSpectrum:
    both = torch.cat([left, right], -1).double()
    return gram_spectrum(both.mT @ both)


def contestants(left: Tensor, right: Tensor) -> dict[str, tuple[int, Callable[[], object]]]:
    """How many heads each takes at a time, and what it does; ours first."""
    heads, d, _ = left.shape
    one = left[:1], right[:1]
    found: dict[str, tuple[int, Callable[[], object]]] = {
        "bilinear_spectrum (QR)": (heads, lambda: bilinear_spectrum(left, right)),
        "Gram, float64": (heads, lambda: by_gram(left, right)),
        "bilinear_energies": (heads, lambda: bilinear_energies(left, right)),
        "bilinear_eigenvalues": (heads, lambda: bilinear_eigenvalues(left, right)),
        "bilinear_vectors": (heads, lambda: bilinear_vectors(left, right)),
    }
    if d <= DENSE_UP_TO:
        found["dense d x d"] = (1, lambda: bilinear_spectrum_reference(*one))
        for a, b in zip(bilinear_spectrum(*one), bilinear_spectrum_reference(*one), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * b.abs().max().item())
    return found


def taken(op: Callable[[], object]) -> float:
    begun = time.process_time()
    op()
    return 1000 * (time.process_time() - begun)


def compare(name: str, rounds: int) -> list[dict[str, object]]:
    ops = contestants(*torch.randn(2, *SHAPES[name]).unbind())
    times: dict[str, list[float]] = {label: [] for label in ops}
    for _ in range(rounds + 1):
        for label, (heads, op) in ops.items():
            times[label].append(taken(op) / heads)
    rows: list[dict[str, object]] = []
    ours = next(iter(times.values()))
    for label, spent in times.items():
        ratios = [a / b for a, b in zip(spent[1:], ours[1:], strict=True)]  # the first round warms up
        low, mid, high = min(spent[1:]), statistics.median(spent[1:]), max(spent[1:])
        rows.append({"shape": name, "contestant": label, "ms per head": [low, mid, high], "x ours": sorted(ratios)})
        print(f"{name:25} {label:25} {mid:9.2f} ({low:.2f}-{high:.2f}) {statistics.median(ratios):7.2f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bilinear.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    print(f"{'shape':25} {'contestant':25} {'ms per head (min-max), x ours, by processor time':>40}")
    rows = [row for name in SHAPES for row in compare(name, o.rounds)]
    for name, shape in WHOLE.items():
        left, right = torch.randn(2, *shape).unbind()
        seconds = taken(lambda left=left, right=right: bilinear_spectrum(left, right)) / 1000
        rows.append({"shape": name, "contestant": "bilinear_spectrum (QR)", "seconds": seconds})
        print(f"{name:25} {'bilinear_spectrum (QR)':25} {seconds:9.2f} s")
    o.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {"threads": o.threads, "rounds": o.rounds}
    facts = {"arguments": arguments, "environment": environment(("torch", "numpy")), "rows": rows}
    o.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
