"""Sparse encode and decode against the plain expressions they replace, forward and with gradients.

    python benchmarks/kernels.py [--tokens 2048 --width 576 --features 4608 --k 32 --threads 1 --repeats 7]

All contestants of an operation take turns in every round; ratios are taken within a round. Values and gradients are
compared with the first contestant before anything is timed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import environment
from midlens_kernels import topk_decode, topk_encode
from torch import Tensor
from torch.nn import functional

Op = Callable[..., Tensor]


def gathered(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """Rows gathered into an n k d temporary."""
    return torch.einsum("nk,nkd->nd", acts, W_dec[idx])


def bags(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """PyTorch's embedding bag with its own backward pass."""
    return functional.embedding_bag(idx, W_dec, mode="sum", per_sample_weights=acts)


def densely(acts: Tensor, idx: Tensor, W_dec: Tensor) -> Tensor:
    """Codes scattered into n f, then a matrix product."""
    return acts.new_zeros(len(acts), len(W_dec)).scatter(1, idx, acts) @ W_dec


def plain_encode(x: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> Tensor:
    """Product, top k, ReLU, with autograd's dense backward pass."""
    return torch.addmm(b_enc, x, encoder.T).topk(k, dim=-1).values.relu()


def our_encode(x: Tensor, encoder: Tensor, b_enc: Tensor, k: int) -> Tensor:
    """`topk_encode`; activations in falling order, to be comparable."""
    return topk_encode(x, encoder.T, b_enc, k)[0].sort(dim=-1, descending=True).values


def seconds(op: Op, leaves: list[Tensor], rest: list[object], *, gradients: bool) -> float:
    """One call, or one call and its backward pass."""
    begun = time.perf_counter()
    y = op(*leaves[:1], *rest, *leaves[1:]) if op in DECODE else op(*leaves, *rest)
    if gradients:
        torch.autograd.grad(y, leaves, torch.ones_like(y))
    return time.perf_counter() - begun


DECODE: dict[Op, str] = {
    topk_decode: "midlens topk_decode",
    bags: "embedding_bag",
    gathered: "gather + einsum",
    densely: "dense product",
}
ENCODE: dict[Op, str] = {our_encode: "midlens topk_encode", plain_encode: "addmm + topk"}


def agree(ops: dict[Op, str], leaves: list[Tensor], rest: list[object]) -> None:
    """Every contestant gives the first one's values and gradients."""
    truth: list[Tensor] | None = None
    for op, name in ops.items():
        y = op(leaves[0], *rest, *leaves[1:]) if op in DECODE else op(*leaves, *rest)
        found = [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]
        for mine, theirs in zip(found, truth or found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
        truth = truth or found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("tokens", 2048),
        ("width", 576),
        ("features", 4608),
        ("k", 32),
        ("threads", 1),
        ("repeats", 7),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    x, b_enc = torch.randn(o.tokens, o.width, requires_grad=True), torch.zeros(o.features, requires_grad=True)
    weights = functional.normalize(torch.randn(o.features, o.width), dim=1).requires_grad_()
    acts, idx = (t.detach() for t in topk_encode(x, weights.T, b_enc, o.k))
    cases = {
        "decode": (DECODE, [acts.requires_grad_(), weights], [idx]),
        "encode": (ENCODE, [x, weights, b_enc], [o.k]),
    }
    rows = []
    print(f"{'operation':8} {'gradients':9} {'contestant':22} {'ms (median, min-max)':>26} {'times midlens':>16}")
    for case, (ops, leaves, rest) in cases.items():
        agree(ops, leaves, rest)
        for gradients in (False, True):
            took: dict[str, list[float]] = {name: [] for name in ops.values()}
            for _ in range(o.repeats + 1):
                for op, name in ops.items():
                    took[name].append(seconds(op, leaves, rest, gradients=gradients))
            own = next(iter(took.values()))[1:]
            for name, times in took.items():
                ms = [1000 * t for t in times[1:]]  # the first round warms up
                ratio = statistics.median(t / mine for t, mine in zip(times[1:], own, strict=True))
                rows.append({"operation": case, "gradients": gradients, "contestant": name, "ms": ms, "ratio": ratio})
                span = f"{statistics.median(ms):.1f} ({min(ms):.1f}-{max(ms):.1f})"
                print(f"{case:8} {gradients!s:9} {name:22} {span:>26} {ratio:16.2f}")
    o.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {name: value for name, value in vars(o).items() if name != "out"}
    facts = {"arguments": arguments, "environment": environment(("torch",)), "rows": rows}
    o.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
