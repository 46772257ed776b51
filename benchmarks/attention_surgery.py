"""Perplexity of a model whose attention is operated on: planes and modes kept, channels removed; levels, gauges.

    python benchmarks/attention_surgery.py                      SmolLM2, 3,000 held-out tokens; about 15 minutes a core
    python benchmarks/attention_surgery.py --head-tokens 512    and each channel of each single head; half an hour more
    python benchmarks/attention_surgery.py --table              what the file holds

All heads at once, in the manner of arXiv 2605.18826 (whose own way of truncating is not known to us): keep r routing
planes (and every filtering mode), or r modes (and every plane), or take one channel out. Bases of the position level
come from the training half of the built-in corpus, losses from the held-out half; intervals are bootstrapped over
documents. What was measured is kept in `--work` and not measured again. Prints tables (Markdown), writes JSON.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from interp.attention.corpus_gram import corpus_grams
from interp.attention.operated import kernel_bases
from interp.attention.surgery import Surgery
from interp.attention.surgery_sweep import gauged, per_head, removals, surgery_sweep, truncations
from interp.batching import Batch
from interp.bench.measure import environment
from interp.corpus import Corpus, id_hash, read_corpus, split
from interp.model import HookedModel

Row = dict[str, Any]
RANKS = (1, 2, 4, 8, 16, 32, 64)
RESULTS = Path(__file__).parent / "results" / "attention_surgery.json"


def fed(model: HookedModel, corpus: Corpus, most: int, length: int) -> list[Batch]:
    """The first `length` tokens of documents, in the order of a hash of their ids, one document a batch."""
    batches, total = [], 0
    for number, document in enumerate(sorted(corpus, key=lambda d: id_hash("surgery:" + d.id))):
        ids = model.tokenizer(document.text, add_special_tokens=False)["input_ids"][:length]
        if total >= most:
            break
        batches.append(Batch(torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([number]), torch.tensor([0])))
        total += len(ids)
    return batches


def bases(model: HookedModel, train: Corpus, o: argparse.Namespace) -> Iterator[Surgery]:
    """What is varied: each level and gauge, with nothing changed yet."""
    grams = corpus_grams(model, fed(model, train, o.calibration, o.length), progress=False)
    for gauge in ("raw", "key_centred"):
        held, means = gauged(grams, gauge)
        yield Surgery(bases=held, key_means=means)
    yield Surgery(level="kernel", bases=kernel_bases(model))


def measured(o: argparse.Namespace) -> dict[str, Any]:
    """All rows; of single heads too where `--head-tokens` asks for them."""
    model = HookedModel.load(o.model, dtype="float32", device="cpu")
    train, held_out = split(read_corpus("builtin"), fraction=0.5)
    whole, heads = [], []
    for base in bases(model, train, o):
        whole += [base, *removals(base), *truncations(base, planes=o.ranks, modes=o.ranks)]
        if base.level == "position":
            heads += per_head(model, removals(base))
    o.work.mkdir(parents=True, exist_ok=True)
    text = fed(model, held_out, o.tokens, o.length)
    result = {"all_heads": surgery_sweep(model, whole, text, path=o.work / "all_heads.jsonl")}
    if o.head_tokens:
        text = fed(model, held_out, o.head_tokens, o.length)
        result["single_heads"] = surgery_sweep(model, heads, text, path=o.work / "single_heads.jsonl", draws=500)
    return result


def cell(row: Row) -> str:
    """A perplexity and its interval."""
    return f"{row['perplexity']:,.1f} ({row['perplexity_low']:,.1f} to {row['perplexity_high']:,.1f})"


def tables(result: dict[str, Any]) -> str:
    """Perplexity by what is kept (rows) and by level and gauge (columns)."""
    clean, *rows = result["all_heads"]
    model = result["environment"]["arguments"]["model"]
    columns = [("position", "raw"), ("position", "key_centred"), ("kernel", "raw")]
    lines = [
        f"{model}, {clean['n_tokens']:,} predicted tokens of {clean['n_documents']} documents; without surgery: "
        f"{cell(clean)}",
        "",
        "| kept in all heads | position, raw | position, key-centred | kernel |",
        "|---|--:|--:|--:|",
    ]
    names = list(dict.fromkeys(map(kept, rows)))
    for name in names:
        found = {(row["level"], row["gauge"]): row for row in rows if kept(row) == name}
        lines.append(f"| {name} | " + " | ".join(cell(found[at]) if at in found else "" for at in columns) + " |")
    return "\n".join([*lines, *head_lines(result.get("single_heads", []))])


def kept(row: Row) -> str:
    """What a row leaves of attention, in words."""
    if row["planes"] is not None:
        return f"{row['planes']} {'plane' if row['planes'] == 1 else 'planes'}, all modes"
    if row["modes"] is not None:
        return f"all planes, {row['modes']} {'mode' if row['modes'] == 1 else 'modes'}"
    return {(1, 1): "everything", (1, 0): "filtering only", (0, 1): "routing only"}[row["alpha"], row["beta"]]


def head_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Of single heads: what removing a channel costs, and the heads where it costs most."""
    if not rows:
        return
    yield from (
        "",
        f"Single heads, {rows[0]['n_tokens']:,} predicted tokens: nats per token that removing a channel costs",
    )
    yield from ("", "| gauge | removed | sum over heads | median | most: layer.head |", "|---|---|--:|--:|---|")
    for gauge in ("raw", "key_centred"):
        for removed, left in (("routing", "filtering only"), ("filtering", "routing only")):
            costs = sorted(
                ((row["delta_ce"], row["heads"]) for row in rows[1:] if (row["gauge"], kept(row)) == (gauge, left)),
                reverse=True,
            )
            most = ", ".join(f"{head} ({cost:+.3f})" for cost, head in costs[:4])
            total, middle = sum(cost for cost, _ in costs), costs[len(costs) // 2][0]
            yield f"| {gauge} | {removed} | {total:+.3f} | {middle:+.4f} | {most} |"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=3000, help="held-out tokens")
    parser.add_argument("--calibration", type=int, default=6000, help="tokens of the training half, for the bases")
    parser.add_argument("--length", type=int, default=256, help="tokens of a document at most")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument(
        "--head-tokens", type=int, default=0, help="held-out tokens for single heads; 0: leave them out"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/attention-surgery"), help="folder of what was measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    o = parser.parse_args()
    if not o.table:
        torch.set_num_threads(o.threads)
        arguments = {name: value for name, value in vars(o).items() if name not in ("work", "out", "table")}
        facts = environment(("midlens", "numpy", "torch", "transformers"))
        found = {"environment": facts | {"arguments": arguments}, **measured(o)}
        partial = o.out.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, o.out)
    print(tables(json.loads(o.out.read_text())))


if __name__ == "__main__":
    main()
