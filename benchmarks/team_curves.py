"""Loss curves of SAEs trained by several processes, against one process's.

    python benchmarks/team_curves.py                               # SmolLM2 layer 15, 50k tokens, 4 architectures
    python benchmarks/team_curves.py --tokens 4000 --steps 20 --architectures topk --out /tmp/try.json

Extracts a store from the built-in corpus, then trains each architecture by `midlens train`: alone, and under torchrun
by each number of processes, dividing the tokens (`data`) and the features (`dictionary`). Arithmetic is float32, so
sums in another order differ in the last bits, and where a last bit decides which of two features is active, all that
follows differs. The largest relative difference of the loss at any logged step therefore stands beside that of two runs
of one process: with another number of threads, and from weights that are off by one part in ten million. Prints a table
(Markdown), writes JSON with all curves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from interp.bench.measure import environment
from interp.jsonlines import json_objects
from interp.store import ActivationStore
from saes import beginning
from saes.recipe import TrainConfig
from saes.sae import SAE
from saes.train import fit

HERE = Path(__file__).resolve().parent
DEFAULT = HERE / "results" / "team_curves.json"
SITE = "resid_post.15"
START = beginning.start


def midlens(*words: str, processes: int = 1, threads: int = 1) -> None:
    """One command, under torchrun if there are several processes."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    own = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE.parent / "kernels"))),
    }
    subprocess.run([sys.executable, *many, "-m", "midlens", *words], env={**os.environ, **own}, check=True)


def curve(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, step by step."""
    return [line for _, line in json_objects(folder / "training" / "metrics.jsonl", "metrics")]


def differs(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest relative difference of the loss at any step."""
    assert [line["step"] for line in one] == [line["step"] for line in other]
    return max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, other, strict=True))


def decoders_differ(one: Path, other: Path) -> float:
    """||W - W'|| / ||W|| of the decoders."""
    a, b = (SAE.load(folder).W_dec.detach() for folder in (one, other))
    return float((a - b).norm() / a.norm())


def nudged_start(*shape: Any, **options: Any) -> SAE:
    """Where a run starts, every weight off by about one part in ten million."""
    sae, noise = START(*shape, **options), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter *= 1 + 1e-7 * torch.randn(parameter.shape, generator=noise)
    return sae


def ways(processes: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """Names of the runs of an architecture, the reference first, and how each is started."""
    alone = [("alone", {}), ("alone, two threads", {"threads": 2}), ("alone, start nudged", {"nudged": True})]
    many = [
        (f"{n} processes, {parallel}", {"processes": n, "parallel": parallel})
        for n in processes
        for parallel in ("data", "dictionary")
    ]
    return alone + many


def train(store: Path, architecture: str, options: argparse.Namespace, folder: Path, how: dict[str, Any]) -> None:
    """One run."""
    recipe = {
        "architecture": architecture, "d_sae": options.width, "k": 32, "batch_size": options.batch,
        "tokens": options.batch * options.steps, "log_every": max(1, options.steps // 40),
    }  # fmt: skip
    if "nudged" in how:
        with mock.patch.object(beginning, "start", nudged_start):
            fit(ActivationStore.open(store), TrainConfig(**recipe), folder, site=SITE)
        return
    divided = ["--parallel", how["parallel"]] if "parallel" in how else []
    words = [word for name, value in recipe.items() for word in ("--" + name.replace("_", "-"), str(value))]
    many = {name: how[name] for name in ("processes", "threads") if name in how}
    midlens("train", "--store", str(store), "--out", str(folder), *words, *divided, **many)


def measured(store: Path, architecture: str, options: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    """All runs of one architecture."""
    rows: list[dict[str, Any]] = []
    reference = home / f"{architecture}-alone"
    for name, how in ways(options.processes):
        folder = home / f"{architecture}-{name}".replace(" ", "-").replace(",", "")
        train(store, architecture, options, folder, how)
        found = curve(folder)
        row = {"architecture": architecture, "run": name, "steps": options.steps, "l0": found[-1]["l0"]}
        if folder != reference:
            row |= {
                "loss_differs": differs(curve(reference), found),
                "decoder_differs": decoders_differ(reference, folder),
            }
        rows.append({**row, "loss": [line["loss"] for line in found]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| architecture | run | loss at the end | L0 | loss differs by | decoder by |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        most = [f"{row[name]:.1e}" if name in row else "" for name in ("loss_differs", "decoder_differs")]
        lines.append(
            f"| {row['architecture']} | {row['run']} | {row['loss'][-1]:.6f} | {row['l0']:.2f} | {' | '.join(most)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu"])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--tokens", type=int, default=50_000, help="in the store")
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--table", action="store_true", help="print the table of the file and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        print(table(json.loads(options.out.read_text())["rows"]))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        store = Path(home) / "store"
        text = ["--model", "smollm2-135m", "--sites", SITE, "--max-tokens", str(options.tokens)]
        midlens("extract", *text, "--out", str(store), threads=2)
        for architecture in options.architectures:
            rows += measured(store, architecture, options, Path(home))
            options.out.write_text(json.dumps({"environment": environment(["torch"]), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
