"""Quality of SAEs on the same activations: `saes.train` against SAELens's own trainer.

    python benchmarks/sae_quality.py             extracts SmolLM2, layer 15: 200k tokens to train on, 30k held out
    python benchmarks/sae_quality.py --architectures jumprelu --seeds 0        in pieces: what is done is not repeated

Equal for both: the rows (massive ones left out), the number of steps, batch size, width and k, the evaluation (centred
explained variance in float64 over held-out rows, every SAE in the form it is used in: BatchTopK with its learnt
threshold). `sae_contestants.py` says how SAELens is configured and which of its settings are tried; its number is the
best of them. Where an architecture has no fixed number of active features, its explained variance is compared with ours
at the same L0, interpolated (linear in log L0) between our runs at several k. Prints a table (Markdown), writes JSON
after every run.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_contestants import ARCHITECTURES, Attempt, quietly, rival_attempts, rival_sae, rival_trainer
from torch import Tensor

from interp.bench.measure import environment
from interp.sites import Site
from interp.store import ActivationStore
from saes.recipe import TrainConfig
from saes.row_quality import measure_rows, row_norms
from saes.sae import SAE
from saes.splice import massive_threshold
from saes.train import fit

OURS, RIVAL = "midlens", "SAELens"


@dataclasses.dataclass(frozen=True)
class Result:
    """One trained SAE."""

    trainer: str
    architecture: str
    width: int
    k: int
    steps: int
    seed: int
    variant: str
    settings: dict[str, Any]
    explained_variance: float
    dead_fraction: float
    l0: float
    seconds: float
    cpu_seconds: float
    tokens_per_second: float

    @property
    def row(self) -> tuple[Any, ...]:
        """What it has in common with the runs under other seeds."""
        return self.architecture, self.width, self.k, self.steps, self.trainer, self.variant


def extracted(folder: Path, site: Site) -> tuple[ActivationStore, ActivationStore]:
    """SmolLM2 over the built-in corpus, once; float32 computation, so that rows do not depend on the machine."""
    from interp.corpus import read_corpus, split
    from interp.extract import extract
    from interp.model import HookedModel
    from interp.tokenfile import tokenize

    model = HookedModel.load("smollm2-135m", upto=site, dtype="float32")
    stores = []
    for name, corpus, most in zip(("train", "held_out"), split(read_corpus("builtin")), (200_000, 30_000), strict=True):
        tokens = tokenize(corpus, model.tokenizer, folder / "tokens" / name, max_tokens=most)
        stores.append(extract(model, tokens, [site], folder / "store" / name, max_length=256))
    return stores[0], stores[1]


def usual_rows(store: ActivationStore, site: Site, size: int, *, seed: int, threshold: float) -> Iterator[Tensor]:
    """Endless batches of exactly `size` rows, epoch after epoch, without massive rows."""
    held, epoch = torch.empty(0), 0
    while True:
        for batch in store.batches([site], size, seed=seed, epoch=epoch):
            x = batch.acts[site].flatten(1).float()
            held = torch.cat([held.reshape(-1, x.shape[1]), x[x.norm(dim=1) <= threshold]])
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
        epoch += 1


def by_rival(
    store: ActivationStore, site: Site, config: TrainConfig, attempt: Attempt, *, threshold: float, folder: Path
) -> SAE:
    """SAELens's trainer on the same rows; its SAE, loaded from what it saves for inference."""
    torch.manual_seed(config.seed)
    rows = usual_rows(store, site, config.batch_size, seed=config.seed, threshold=threshold)
    d, steps = next(rows).shape[1], config.steps(len(store))
    sae = rival_sae(config, d, **attempt.settings(steps))
    dead_window = attempt.dead_window(steps)
    options = {"steps": steps, "batch_size": config.batch_size, "dead_window": dead_window}
    trained = rival_trainer(sae, rows, lr=attempt.lr(config, steps, d), **options).fit()
    rows.close()  # type: ignore[attr-defined]
    trained.save_inference_model(str(folder))
    return SAE.load(folder)


class Comparison:
    """The stores, and the results so far in a file."""

    def __init__(self, train: ActivationStore, held_out: ActivationStore, site: Site, out: Path) -> None:
        self.train, self.held_out, self.site, self.out = train, held_out, site, out
        self.threshold = massive_threshold(row_norms(train, site))
        known = json.loads(out.read_text())["results"] if out.exists() else []
        self.results = [Result(**one) for one in known]

    def run(self, config: TrainConfig, attempt: Attempt | None) -> None:
        """Train and measure one SAE (ours without an `attempt`), unless that is done."""
        d, steps = math.prod(self.train.manifest["row_shapes"][str(self.site)]), config.steps(len(self.train))
        width = config.width(d)
        filled = dataclasses.asdict(config.filled(config.shape(d)))
        settings = filled if attempt is None else attempt.describe(config, steps, d)
        settings = json.loads(json.dumps(settings))
        trainer, variant = (OURS, "defaults") if attempt is None else (RIVAL, attempt.name)
        key = (trainer, config.architecture, width, config.k, steps, config.seed, variant)
        old = [r for r in self.results if (*dataclasses.astuple(r)[:7],) == key]
        if old and old[0].settings == settings:
            return
        with tempfile.TemporaryDirectory() as scratch:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            if attempt is None:
                sae = fit(self.train, config, Path(scratch), site=self.site)
            else:
                fixed = {"threshold": self.threshold, "folder": Path(scratch)}
                sae = by_rival(self.train, self.site, config, attempt, **fixed)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
            quality = measure_rows(sae, self.held_out, self.site, threshold=self.threshold, force=True)
        figures = (
            quality.kept.explained_variance,
            float((quality.firing.fires == 0).double().mean()),
            int(quality.firing.fires.sum()) / quality.kept.n_tokens,
        )
        speed = steps * config.batch_size / seconds
        self.results = [r for r in self.results if r not in old]
        self.results.append(Result(*key, settings, *figures, seconds, cpu, speed))
        self.save()
        ev, dead, l0 = figures
        print(f"{' '.join(map(str, key))}: EV {ev:.4f}, L0 {l0:.1f}, dead {dead:.1%}, {cpu:.0f} s", flush=True)

    def save(self) -> None:
        """Everything so far, with the facts about this run."""
        facts = {
            "site": str(self.site),
            "model": self.train.specs[0].model,
            "rows": {"train": len(self.train), "held_out": len(self.held_out)},
            "environment": environment(("torch", "sae-lens")),
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        held = [dataclasses.asdict(result) for result in self.results]
        self.out.write_text(json.dumps({**facts, "results": held}, indent=1) + "\n")


def at_l0(points: list[tuple[float, float]], l0: float) -> float:
    """Explained variance at `l0`, linear in log L0 between (L0, EV) points; NaN outside them."""
    points = sorted(points)
    for (a, ev_a), (b, ev_b) in itertools.pairwise(points):
        if a <= l0 <= b and a < b:
            part = (math.log(l0) - math.log(a)) / (math.log(b) - math.log(a))
            return ev_a + part * (ev_b - ev_a)
    return points[0][1] if len(points) == 1 and math.isclose(points[0][0], l0, rel_tol=0.005) else math.nan


def ahead(results: list[Result], rival: list[Result]) -> list[float]:
    """Our explained variance less the rival's at its L0, under each of its seeds that we ran."""
    gains = []
    for theirs in rival:
        same = ("architecture", "width", "steps", "seed")
        points = [
            (r.l0, r.explained_variance)
            for r in results
            if r.trainer == OURS and all(getattr(r, name) == getattr(theirs, name) for name in same)
        ]
        exact = [p for p in points if math.isclose(p[0], theirs.l0, rel_tol=0.005)]
        gain = at_l0(exact[:1] or points, theirs.l0) - theirs.explained_variance if points else math.nan
        gains += [] if math.isnan(gain) else [gain]
    return gains


def mean_spread(values: list[float], form: str) -> str:
    """Mean, and the standard deviation over seeds."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def table(results: list[Result]) -> str:
    """Mean and spread over seeds, one line per trainer and variant."""
    lines = [
        "| architecture | width | k | steps | trainer | seeds | L0 | explained variance | ours less it, same L0 "
        "| dead | CPU s |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = sorted({r.row for r in results}, key=lambda row: (ARCHITECTURES.index(row[0]), *row[1:4], row[4] != OURS))
    for row in rows:
        chosen = [r for r in results if r.row == row]
        architecture, width, k, steps, trainer, variant = row
        l0, ev, dead, cpu = (
            [getattr(r, name) for r in chosen] for name in ("l0", "explained_variance", "dead_fraction", "cpu_seconds")
        )
        gain = mean_spread(ahead(results, chosen), "+.4f") if trainer == RIVAL else ""
        name = trainer if trainer == OURS else f"{trainer}, {variant}"
        lines.append(
            f"| {architecture} | {width:,} | {k} | {steps} | {name} | {len(chosen)} | {mean_spread(l0, '.1f')} | "
            f"{mean_spread(ev, '.4f')} | {gain} | {statistics.mean(dead):.1%} | {mean_spread(cpu, '.0f')} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="store to train on")
    parser.add_argument("--held-out", type=Path, help="store to evaluate on, of other documents")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--folder", type=Path, default=Path("runs/sae_quality"), help="where to extract by default")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--widths", type=int, nargs="+", default=[4608])
    parser.add_argument("--k", type=int, default=TrainConfig.k)
    parser.add_argument("--own-k", type=int, nargs="*", default=[24, 44], help="k of further runs of ours")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attempts", nargs="*", help="names of the rival's configurations; by default all")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_quality.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    quietly()
    site, folder = Site.parse(options.site), options.folder / "store"
    if options.train and options.held_out:
        stores = ActivationStore.open(options.train), ActivationStore.open(options.held_out)
    elif (folder / "train").exists() and (folder / "held_out").exists():
        stores = ActivationStore.open(folder / "train"), ActivationStore.open(folder / "held_out")
    else:
        stores = extracted(options.folder, site)
    comparison = Comparison(*stores, site, options.out)
    for seed in options.seeds if not options.table else ():
        for width in options.widths:
            for architecture in options.architectures:
                config = TrainConfig(
                    architecture=architecture, d_sae=width, k=options.k, epochs=options.epochs, seed=seed
                )
                for k in (options.k, *(() if architecture == "topk" else options.own_k)):
                    comparison.run(dataclasses.replace(config, k=k), None)
                for attempt in rival_attempts(architecture, options.k):
                    if options.attempts is None or attempt.name in options.attempts:
                        comparison.run(config, attempt)
    print(table(comparison.results))


if __name__ == "__main__":
    main()
