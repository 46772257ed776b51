"""Training tokens per second: the step of `saes.optimise` against that of SAELens's trainer.

    python benchmarks/sae_speed.py                   all architectures at three tasks, five rounds: some ten minutes
    python benchmarks/sae_speed.py --quick           one task, two rounds

Both take the same batches, from memory. In each round every contestant runs some steps, the order changing from round
to round; ratios are taken within a round. What a run does beside its steps is in: renewing the list of dead features
(ours), the schedules (both). JumpReLU's cost depends on how many features fire, in ours: thresholds start at the
quantiles that let k features fire, for both, and the learning rate is so small that this stays; "jumprelu, dense start"
is ours with nearly half of the features active throughout, where it computes with matrices, against the same steps of
SAELens (whose cost is always the same). Runs with penalty `step` or `tanh` begin there; those that aim at k begin with
2 k active ones. Prints a table (Markdown), writes JSON; seconds are wall-clock, and processor seconds are reported
beside them, which other programs disturb less.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from sae_contestants import ARCHITECTURES, Ours, Rival, quietly
from torch import Tensor

from interp.bench.measure import environment, spread
from interp.sites import Site
from interp.store import ActivationStore
from saes.recipe import TrainConfig

DENSE = "jumprelu, dense start"
TASKS = ("4608x1024", "4608x4096", "16384x1024")


@dataclasses.dataclass
class Cell:
    """One contestant at one task: seconds and processor seconds of each round, per step."""

    architecture: str
    width: int
    batch: int
    trainer: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    l0: float = float("nan")

    def rate(self, *, cpu: bool = False) -> float:
        """Tokens per second, in the median round."""
        return self.batch / statistics.median(self.cpu_seconds if cpu else self.seconds)


def rows_in_memory(store: ActivationStore, site: Site, size: int) -> Tensor:
    """The first `size` rows of the shuffled order, massive ones replaced by their neighbours."""
    batches = store.batches([site], size, seed=0)
    x = next(batches).acts[site].flatten(1).float()
    batches.close()  # type: ignore[attr-defined]
    norms = x.norm(dim=1)
    usual = norms <= 10 * norms.median()
    return x[usual].repeat(2, 1)[: len(x)]


def contest(
    x: Tensor, architecture: str, *, width: int, batch: int, k: int, rounds: int, least: float, warm: int
) -> list[Cell]:
    """Both trainers in turns; each turn lasts `least` seconds or one step."""
    dense, name = architecture == DENSE, architecture.partition(",")[0]
    calm = {"lr": 1e-7} if name == "jumprelu" else {}
    config = TrainConfig(architecture=name, d_sae=width, k=k, batch_size=batch, **calm)  # type: ignore[arg-type]
    sample, batches = x[:16_384], x.split(batch)
    runners = [Ours(config, sample, steps=400, dense=dense), Rival(config, sample, steps=400)]
    cells = [Cell(architecture, width, batch, runner.name) for runner in runners]
    turns, place = [], 0
    for runner in runners:
        begun = time.perf_counter()
        for number in range(warm):
            runner.step(batches[number % len(batches)])
        turns.append(max(1, round(least * warm / (time.perf_counter() - begun))))
    for number in range(rounds):
        for who in (0, 1) if number % 2 else (1, 0):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            for _ in range(turns[who]):
                runners[who].step(batches[place % len(batches)])
                place += 1
            cells[who].seconds.append((time.perf_counter() - begun) / turns[who])
            cells[who].cpu_seconds.append((time.process_time() - begun_cpu) / turns[who])
    for cell, runner in zip(cells, runners, strict=True):
        cell.l0 = runner.active()
    return cells


def ratios(ours: Cell, rival: Cell, *, cpu: bool = False) -> dict[str, float]:
    """How many times faster ours is, round by round."""
    a, b = (ours.cpu_seconds, rival.cpu_seconds) if cpu else (ours.seconds, rival.seconds)
    return spread([theirs / mine for mine, theirs in zip(a, b, strict=True)])


def table(pairs: list[list[Cell]]) -> str:
    """One line per task."""
    lines = [
        "| architecture | width | batch | midlens, tokens/s | SAELens, tokens/s | ratio (range) | of processor time "
        "| L0 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for ours, rival in pairs:
        wall, cpu = ratios(ours, rival), ratios(ours, rival, cpu=True)
        lines.append(
            f"| {ours.architecture} | {ours.width:,} | {ours.batch:,} | {ours.rate():,.0f} | {rival.rate():,.0f} | "
            f"{wall['median']:.1f} ({wall['min']:.1f} to {wall['max']:.1f}) | {cpu['median']:.1f} | "
            f"{ours.l0:.0f}, {rival.l0:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/sae_quality/store/train"), help="from sae_quality.py")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--architectures", nargs="+", default=[*ARCHITECTURES, DENSE])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="WIDTHxBATCH")
    parser.add_argument("--k", type=int, default=TrainConfig.k)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=1.0, help="seconds a turn lasts at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the first task, two rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_speed.json")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.rounds = options.tasks[:1], 2
    torch.set_num_threads(options.threads)
    quietly()
    x = rows_in_memory(ActivationStore.open(options.store), Site.parse(options.site), 32_768)
    pairs = []
    for task in options.tasks:
        width, batch = map(int, task.split("x"))
        for architecture in options.architectures:
            scale = {"k": options.k, "rounds": options.rounds, "least": options.least, "warm": 2}
            pairs.append(contest(x, architecture, width=width, batch=batch, **scale))
            print(table(pairs[-1:]).splitlines()[-1], flush=True)
    facts = {"environment": environment(("torch", "sae-lens")), "site": options.site, "k": options.k}
    rows = [
        {**dataclasses.asdict(cell), "tokens_per_second": cell.rate(), "per_processor_second": cell.rate(cpu=True)}
        for pair in pairs
        for cell in pair
    ]
    faster = [
        {"architecture": a.architecture, "width": a.width, "batch": a.batch, "wall": ratios(a, b)}
        | {"cpu": ratios(a, b, cpu=True)}
        for a, b in pairs
    ]
    options.out.write_text(json.dumps({**facts, "ratios": faster, "rows": rows}, indent=1) + "\n")
    print(f"\n{options.threads} thread(s), k {options.k}\n\n{table(pairs)}")


if __name__ == "__main__":
    main()
