"""Does the cost of extraction grow linearly, and does memory stay flat? From 62,500 tokens to two million, to disk.

    python benchmarks/linear.py [--largest 2000000] [--sizes 6] [--rounds 2] [--minutes 10]

Two ladders of SmolLM2: `resid_pre.0`, the embedding alone, where nothing but planning, assembling, hashing, writing and
the ledger costs anything, so that what grows too fast among them cannot hide; and `resid_post.0`, with one block run.
Documents of the built-in corpus in an order drawn by their ids, each whole,
so that every size has the same mix of lengths; bfloat16 stores, deleted after each run. Each round doubles the size
from run to run. For each run: seconds to plan, seconds to run (last shard and manifest durable), the rise of resident
memory in each, seconds per stage. Costs c(n) = a n^s: the slope s of log c on log n is 1 where cost is linear, below
where fixed costs still count; its 95 per cent interval is that of Student's t over all runs.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from scipy import stats

from interp.bench.measure import ROOT, environment, measure
from interp.corpus import id_hash, read_corpus
from interp.extract import prepare
from interp.model import HookedModel
from interp.tokenfile import TokenFile, tokenize

MODEL, SITES = "smollm2-135m", ("resid_pre.0", "resid_post.0")
COSTS = ("plan_seconds", "run_seconds", "run_cpu_seconds")


def main() -> None:
    """Run every ladder, print, save after every run."""
    o = read_arguments()
    torch.set_num_threads(o.threads)
    record: dict[str, Any] = json.loads(o.out.read_text()) if o.out.exists() else {"model": MODEL, "ladders": {}}
    for site in o.sites:
        runs = list[dict[str, Any]]()
        arguments = {name: value for name, value in vars(o).items() if not isinstance(value, Path | None)}
        facts = {**environment(("torch", "numpy", "midlens")), "arguments": arguments}
        for run in ladder(site, o):
            runs.append(run)
            print(line(run), flush=True)
            record["ladders"][site] = {"environment": facts, "slopes": slopes(runs), "runs": runs}
            o.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\n{site}\n\n{table(runs)}\n")
        for name, found in slopes(runs).items():
            print(f"{name}: slope {found['slope']:.3f}, 95% interval {found['low']:.3f} to {found['high']:.3f}")


def ladder(site: str, o: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs of one site, the sizes ascending in every round; none starts that would end too late."""
    end = time.monotonic() + 60 * o.minutes
    slowest = 0.0
    model = HookedModel.load(MODEL, upto=site, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory(dir=o.scratch, prefix="linear-") as scratch:
        store = Path(scratch) / "store"
        files = token_files(model.tokenizer, Path(scratch), sizes(o.largest, o.sizes))
        one(model, files[0], site, store)  # whatever is loaded or allocated once
        for turn, file in product(range(o.rounds), files):
            if time.monotonic() + slowest * file.n_tokens < end:
                run = one(model, file, site, store)
                slowest = max(slowest, run["run_seconds"] / run["tokens"])
                yield {"round": turn, **run}


def sizes(largest: int, count: int) -> list[int]:
    """`count` sizes up to `largest`, each twice the one before."""
    return [largest >> step for step in reversed(range(count))]


def token_files(tokenizer: Any, folder: Path, counts: Sequence[int]) -> list[TokenFile]:
    """One of about each number of tokens: the first documents of the built-in corpus in the order of a hash of ids."""
    documents = sorted(read_corpus("builtin"), key=lambda document: id_hash("linear:" + document.id))
    return [tokenize(documents, tokenizer, folder / f"tokens-{count}", max_tokens=count) for count in counts]


def one(model: Any, file: TokenFile, site: str, path: Path) -> dict[str, Any]:
    """Plan and run one extraction, and delete what it wrote."""
    made: list[Any] = []
    planned = measure(lambda: made.append(prepare(model, file, [site], path)))
    extraction = made.pop()
    ran = measure(lambda: extraction.run(progress=False))
    found = {
        "tokens": file.n_tokens,
        "documents": len(file),
        "rows": extraction.plan.rows,
        "shards": len(extraction.plan.shard_rows),
        "bytes": sum(each.stat().st_size for each in path.rglob("*") if each.is_file()),
        "plan_seconds": planned.seconds,
        "plan_rss_rise": planned.rss_rise,
        "run_seconds": ran.seconds,
        "run_cpu_seconds": ran.cpu_seconds,
        "run_rss_rise": ran.rss_rise,
        "stages": extraction.stages.as_dict(),
        "limited_by": extraction.stages.limiting(),
        "load_average": os.getloadavg()[0],
    }
    shutil.rmtree(path)
    return found


def slopes(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of planning and running, by the clock and, for runs, by processor time; once there are sizes enough to say."""
    tokens = [run["tokens"] for run in runs]
    return {name: slope(tokens, [run[name] for run in runs]) for name in COSTS} if len(set(tokens)) > 2 else {}


def slope(tokens: Sequence[float], costs: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """The slope of log cost on log tokens with its interval (least squares, Student's t)."""
    fit = stats.linregress(np.log(tokens), np.log(costs))
    half = float(stats.t.ppf((1 + confidence) / 2, len(tokens) - 2) * fit.stderr)
    return {"slope": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half}


def line(run: dict[str, Any]) -> str:
    """One run in words."""
    return (
        f"{run['tokens']:>9,} tokens: planned in {run['plan_seconds']:.2f} s, run in {run['run_seconds']:.1f} s "
        f"({1e6 * run['run_seconds'] / run['tokens']:.1f} us a token), {run['run_rss_rise'] / 2**20:.0f} MiB"
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Medians over rounds, as Markdown."""
    lines = ["| tokens | documents | shards | µs/token | processor µs/token | planning, µs/token | peak rise, MiB |"]
    lines += ["| --: | --: | --: | --: | --: | --: | --: |"]
    for tokens in sorted({run["tokens"] for run in runs}):
        same = [run for run in runs if run["tokens"] == tokens]
        per_token = [
            f"{1e6 * np.median([run[name] for run in same]) / tokens:.1f}"
            for name in ("run_seconds", "run_cpu_seconds", "plan_seconds")
        ]
        rise = max(run["run_rss_rise"] for run in same) / 2**20
        cells = [f"{tokens:,}", f"{same[0]['documents']:,}", str(same[0]["shards"]), *per_token, f"{rise:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", default=list(SITES), help="one ladder each")
    parser.add_argument("--largest", type=int, default=2_000_000, help="tokens of the longest run")
    parser.add_argument("--sizes", type=int, default=6, help="how many sizes, each half the next")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each ladder: no run starts that would end late")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="folder for stores (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/linear.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
