"""Sparse encoding and decoding against the plain expressions they replace, forward and with gradients.

    python benchmarks/kernel_speed.py [--tokens 2048 --width 576 --features 4608 --k 32 --threads 1 --repeats 7
                                       --only step]

All contestants of an operation take turns in every round, and ratios are taken within a round: how many times as long
as ours, by the clock and by processor time (which other processes disturb less; threads are summed). Sums and gradients
are compared with ours before anything is timed. `--features` takes several widths. Codes to decode are either drawn
evenly or, as trained features fire, by Zipf's law (frequency of the r-th feature as 1 / r).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from midlens_kernels import threshold_encode, threshold_select, topk_decode, topk_encode
from torch import Tensor
from torch.nn import functional

from interp.bench.measure import environment


class Case(NamedTuple):
    """One operation: what gradients reach, and who computes it, ours first."""

    name: str
    leaves: list[Tensor]
    contestants: dict[str, Callable[..., Tensor]]


def drawn_codes(n: int, f: int, k: int, skew: float) -> Tensor:
    """k different features for each of n tokens; the r-th most frequent is drawn as r^-skew (Gumbel's trick)."""
    ranks = -skew * torch.arange(1, f + 1).log()[torch.randperm(f)]
    rows = max(1, 2**22 // f)
    sizes = [min(rows, n - start) for start in range(0, n, rows)]
    return torch.cat([(ranks - torch.empty(r, f).exponential_().log()).topk(k).indices for r in sizes])


def gathered(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """Rows gathered into an n k d temporary."""
    return torch.einsum("nk,nkd->nd", acts, W_dec[idx])


def bags(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """PyTorch's embedding bag with its own backward pass."""
    return functional.embedding_bag(idx, W_dec, mode="sum", per_sample_weights=acts)


def densely(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """Codes scattered into n f, then a matrix product."""
    return acts.new_zeros(len(acts), len(W_dec)).scatter(1, idx, acts) @ W_dec


def plain_batch_topk(x: Tensor, encoder: Tensor, b_enc: Tensor, count: int) -> Tensor:
    """The dense code of BatchTopK: a flat top k, scattered."""
    acts = torch.addmm(b_enc, x, encoder.T).relu().flatten()
    top = acts.topk(count, sorted=False)
    return torch.zeros_like(acts).scatter(0, top.indices, top.values).view(len(x), len(b_enc))


def plain_topk(x: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> Tensor:
    """Product, top k, ReLU, with autograd's dense backward pass."""
    return torch.addmm(b_enc, x, encoder.T).topk(k, dim=-1).values.relu()


def plain_weighted_topk(x: Tensor, encoder: Tensor, b_enc: Tensor, k: int, weight: Tensor) -> Tensor:
    pre = torch.addmm(b_enc, x, encoder.T)
    return pre.gather(1, (pre * weight).topk(k, dim=-1).indices).relu()


def plain_jump(x: Tensor, encoder: Tensor, b_enc: Tensor, floor: Tensor) -> Tensor:
    """The dense code of JumpReLU."""
    pre = torch.addmm(b_enc, x, encoder.T)
    return torch.where(pre > floor, pre, 0.0)


def cases(o: argparse.Namespace, f: int) -> Iterator[Case]:
    x, b_enc = torch.randn(o.tokens, o.width, requires_grad=True), torch.zeros(f, requires_grad=True)
    encoder = functional.normalize(torch.randn(f, o.width), dim=1).requires_grad_()
    weight, count = torch.rand(f) + 0.5, o.tokens * o.k
    for skew in (0.0, 1.0):
        idx = drawn_codes(o.tokens, f, o.k, skew)
        acts, W_dec = torch.rand(idx.shape, requires_grad=True), encoder.detach().clone().requires_grad_()
        yield Case(
            f"decode {'zipf' if skew else 'even'}",
            [acts, W_dec],
            {
                "topk_decode": lambda a, W, idx=idx: topk_decode(a, idx, W),
                "embedding_bag": lambda a, W, idx=idx: bags(a, idx, W),
                "gather + einsum": lambda a, W, idx=idx: gathered(a, idx, W),
                "dense product": lambda a, W, idx=idx: densely(a, idx, W),
            },
        )
    leaves = [x, encoder, b_enc]
    yield Case(
        "topk",
        leaves,
        {
            "topk_encode": lambda x, E, b: topk_encode(x, E.T, b, o.k)[0],
            "addmm + topk": lambda x, E, b: plain_topk(x, E, b, o.k),
        },
    )
    yield Case(
        "topk weighted",
        leaves,
        {
            "topk_encode": lambda x, E, b: topk_encode(x, E.T, b, o.k, weight=weight)[0],
            "addmm + topk + gather": lambda x, E, b: plain_weighted_topk(x, E, b, o.k, weight),
        },
    )
    yield Case(
        "batchtopk",
        leaves,
        {
            "threshold_select": lambda x, E, b: threshold_select(x, E.T, b, count)[0],
            "addmm + flat topk": lambda x, E, b: plain_batch_topk(x, E, b, count),
        },
    )
    with torch.no_grad():
        floor = (x[:256] @ encoder.T).topk(o.k).values[:, -1].median().expand(f).contiguous()
    yield Case(
        "jumprelu",
        leaves,
        {
            "threshold_encode": lambda x, E, b: threshold_encode(x, E.T, b, floor)[0],
            "addmm + where": lambda x, E, b: plain_jump(x, E, b, floor),
        },
    )
    yield from steps(o, f, leaves[1:], x.detach())


def steps(o: argparse.Namespace, f: int, encoder: list[Tensor], x: Tensor) -> Iterator[Case]:
    """Encoding, decoding, squared error: all of a training step but the optimiser."""
    weights = [*encoder, encoder[0].detach().clone().requires_grad_()]
    count = o.tokens * o.k

    def fixed(E: Tensor, b: Tensor, W: Tensor) -> Tensor:
        acts, idx = topk_encode(x, E.T, b, o.k)
        return (topk_decode(acts, idx, W) - x).square()

    def ragged(E: Tensor, b: Tensor, W: Tensor) -> Tensor:
        acts, idx, offsets = threshold_select(x, E.T, b, count)
        return (topk_decode(acts, idx, W, offsets=offsets) - x).square()

    def dense_topk(E: Tensor, b: Tensor, W: Tensor) -> Tensor:
        top = torch.addmm(b, x, E.T).topk(o.k, dim=-1)
        return (densely(top.values.relu(), top.indices, W) - x).square()

    def dense_batch(E: Tensor, b: Tensor, W: Tensor) -> Tensor:
        return (plain_batch_topk(x, E, b, count) @ W - x).square()

    yield Case("step topk", weights, {"topk_encode, topk_decode": fixed, "dense": dense_topk})
    yield Case("step batchtopk", weights, {"threshold_select, topk_decode": ragged, "dense": dense_batch})


def agree(case: Case) -> None:
    """Every contestant gives the first one's sum and gradients."""
    truth: list[Tensor] | None = None
    for name, op in case.contestants.items():
        y = op(*case.leaves).sum()
        found = [y, *torch.autograd.grad(y, case.leaves)]
        for mine, theirs in zip(found, truth or found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-2, msg=lambda m, name=name: f"{name}: {m}")
        truth = truth or found


def timed(case: Case, op: Callable[..., Tensor], *, gradients: bool) -> tuple[float, float]:
    """Milliseconds of one call, or of one call and its backward pass: by the clock, and of the processor."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    y = op(*case.leaves)
    if gradients:
        torch.autograd.grad(y, case.leaves, torch.ones_like(y))
    return 1000 * (time.perf_counter() - begun), 1000 * (time.process_time() - begun_cpu)


def compare(case: Case, f: int, repeats: int, *, gradients: bool) -> Iterator[dict[str, object]]:
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in case.contestants}
    for _ in range(repeats + 1):
        for name, op in case.contestants.items():
            took[name].append(timed(case, op, gradients=gradients))
    ours = next(iter(took.values()))[1:]  # the first round warms up
    for name, all_times in took.items():
        times = all_times[1:]
        by_clock, by_cpu = (sorted(mine[i] / own[i] for mine, own in zip(times, ours, strict=True)) for i in (0, 1))
        yield {
            "operation": case.name,
            "features": f,
            "gradients": gradients,
            "contestant": name,
            "ms": [t for t, _ in times],
            "cpu_ms": [t for _, t in times],
            "ratio": statistics.median(by_clock),
            "cpu_ratio": [by_cpu[0], statistics.median(by_cpu), by_cpu[-1]],
        }


def line(row: dict[str, object]) -> str:
    ms, (low, middle, high) = row["ms"], row["cpu_ratio"]  # type: ignore[misc]
    span = f"{statistics.median(ms):.1f} ({min(ms):.1f}-{max(ms):.1f})"  # type: ignore[arg-type]
    head = f"{row['features']:6} {row['operation']:15} {row['gradients']!s:5} {row['contestant']:30}"
    return f"{head} {span:>24} {row['ratio']:8.2f} {middle:8.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 2048), ("width", 576), ("k", 32), ("threads", 1), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--features", type=int, nargs="+", default=[4608])
    parser.add_argument("--only", nargs="+", default=[""], help="operations whose name begins so")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    rows = []
    head = f"{'width':6} {'operation':15} {'grad':5} {'contestant':30} {'ms (median, min-max)':>24}"
    print(head, f"{'x ours':>8} {'by cpu time':>20}")
    for f in o.features:
        for case in cases(o, f):
            if not case.name.startswith(tuple(o.only)):
                continue
            agree(case)
            for gradients in (True,) if case.name.startswith("step") else (False, True):
                for row in compare(case, f, o.repeats, gradients=gradients):
                    rows.append(row)
                    print(line(row), flush=True)
    o.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {name: value for name, value in vars(o).items() if name != "out"}
    facts = {"arguments": arguments, "environment": environment(("torch", "numpy")), "rows": rows}
    o.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
