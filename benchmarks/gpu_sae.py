"""Part "sae" of `gpu.py`: training steps at d 4,096, width 131,072, k 64, held against dense autograd (`saes.bench`).

In each item the production step, on one backend, and the dense step take turns on the same weights; `ratio` is the
median over rounds of their ratio. `peak_bytes` is the most a step held, weights included; the note says what
`saes.memory` states. A backend whose kernels failed their checks is not timed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import midlens_kernels as kernels
import torch

from benchmarks.gpu_checks import why_not_timed
from benchmarks.gpu_frame import Bench, Item, Refused
from interp.bench.ceilings import Ceilings, Rate, seconds_of
from saes.bench import Task, time_steps

NEEDS = {"topk": ("topk_encode", "topk_decode"), "batchtopk": ("threshold_select", "topk_decode")}
BACKENDS = ("torch", "triton")


def run(bench: Bench) -> None:
    """The sizes of the target first, with the production path on either backend."""
    bench.run(items(bench))


def items(bench: Bench) -> Iterator[Item]:
    """One item a task and backend."""
    copies = Copies(bench)
    for task in tasks(small=bench.small):
        shape = f"d {task.d} f {task.f} k {task.k} batch {task.batch}"
        for backend in BACKENDS:
            call = partial(steps, bench, task, backend, copies)
            yield Item(f"{task.architecture} step", shape, _dtype(task), backend, call)


def tasks(*, small: bool) -> Iterator[Task]:
    """Shapes, the product in bfloat16 (weights stay float32) and in float32."""
    d, f, k, batches = (8, 32, 2, (4,)) if small else (4096, 131_072, 64, (4096, 16_384))
    for architecture in ("topk", "batchtopk"):
        for batch in batches if architecture == "topk" else batches[:1]:
            for compute in ("bfloat16", "float32")[: 1 if small else 2]:
                yield Task(d=d, f=f, k=k, batch=batch, architecture=architecture, compute=compute)


def steps(bench: Bench, task: Task, backend: str, copies: "Copies") -> list[dict[str, Any]]:
    """Rows of the production step and of the dense one."""
    if backend == "triton":
        for op in NEEDS[task.architecture]:
            if why := why_not_timed(bench, op):
                raise Refused("not timed", f"{op}: {why}")
    effort = {"repeats": 1, "seconds": 0.0} if bench.small else {"repeats": 3, "seconds": 1.0}
    with kernels.use_backend(backend):
        found = time_steps(task, device=bench.device, ceilings=copies.ceilings(), **effort)
    by_step = {row["step"]: row for row in found}
    rows = [_row(by_step[name], f"{name}{f', {backend}' * (name == 'production')}") for name in ("production", "dense")]
    rows[0] |= {"ratio": by_step["ratio"]["median"], "against": "dense"}
    rows[1]["variant"] += f", beside {backend}"
    return rows


def _row(row: dict[str, Any], variant: str) -> dict[str, Any]:
    memory = row["memory"]
    peak = memory.get("cuda_peak", memory.get("rss_rise"))
    said = [f"{row['share']['median']:.0%} of the products' rate"]
    if "stated" in memory:
        said.append(f"stated {memory['stated'] / 2**30:.2f} GiB")
        said += ["BEYOND WHAT IS STATED"] * (peak is not None and "cuda_peak" in memory and peak > memory["stated"])
    figures = {"value": row["median"], "low": row["min"], "high": row["max"], "unit": "tokens/s", "peak_bytes": peak}
    return {"variant": variant, **figures, "note": "; ".join(said), "detail": row}


class Copies:
    """The rate of copies within the device, measured once."""

    def __init__(self, bench: Bench) -> None:
        self.device, self.size, self._found = bench.device, (1 << 20 if bench.small else 1 << 30), None

    def ceilings(self) -> Ceilings:
        """As what `saes.bench` takes."""
        if self._found is None:
            x, y = (torch.ones(self.size, dtype=torch.uint8, device=self.device) for _ in range(2))
            rate = 2 * self.size / seconds_of(lambda: y.copy_(x), self.device, 0.01)
            self._found = Ceilings({"memory_copy": Rate("memory_copy", "byte/s", (rate,))})
        return self._found


def _dtype(task: Task) -> str:
    return "float32" if task.compute == "float32" else "float32, product in bfloat16"
