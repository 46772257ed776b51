"""Every head's kernel measured: split, spectra, ranks and 20 matched nulls, beside dense d x d algebra on some heads.

    python benchmarks/attention_speed.py [--model smollm2-135m --threads 2 --dense 4 --rounds 3]

Seconds by the clock, and of processor time (threads summed), which other processes disturb less. The dense route takes
the same measures of d x d matrices: singular values of the skew part, eigenvalues of the symmetric part and of M, once
for the head and once for each null (U Σ V^T with frames from a QR decomposition). Dense heads are timed one by one, in
turn with ours, and the null's dense cost is that of one draw times their number; ratios are of processor time, within a
round. Before anything is timed both answers are compared. Llama 3.1 8B's shape: one layer of random weights, times 32.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interp.attention.heads import Kernel, kernel, kernel_shape
from interp.attention.nulls import gaussian_null
from interp.attention.table import kernel_columns, kernel_rows
from interp.bench.measure import environment
from interp.model import HookedModel

LLAMA = (32, 4096, 128)  # heads of a layer, d, e
LAYERS = 32
DRAWS = 20


def taken(op: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    op()
    return time.perf_counter() - clock, time.process_time() - processor


def dense(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svdvals((M - M.T) / 2), torch.linalg.eigvalsh((M + M.T) / 2), torch.linalg.eigvals(M)


def dense_null(M: Tensor, rank: int) -> None:
    """One draw with M's singular values, in d dimensions (which are found once a head, and not counted)."""
    frames = np.random.default_rng(0).standard_normal((2, len(M), rank))
    U, V = torch.linalg.qr(torch.from_numpy(frames)).Q
    dense(U @ V.T)


def check(found: Kernel) -> None:
    columns = kernel_columns(found, draws=0)
    skew, symmetric, values = dense(found.bilinear.dense()[0])
    routing = float(columns["routing_energy"][0])
    assert abs(routing - float(skew.square().sum())) < 1e-9 * routing
    top = float(columns["numerical_abscissa"][0])
    assert abs(top - float(symmetric.max())) < 1e-9 * top
    rightmost = float(columns["spectral_abscissa"][0])
    assert abs(rightmost - float(values.real.max())) < 1e-6 * top


def rounds_of(found: Kernel, count: int, heads: int) -> list[dict[str, float]]:
    """Seconds of processor time a head, in turn: ours and dense, with and without nulls."""
    e, rows = found.left.shape[-1], []
    for turn in range(count + 1):
        gaussian_null.cache_clear()
        ours = taken(lambda: kernel_columns(found, draws=DRAWS))[1] / len(found.left)
        bare = taken(lambda: kernel_columns(found, draws=0))[1] / len(found.left)
        M = found.bilinear.dense()[(turn * heads) % len(found.left)]
        split, null = taken(lambda M=M: dense(M))[1], taken(lambda M=M: dense_null(M, e))[1]
        row = {"ours": ours, "ours without nulls": bare, "dense": split + DRAWS * null, "dense without nulls": split}
        rows.append(row | {"ratio": row["dense"] / ours, "ratio without nulls": split / bare})
    return rows[1:]  # the first round warms up


def whole(model: HookedModel) -> dict[str, object]:
    gaussian_null.cache_clear()
    clock, processor = taken(lambda: kernel_rows(model, draws=DRAWS, progress=False))
    shape = kernel_shape(model)
    heads = shape.layers * shape.heads
    print(
        f"{model.name}: {heads} heads, d {shape.d}, e {shape.e}: {clock:.1f} s, processor {processor:.1f} s", flush=True
    )
    return {"model": model.name, "heads": heads, "d": shape.d, "e": shape.e, "seconds": clock, "processor": processor}


def llama() -> dict[str, float]:
    heads, d, e = LLAMA
    left, right = torch.randn(2, heads, d, e, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    layer = Kernel(left, right, 0, 1.0, True, False, False, heads)
    gaussian_null.cache_clear()
    clock, processor = taken(lambda: kernel_columns(layer, draws=DRAWS))
    print(f"a layer of {heads} heads, d {d}, e {e}: {clock:.1f} s, processor {processor:.1f} s; times {LAYERS}:")
    print(f"    {LAYERS * clock / 60:.1f} min, processor {LAYERS * processor / 60:.1f} min", flush=True)
    estimate = {"estimated seconds": LAYERS * clock, "estimated processor": LAYERS * processor}
    return {"heads": heads, "d": d, "e": e, "seconds": clock, "processor": processor} | estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense", type=int, default=4, help="step between the heads that are taken dense")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention_speed.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    model = HookedModel.load(o.model, dtype="float32", device="cpu")
    found = kernel(model, 0)
    check(found)
    facts: dict[str, object] = {"arguments": {"threads": o.threads, "rounds": o.rounds, "draws": DRAWS}}
    facts["environment"] = environment(("torch", "numpy", "transformers"))
    facts["whole"] = whole(model)
    torch.set_num_threads(1)
    facts["rounds"] = rounds = rounds_of(found, o.rounds, o.dense)
    for name in rounds[0]:
        middle = statistics.median(row[name] for row in rounds)
        print(f"{name:20} {middle:8.1f} x" if "ratio" in name else f"{name:20} {1000 * middle:8.1f} ms per head")
    torch.set_num_threads(o.threads)
    facts["llama-3.1-8b"] = llama()
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
