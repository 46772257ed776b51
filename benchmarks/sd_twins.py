"""Twin language models with S-D and with standard attention: perplexity, rank by layer, linearisation, allocation.

    python benchmarks/sd_twins.py train sd_0 standard_0          train these (all of them, if none is named); resumable
    python benchmarks/sd_twins.py measure                        what stands under --runs, into the results
    python benchmarks/sd_twins.py table                          what the results hold

About 1M parameters (8 layers, width 96, 3 heads of 32), bytes of the built-in corpus, the same bytes in the same order
for every run of a seed. In the manner of arXiv 2605.18826, whose form of S-D attention, data, optimiser, definition of
rank and way of linearising are not known to us. One learning rate for all. Perplexities are per byte, on held-out
documents, in float32; intervals are bootstrapped over documents. `allocated_*` take their head widths from the ranks
that run sd_0 logged after `ALLOCATED_AT` steps. Prints Markdown, writes JSON.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.attention.allocation import allocated_widths
from interp.attention.cascade import rank_rows
from interp.attention.linearise import LinearMode, document_losses, linearise_sweep, mean_operators
from interp.attention.sd_data import Windows, chosen_documents, windows
from interp.attention.sd_model import Twin
from interp.attention.sd_train import MODEL, TwinTraining, load_twin, train_twin
from interp.bench.measure import environment
from interp.corpus import read_corpus, split
from interp.sealing import read_json, write_json
from interp.stats import bootstrap_ratio

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "sd_twins.json"
SHARED: Row = {"total_bytes": 3_072_000, "checkpoint_every": 100}
RUNS: dict[str, Row] = {
    "sd_0": {"attention": "sd_token", "compile": True},
    "standard_0": {"attention": "standard"},
    "sd_1": {"attention": "sd_token", "compile": True, "seed": 1},
    "standard_1": {"attention": "standard", "seed": 1},
    "sd_unit_0": {"attention": "sd_unit", "compile": True},
    "standard_nonorm_0": {"attention": "standard", "norm": False},
    "sd_learned_0": {"attention": "sd_token", "compile": True, "rotary": False},
    "elu4_0": {"attention": "standard", "elu_first": 4},
    "allocated_sd_0": {"attention": "sd_token", "compile": True},
    "allocated_standard_0": {"attention": "standard"},
}
SWEPT = ("sd_0", "sd_1", "sd_unit_0", "standard_0", "standard_1", "standard_nonorm_0")
ALLOCATED_AT = 1500
DOCUMENTS, SWEEP_DOCUMENTS, RANKED, CALIBRATION = 100, 16, 16, 64


def lines(folder: Path) -> list[Row]:
    """The metrics of a run."""
    path = folder / "training" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def training(name: str, runs: Path) -> TwinTraining:
    """Settings of a run; for the allocated ones, head widths from the ranks of sd_0."""
    widths: Row = {}
    if name.startswith("allocated"):
        [line] = [line for line in lines(runs / "sd_0") if line["step"] == ALLOCATED_AT]
        ranks = [line[f"operating_erank2_{layer}"] for layer in range(8)]
        widths = {"head_widths": allocated_widths(ranks, 32)}
    return TwinTraining(**(SHARED | RUNS[name] | widths))


def texts() -> tuple[Windows, Windows, Windows]:
    """Calibration (training text), and held-out text for perplexity and, less of it, for sweeps."""
    train, held_out = split(read_corpus("builtin"))
    return (
        windows(chosen_documents(train, 400), 256),
        windows(chosen_documents(held_out, DOCUMENTS), 256, once=True),
        windows(chosen_documents(held_out, SWEEP_DOCUMENTS), 256, once=True),
    )


def measured(name: str, runs: Path, data: tuple[Windows, Windows, Windows]) -> Row:
    """Everything measured on one trained twin."""
    model, config = load_twin(runs / name)
    calibration, held_out, few = data
    sums, counts = document_losses(model, held_out)
    low, high = np.exp(bootstrap_ratio(sums, counts))
    ranked = held_out.batch(held_out.spread(RANKED))[0]
    logged = lines(runs / name)
    row: Row = {
        "name": name,
        "training": {key: getattr(config, key) for key in TwinTraining.__dataclass_fields__},
        **model.sizes(),
        "bytes": int(counts.sum()),
        "perplexity": float(np.exp(sums.sum() / counts.sum())),
        "low": float(low),
        "high": float(high),
        "losses": sums.tolist(),
        "counts": counts.tolist(),
        "skipped": int(sum(line.get("skipped", 0) for line in logged)),
        "loss_by_step": [(line["step"], line["loss"], line["gradient_norm"]) for line in logged],
        "ranks": rank_rows(model, ranked),
        "ranks_untrained": rank_rows(Twin(model.config, seed=config.seed), ranked),
        "ranks_by_step": [line for line in logged if "operating_erank2_0" in line],
    }
    if name in SWEPT:
        means = mean_operators(model, calibration, most=CALIBRATION)
        modes: tuple[LinearMode, ...] = ("mean", "zero") if name.startswith("sd") else ("mean", "taylor", "zero")
        row["linearised"] = linearise_sweep(model, few, means, modes=modes)
    return row


def everything(runs: Path) -> Row:
    """Measurements of all finished runs; one that stands in its folder is not made again."""
    data, rows = texts(), []
    for name in RUNS:
        if not (runs / name / MODEL).exists():
            continue
        kept = runs / name / "measured.json"
        if not kept.exists():
            write_json(kept, measured(name, runs, data))
        row = read_json(kept, "measurement")
        for cell in row.get("linearised", []):
            cell |= {key: None for key in ("perplexity", "ratio", "low", "high") if not np.isfinite(cell[key])}
        rows.append(row)
    return {
        "environment": environment(("midlens", "numpy", "torch")),
        "setting": SHARED,
        "allocated_at": ALLOCATED_AT,
        "runs": rows,
    }


def difference(a: Row, b: Row) -> str:
    """The ratio of two perplexities on the same documents, paired."""
    change, counts = np.array(a["losses"]) - np.array(b["losses"]), np.array(a["counts"])
    low, high = np.exp(bootstrap_ratio(change, counts))
    return f"{np.exp(change.sum() / counts.sum()):.3f} [{low:.3f}, {high:.3f}]"


def table(result: Row) -> Iterator[str]:
    """Markdown."""
    rows = {row["name"]: row for row in result["runs"]}
    yield (
        "| run | layer norm | parameters | of attention | perplexity per byte | ratio to standard, same seed "
        "| worst document, nats per byte | steps skipped |"
    )
    yield "|---" * 8 + "|"
    for name, row in rows.items():
        base = rows.get(f"standard_{row['training']['seed']}")
        ratio = "-" if base is None or base is row else difference(row, base)
        norm = row["training"]["norm"]
        norm = row["training"]["attention"] == "standard" if norm is None else norm
        yield (
            f"| {name} | {'yes' if norm else 'no'} | {row['parameters']:,} | {row['attention_parameters']:,} "
            f"| {row['perplexity']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {ratio} "
            f"| {max(np.array(row['losses']) / np.array(row['counts'])):.2f} | {row['skipped']} |"
        )
    yield from rank_table(rows)
    yield from linear_table(rows)


def rank_table(rows: dict[str, Row]) -> Iterator[str]:
    """Ranks by layer of the routing part."""
    yield ""
    yield "| routing rank by layer (erank2) | " + " | ".join(map(str, range(8))) + " |"
    yield "|---" * 9 + "|"
    for name, row in rows.items():
        for what, key in (("", "ranks"), (" untrained", "ranks_untrained")):
            for measure in ("operating_erank2", "content_erank2", "kernel_erank2"):
                values = " | ".join(f"{layer[measure]:.1f}" for layer in row[key])
                yield f"| {name}{what}, {measure.split('_')[0]} | {values} |"
        if name.startswith("allocated"):
            yield f"| {name}, head width | " + " | ".join(str(layer["head_width"]) for layer in row["ranks"]) + " |"


def linear_table(rows: dict[str, Row]) -> Iterator[str]:
    """Cost of linearising the first layers."""
    yield ""
    yield "| first layers linearised: perplexity ratio | " + " | ".join(map(str, range(1, 9))) + " |"
    yield "|---" * 9 + "|"
    for name, row in rows.items():
        found = row.get("linearised", [])
        for mode in dict.fromkeys(cell["mode"] for cell in found):
            cells = [in_words(cell) for cell in found if cell["mode"] == mode]
            yield f"| {name}, {mode} | " + " | ".join(cells) + " |"


def in_words(cell: Row) -> str:
    """A ratio and its bounds; JSON has no infinity."""
    if cell["high"] is None:
        return "overflows"
    return f"{cell['ratio']:.3g} [{cell['low']:.3g}, {cell['high']:.3g}]"


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "measure", "table"))
    parser.add_argument("names", nargs="*", help=", ".join(RUNS))
    parser.add_argument("--runs", type=Path, default=Path("runs/sd_twins"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    o = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if o.command == "train":
        for name in o.names or RUNS:
            print(train_twin(training(name, o.runs), o.runs / name, announce=print), flush=True)
        return
    if o.command == "measure":
        write_json(o.results, everything(o.runs))
    print("\n".join(table(read_json(o.results, "benchmark"))))


if __name__ == "__main__":
    main()
