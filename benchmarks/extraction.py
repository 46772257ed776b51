"""Activation extraction to disk against the bare forward pass and against other tools, on the same tokens in one run.

    python benchmarks/extraction.py [--tokens 8192] [--repeats 5]

SmolLM2-135M, residual stream after block 15, CPU, float32 (and bfloat16 where the CPU multiplies it), on (a)
equal-length and (b) natural mixed-length documents. Each contestant is checked first, row by row, against the bare
truncated forward; one that deviates gets no number. Then all take turns, `--repeats` times round, each round beginning
with the next one. Throughput counts real tokens, never padding. Ratios are taken within a round, where the machine was
equally busy, to the bare forward of the same dtype; the table gives median, smallest, largest.
"""

import argparse
import copy
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # nobody draws progress bars while being timed

import torch
from torch import Tensor

from benchmarks import contestants as who
from benchmarks.contestants import Contestant
from benchmarks.workloads import Workload, workloads
from interp.bench.measure import ROOT, Measured, environment, measure, spread
from interp.loading import load_hf
from interp.precision import cpu_has_bfloat16

MODEL = "smollm2-135m"
BARE = "bare truncated HF forward"
FULL = "full HF forward, output hook"
PACKAGES = (
    "midlens",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "sae-lens",
    "datasets",
    "pyarrow",
    "numpy",
)


def main() -> None:
    """Check, time, print, save."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    loaded = load_hf(MODEL, dtype="float32", device="cpu")
    record: dict[str, Any] = {
        "model": MODEL,
        "revision": loaded.revision,
        "site": who.SITE,
        "environment": environment(PACKAGES),
    }
    record["workloads"] = {}
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="extraction-") as scratch:
        folder = Path(scratch)
        every = workloads(
            loaded.tokenizer,
            folder,
            n_tokens=args.tokens,
            batch=args.batch,
            length=args.length,
            max_length=args.max_length,
        )
        field = enter(loaded.hf, loaded.tokenizer, folder, args.only)
        for workload in every:
            record["workloads"][workload.name] = compete(field, workload, folder, args.repeats, args.computes)
    record["load_average_at_the_end"] = os.getloadavg()
    print(json.dumps(record["environment"], indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {args.out}")
    if any(result["refused"] for result in record["workloads"].values()):
        sys.exit("some contestants deviate from the bare forward and were left out; see above")


def enter(hf: Any, tokenizer: Any, folder: Path, only: Sequence[str]) -> list[Contestant]:
    """All contestants; those whose package is not installed are named and left out."""
    bare = who.bare(hf)
    hf.save_pretrained(folder / "model")  # for SAELens, which loads by name
    tokenizer.save_pretrained(folder / "model")
    ways = [
        lambda: who.in_memory(f"{BARE}, exact-length batches", bare, "exact"),
        lambda: who.in_memory(f"{BARE}, sorted by length, padded", bare, "padded"),
        lambda: who.in_memory(f"{BARE}, packed", bare, "packed"),
        lambda: who.in_memory(FULL, who.hooked(hf), "padded"),
        lambda: who.in_memory(f"{FULL}, logits of the last token only", who.hooked(hf, logits_to_keep=1), "padded"),
        lambda: who.midlens(hf, tokenizer, store_dtype="float32"),
        lambda: who.midlens(hf, tokenizer, store_dtype="bfloat16"),
        lambda: who.in_memory("transformer-lens, no stop", who.transformer_lens(hf, tokenizer, stop=False), "padded"),
        lambda: who.in_memory(
            "transformer-lens, stop_at_layer", who.transformer_lens(hf, tokenizer, stop=True), "padded"
        ),
        lambda: who.in_memory("nnsight, tracer.stop()", who.nnsight(hf), "padded"),
        lambda: who.sae_lens(folder / "model", hf),
        *(in_bfloat16(hf, tokenizer) if cpu_has_bfloat16() else ()),
    ]
    field = []
    for way in ways:
        try:
            field.append(way())
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
    return [c for c in field if not only or c.name.startswith((BARE, *only))]


def in_bfloat16(hf: Any, tokenizer: Any) -> list[Callable[[], Contestant]]:
    """Once more on a cast copy, for CPUs that multiply bfloat16, as `HookedModel.load` does there unasked."""
    half = copy.deepcopy(hf).to(torch.bfloat16)
    bare, same = who.bare(half), {"computes": "bfloat16"}
    lens = "transformer-lens, stop_at_layer, bfloat16"
    return [
        lambda: who.in_memory(f"{BARE}, exact-length batches, bfloat16", bare, "exact", **same),
        lambda: who.in_memory(f"{BARE}, sorted by length, padded, bfloat16", bare, "padded", **same),
        lambda: who.midlens(half, tokenizer, store_dtype="bfloat16"),
        lambda: who.in_memory(lens, who.transformer_lens(half, tokenizer, stop=True), "padded", **same),
        lambda: who.in_memory("nnsight, tracer.stop(), bfloat16", who.nnsight(half), "padded", **same),
    ]


def compete(
    field: Sequence[Contestant], workload: Workload, folder: Path, repeats: int, computes: Sequence[str]
) -> dict[str, Any]:
    """One workload: check everybody, then time those who passed and compute in a dtype of `computes`, taking turns."""
    print(f"\n## {workload.name}: {json.dumps(workload.describe())}\n", flush=True)
    passed, refused = check(field, workload, folder)
    passed = [c for c in passed if c.computes in computes]
    times: dict[str, list[Measured]] = {c.name: [] for c in passed}
    for turn in range(repeats):
        shift = turn % len(passed)
        for contestant in (*passed[shift:], *passed[:shift]):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                out = Path(place) / "out"
                times[contestant.name].append(measure(lambda c=contestant, out=out: c.run(workload, out, False)))
    table = summarise(passed, workload, times)
    show(table)
    return {**workload.describe(), "results": table, "refused": refused}


def check(field: Sequence[Contestant], workload: Workload, folder: Path) -> tuple[list[Contestant], dict[str, str]]:
    """Those whose rows are those of the bare forward (packed ones: of the packed bare forward), and why not the others.

    Each runs once here with everything it needs to load, so this is its warm-up too.
    """
    truth: dict[bool, Tensor] = {}
    passed, refused = [], {}
    for contestant in field:
        try:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                rows = contestant.run(workload, Path(place) / "out", True)
            assert rows is not None
            packed = contestant.batches == "packed"
            rows = rows[: workload.n_packed] if packed else rows
            reference = truth.setdefault(packed, rows)
            problem = deviation(rows, reference, contestant)
        except Exception as error:  # a rival may fail in any way; its row is then missing, the others are not
            problem = f"{type(error).__name__}: {error}"
        if problem:
            refused[contestant.name] = problem
            print(f"refused: {contestant.name}: {problem}", file=sys.stderr, flush=True)
        else:
            passed.append(contestant)
    return passed, refused


def deviation(rows: Tensor, reference: Tensor, contestant: Contestant) -> str | None:
    """What is wrong with `rows` "n d", if anything: entries must agree relative to the largest of their row.

    All rows in float32, 99 % of them in bfloat16 (see `contestants.BFLOAT16_TOLERANCE`).
    """
    if rows.shape != reference.shape:
        return f"{tuple(rows.shape)} rows instead of {tuple(reference.shape)}"
    relative = (rows - reference).abs().amax(1) / reference.abs().amax(1)
    part = 1.0 if contestant.computes == "float32" else 0.99
    worst = float(relative.double().quantile(part))
    if worst <= contestant.tolerance:  # NaN is not
        return None
    return (
        f"{part:.0%} of the rows deviate from the bare forward by up to {worst:.3g} of their largest entry "
        f"(allowed: {contestant.tolerance:.3g})"
    )


def summarise(
    field: Sequence[Contestant], workload: Workload, times: dict[str, list[Measured]]
) -> list[dict[str, Any]]:
    """Tokens per second, ratios within each round, memory."""
    speed = {
        c.name: [(workload.n_packed if c.batches == "packed" else workload.n_tokens) / m.seconds for m in times[c.name]]
        for c in field
    }
    ceilings: dict[str, str] = {}  # by the dtype of computation
    for c in field:
        if c.name.startswith(BARE) and c.batches != "packed":
            best = ceilings.setdefault(c.computes, c.name)
            ceilings[c.computes] = max(best, c.name, key=lambda name: spread(speed[name])["median"])
    table = []
    for c in field:
        rises = [m.rss_rise for m in times[c.name] if m.rss_rise is not None]
        row: dict[str, Any] = {"name": c.name, "computes": c.computes, "stores": c.stores, "batches": c.batches}
        row["tokens_per_second"] = {**spread(speed[c.name]), "all": speed[c.name]}
        bases = [("ratio_to_bare", ceilings.get(c.computes)), ("ratio_to_full", FULL)]
        bases += [(f"ratio_to: {rival.name}", rival.name) for rival in field if c.name.startswith("midlens")]
        for title, base in bases:
            if base in speed:
                row[title] = spread([mine / theirs for mine, theirs in zip(speed[c.name], speed[base], strict=True)])
        row["cpu_seconds"] = spread([m.cpu_seconds for m in times[c.name]])
        row["peak_rss_rise_mib"] = round(max(rises) / 2**20) if rises else None
        row["is_ceiling"] = c.name in ceilings.values()
        table.append(row)
    return table


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print one workload's table as Markdown; * marks the bare forward that the ratios refer to."""
    print("| contestant | batches | stored | tokens/s | min–max | × bare | × full with hook | peak RSS rise, MiB |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for row in table:
        speed = row["tokens_per_second"]
        ratios = [_ratio(row.get(title)) for title in ("ratio_to_bare", "ratio_to_full")]
        name = row["name"] + (" *" if row["is_ceiling"] else "")
        cells = [
            name,
            row["batches"],
            row["stores"],
            f"{speed['median']:,.0f}",
            f"{speed['min']:,.0f}–{speed['max']:,.0f}",
        ]
        print("| " + " | ".join([*cells, *ratios, str(row["peak_rss_rise_mib"])]) + " |")
    print(flush=True)


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['min']:.2f}–{found['max']:.2f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Extraction to disk: midlens, the bare forward pass and other tools.")
    parser.add_argument("--tokens", type=int, default=8192, help="real tokens per workload and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch of equal length")
    parser.add_argument("--length", type=int, default=128, help="tokens of each equal-length document")
    parser.add_argument("--max-length", type=int, default=512, help="longest window of a mixed-length document")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument(
        "--only", nargs="*", default=[], help="beginnings of contestants' names; the bare forwards always run"
    )
    parser.add_argument(
        "--computes", nargs="+", default=["float32", "bfloat16"], help="time these dtypes only; all are checked"
    )
    parser.add_argument(
        "--scratch", type=Path, help="folder for what is written (default: the system's temporary folder)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/extraction.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
