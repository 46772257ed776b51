"""What steering costs: a generated token with and without an edit, and a low-rank edit beside the dense map.

    python benchmarks/steering_speed.py [--threads 1 --rounds 25]

Processor time, which other processes disturb less than the clock (threads are summed). Contestants take turns in every
round, each round beginning with the next one, and ratios are taken within a round: the spread printed is that of those
ratios, smallest to largest, around their median. Before anything is timed the dense map is compared with the edit, and
the folded model's tokens with the hooks'.

Generation: SmolLM2-135M, float32, one prompt of 32 tokens and then `--tokens` single steps against the cache. "no edit"
runs twice, which shows what the measurement can tell apart. `share by calls` counts the processor time of the edit's
own calls (the scope and the copy that hooks make included) in the same step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from interp.bench.measure import environment
from interp.model import HookedModel
from interp.running import Where
from interp.sites import Site
from interp.steering.edits import AffineEdit
from interp.steering.fold import fold
from interp.steering.scopes import scoped
from interp.steering.steering import Steering

RANK = 4
DENSE = {"decode, d 576": (576, 1), "decode, d 4096": (4096, 1), "prompt of 512, d 4096": (4096, 512)}


def edit_of(d: int, seed: int = 0) -> AffineEdit:
    """Rank 4, small enough to leave the text alone."""
    g = torch.Generator().manual_seed(seed)
    u, v, c, delta = (torch.randn(*shape, generator=g) for shape in ((d, RANK), (d, RANK), (RANK,), (d,)))
    return AffineEdit(0.01 * u, v / d**0.5, c, 0.01 * delta)


def spent(op: Callable[[], object], times: int = 1) -> float:
    """Processor milliseconds of one call."""
    begun = time.process_time()
    for _ in range(times):
        op()
    return 1000 * (time.process_time() - begun) / times


def in_turns(
    ops: Mapping[str, Callable[[], object]], rounds: int, times: Mapping[str, int] | None = None
) -> list[dict]:
    """Milliseconds of each, and ratios to the first within a round; the first round warms up."""
    names, taken = list(ops), {name: [] for name in ops}
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            taken[name].append(spent(ops[name], (times or {}).get(name, 1)))
    first, rows = taken[names[0]][1:], []
    for name in names:
        ratios = sorted(mine / base for mine, base in zip(taken[name][1:], first, strict=True))
        middle, ms = statistics.median(ratios), statistics.median(taken[name][1:])
        rows.append({"contestant": name, "ms": ms, "ratios": ratios, "median": middle})
        print(f"  {name:34} {ms:10.4f} ms   x {middle:8.4f} ({ratios[0]:.4f}-{ratios[-1]:.4f})", flush=True)
    return rows


def generation(model: HookedModel, tokens: int, rounds: int) -> list[dict]:
    """One generation in turns: plain, edits at one site and at every block, folded."""
    prompt = torch.randint(100, 5000, (1, 32), generator=torch.Generator().manual_seed(0))
    edit, layers = edit_of(model.cfg.d_model), model.cfg.n_layers
    one = Steering({Site.parse("resid_post.15"): edit})
    every = Steering({Site.parse(f"resid_post.{i}"): edit for i in range(layers)})
    inside = Steering({Site.parse("mlp_out.15"): edit})
    weights = fold(model, inside)

    def run(who: HookedModel, steering: Steering | None = None) -> torch.Tensor:
        hooks = None if steering is None else steering.hooks()
        return who.generate(prompt, edits=hooks, max_new_tokens=tokens, stop_tokens=())

    assert torch.equal(run(weights), run(model, inside))
    return in_turns(
        {
            "no edit": lambda: run(model),
            "no edit, again": lambda: run(model),
            f"rank {RANK} at one site": lambda: run(model, one),
            f"rank {RANK} at all {layers} blocks": lambda: run(model, every),
            "folded into the weights": lambda: run(weights),
        },
        rounds,
    )


def by_calls(model: HookedModel, tokens: int, rounds: int) -> list[float]:
    """Share of a generation's processor time that the calls of one edit take, copy and scope included."""
    site, shares = Site.parse("resid_post.15"), []
    hook = Steering({site: edit_of(model.cfg.d_model)}).hooks()[site]
    prompt = torch.randint(100, 5000, (1, 32), generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        inside = [0.0]

        def timed(x: torch.Tensor, where: Where, inside: list[float] = inside) -> torch.Tensor:
            begun = time.process_time()
            new = hook(x.clone(), where)
            inside[0] += 1000 * (time.process_time() - begun)
            return new

        whole = spent(
            lambda timed=timed: model.generate(prompt, edits={site: timed}, max_new_tokens=tokens, stop_tokens=())
        )
        shares.append(inside[0] / whole)
    print(f"  share by calls {statistics.median(shares):.4%} ({min(shares):.4%}-{max(shares):.4%})", flush=True)
    return sorted(shares)


def against_dense(d: int, n: int, rounds: int) -> list[dict]:
    """The edit as hooks call it, and x A' + b of the same map."""
    edit, x = edit_of(d), torch.randn(1, n, d, generator=torch.Generator().manual_seed(1))
    a, b = (part.float() for part in edit.dense())
    hook = scoped(edit, "all")
    where = Where.plain(torch.zeros(1, n, dtype=torch.int64), None)
    torch.testing.assert_close(hook(x, where), x @ a.T + b, rtol=1e-4, atol=1e-4)
    times = {"low rank": 400 if n == 1 else 5, "dense": 10 if n == 1 else 1}
    return in_turns({"low rank": lambda: hook(x, where), "dense": lambda: x @ a.T + b}, rounds, times)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "steering_speed.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    model = HookedModel.load("smollm2-135m", dtype="float32", device="cpu")
    with torch.no_grad():
        print(f"generation of {o.tokens} tokens, processor time, ratios to no edit")
        rows = {"generation": generation(model, o.tokens, o.rounds)}
        shares = by_calls(model, o.tokens, o.rounds)
        for name, (d, n) in DENSE.items():
            print(f"{name}, rank {RANK}, ratios to low rank")
            rows[name] = against_dense(d, n, o.rounds)
    arguments = {"threads": o.threads, "rounds": o.rounds, "tokens": o.tokens}
    facts = {"arguments": arguments, "environment": environment(("torch", "transformers", "numpy"))}
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps({**facts, "rows": rows, "share by calls": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
