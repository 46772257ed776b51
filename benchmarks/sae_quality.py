"""Quality of TopK SAEs on the same activations: `saes.train` against SAELens's own trainer.

    python benchmarks/sae_quality.py             extracts SmolLM2, layer 15: 200k tokens to train on, 30k held out
    python benchmarks/sae_quality.py --train STORE --held-out STORE --site resid_post.15

Equal for both: the rows (massive ones left out), the number of steps, batch size, width and k, the evaluation
(centred explained variance in float64 over held-out rows). SAELens runs as its documentation configures TopK:
`TopKTrainingSAEConfig` with its defaults (AuxK coefficient 1, decoder norm free and inside the selection,
decoder_init_norm 0.1), inputs scaled (`expected_average_only_in`), Adam, no warm-up, linear decay over the last
fifth; learning rates: its trainer's default 3e-4 (others with --rival-rates) and ours. Its number is the best of them.
Prints a table, writes JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import environment
from torch import Tensor

from interp.sites import Site
from interp.store import ActivationStore
from saes.evaluate import measure_rows
from saes.recipe import TrainConfig
from saes.sae import SAE
from saes.train import fit

RIVAL_RATES = (3e-4,)


@dataclass(frozen=True)
class Result:
    """One trained SAE."""

    trainer: str
    lr: float
    seed: int
    explained_variance: float
    dead_fraction: float
    l0: float
    seconds: float
    tokens_per_second: float


def extracted(folder: Path, site: Site) -> tuple[ActivationStore, ActivationStore]:
    """SmolLM2 over the built-in corpus, once."""
    from interp.corpus import read_corpus, split
    from interp.extract import extract
    from interp.model import HookedModel
    from interp.tokenfile import tokenize

    model = HookedModel.load("smollm2-135m", upto=site)
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


def rival(
    store: ActivationStore, site: Site, config: TrainConfig, *, lr: float, threshold: float, folder: Path
) -> tuple[SAE, float]:
    """SAELens's trainer on the same rows; its SAE, loaded from what it saves, and the seconds its training took."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(config.seed)
    rows = usual_rows(store, site, config.batch_size, seed=config.seed, threshold=threshold)
    d, steps = next(rows).shape[1], config.steps(len(store))
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d, d_sae=config.width(d), k=config.k, normalize_activations="expected_average_only_in"
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * config.batch_size,
            train_batch_size_samples=config.batch_size,
            lr=lr,
            lr_end=lr / 10,  # what its runner fills in; only its cosine schedules read it
            lr_decay_steps=steps // 5,
            n_batches_for_norm_estimate=32,
        ),
        sae,
        rows,
    )
    begun = time.perf_counter()
    trained = trainer.fit()
    seconds = time.perf_counter() - begun
    trained.save_inference_model(str(folder))
    return SAE.load(folder), seconds


def ours(store: ActivationStore, site: Site, config: TrainConfig, *, folder: Path) -> tuple[SAE, float]:
    """This project's trainer, everything written to disk that it always writes."""
    begun = time.perf_counter()
    sae = fit(store, config, folder, site=site)
    return sae, time.perf_counter() - begun


def compare(
    train: ActivationStore, held_out: ActivationStore, site: Site, config: TrainConfig, *, rival_rates: list[float]
) -> list[Result]:
    """All trainers and learning rates under one seed."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sae, seconds = ours(train, site, config, folder=folder / "ours")
        threshold = sae.config.metadata["massive_norm_threshold"]
        width = config.width(sae.config.d_in)
        own_rate = config.rate(config.steps(len(train)) // 2, config.steps(len(train)), width)
        runs = [("midlens", own_rate, sae, seconds)]
        for lr in (*rival_rates, own_rate):
            runs.append(
                ("SAELens", lr, *rival(train, site, config, lr=lr, threshold=threshold, folder=folder / f"{lr}"))
            )
        tokens = config.steps(len(train)) * config.batch_size
        for trainer, lr, trained, seconds in runs:
            quality = measure_rows(trained, held_out, site, threshold=threshold)
            results.append(
                Result(
                    trainer,
                    lr,
                    config.seed,
                    quality.kept.explained_variance,
                    float((quality.firing.fires == 0).double().mean()),
                    int(quality.firing.fires.sum()) / quality.kept.n_tokens,
                    seconds,
                    tokens / seconds,
                )
            )
            print(json.dumps(asdict(results[-1])), flush=True)
    return results


def table(results: list[Result]) -> str:
    """Mean and spread over seeds, one line per trainer and learning rate."""
    lines = [f"{'trainer':10} {'lr':>9} {'explained variance':>20} {'dead':>8} {'L0':>6} {'tokens/s':>10}"]
    for trainer, lr in dict.fromkeys((r.trainer, r.lr) for r in results):
        chosen = [r for r in results if (r.trainer, r.lr) == (trainer, lr)]
        ev = [r.explained_variance for r in chosen]
        spread = f"± {statistics.stdev(ev):.4f}" if len(ev) > 1 else ""
        dead, l0, speed = (
            statistics.mean(getattr(r, n) for r in chosen) for n in ("dead_fraction", "l0", "tokens_per_second")
        )
        lines.append(
            f"{trainer:10} {lr:9.2e} {f'{statistics.mean(ev):.4f} {spread}':>20} {dead:8.2%} {l0:6.1f} {speed:10,.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="store to train on")
    parser.add_argument("--held-out", type=Path, help="store to evaluate on, of other documents")
    parser.add_argument("--site", default="blocks.15.hook_resid_post")
    parser.add_argument("--folder", type=Path, default=Path("runs/sae_quality"), help="where to extract by default")
    parser.add_argument("--width", type=int, help="features; by default 8 times the width of the activations")
    parser.add_argument("--k", type=int, default=TrainConfig.k)
    parser.add_argument("--epochs", type=float, default=TrainConfig.epochs)
    parser.add_argument("--rival-rates", type=float, nargs="*", default=list(RIVAL_RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sae_quality.json")
    options = parser.parse_args()
    site = Site.parse(options.site)
    if options.train and options.held_out:
        stores = ActivationStore.open(options.train), ActivationStore.open(options.held_out)
    else:
        stores = extracted(options.folder, site)
    results = []
    for seed in options.seeds:
        config = TrainConfig(d_sae=options.width, k=options.k, epochs=options.epochs, seed=seed)
        results += compare(*stores, site, config, rival_rates=options.rival_rates)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "site": str(site),
        "model": stores[0].specs[0].model,
        "rows": {"train": len(stores[0]), "held_out": len(stores[1])},
        "recipe": {name: value for name, value in asdict(config).items() if name != "seed"},
        "steps": config.steps(len(stores[0])),
        "environment": environment(("torch", "sae-lens")),
    }
    options.out.write_text(json.dumps({**facts, "results": [asdict(result) for result in results]}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
