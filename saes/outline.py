"""What runs over SAEs would do, before they do it: steps, memory by `saes.memory`, time from a stated basis.

    training_outline(recipe, d_in, rows, ...)     steps = epochs * rows / batch; seconds = 2 * steps * FLOP / rate

FLOP of a step of the topk family: 2 n d f + 8 n k d (`saes.bench`), of one that treats all features as active:
12 n d f; rate: products of that shape, measured here for a moment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from interp.bench.ceilings import matmul_rate
from interp.bench.flops import Product
from interp.errors import InputError
from interp.from_text import ExtractConfig
from interp.loading import parse_device
from interp.outline import Sketch, extraction_outline, folder_state, size
from interp.presets import default_site
from interp.sites import Site
from interp.store import ActivationStore
from saes.bench_run import BenchConfig
from saes.discover import SIDES, DiscoverConfig
from saes.memory import memory_of
from saes.recipe import PENALISED, TrainConfig
from saes.sweep import estimate, stream_key
from saes.sweep_config import Members, named
from saes.widths import Shape

BASIS = "at half the rate of products of this shape, measured here for a moment"


def training_outline(
    recipe: TrainConfig, shape: Shape, rows: int, out: Path, *, device: str | None = None
) -> dict[str, object]:
    """Of one SAE over `rows` rows."""
    recipe = replace(recipe, batch_size=min(recipe.batch_size, rows))
    sae = shape.of(recipe)
    steps = recipe.steps(rows)
    seconds = steps * _step_seconds(recipe, sae.d_in, sae.d_sae, device)
    parameters = sae.d_in * sae.d_sae + sae.d_sae * sae.width_out
    return {
        "sae": f"{recipe.architecture}, {sae.d_in:,} to {sae.d_sae:,} features, k {recipe.k}",
        "rows": rows,
        "steps": f"{steps:,} of {recipe.batch_size:,} rows ({steps * recipe.batch_size / rows:.3g} epochs)",
        "memory": memory_of(recipe, sae).text(),
        "disk": f"{size(4 * parameters)} of weights, {size(12 * parameters)} for a checkpoint",
        "state": folder_state(out, "cfg.json", "training"),
        "seconds": round(seconds, 1),
        "basis": BASIS,
    }


def _step_seconds(recipe: TrainConfig, d: int, f: int, device: str | None) -> float:
    n = recipe.batch_size
    dense = recipe.architecture in PENALISED
    flops = 12 * n * d * f if dense else 2 * n * d * f + 8 * n * recipe.k * d
    rate = matmul_rate([Product("encoder", d, f)], min(n, 256), torch.float32, parse_device(device), 0.02)
    return 2.0 * flops / rate


class OutlinedRows(NamedTuple):
    """Rows to come: their widths, how many, and what makes them."""

    shape: Shape
    rows: int
    plan: dict[str, object]


def rows_outline(
    store: Path | None, sites: Sequence[str], site_out: str | None, text: Callable[[], ExtractConfig], out: Path
) -> OutlinedRows:
    """Of a store, or of a stream from the model of `text()`."""
    if store is not None:
        held = ActivationStore.open(store)
        there = list(map(str, held.sites))
        named = [str(site) for site in Site.parse_all(sites)] or there
        written = None if site_out is None else str(Site.parse(site_out))
        shape = Shape.stated(held.manifest, named, written)
        if shape is None:
            absent = {*named, *([] if written is None else [written])} - set(there)
            raise InputError(f"{store} holds {', '.join(there)}, not {', '.join(sorted(absent))}")
        if not sites and len(there) > 1:
            raise InputError(f"{store} holds {', '.join(there)}; say which with --site")
        return OutlinedRows(shape, len(held), {"store": str(store)})
    config = text()
    sketch = Sketch.of(str(config.model), dtype=config.dtype, device=config.device)
    shape = stream_shape(sketch, config.sites, site_out)
    read = (*config.sites, *([] if site_out is None else [site_out]))
    config = replace(config, sites=read, tokens=out.with_name(out.name + ".tokens"))
    plan = extraction_outline(config, out.with_name(out.name + ".stream"), sketch=sketch)
    told = ("model", "sites", "tokens", "batches", "seconds")
    return OutlinedRows(shape, int(str(plan["rows"])), {f"stream {name}": plan[name] for name in told})


def stream_shape(sketch: Sketch, sites: Sequence[str], site_out: str | None) -> Shape:
    """Widths of the rows at these sites of a model."""
    wanted = [Site.parse(site) for site in (*sites, *([site_out] if site_out else []))]
    found = sketch.capture(torch.zeros(1, 1, dtype=torch.long), wanted)
    widths = [found[site].shape[2:].numel() for site in wanted]
    return Shape(tuple(widths[: len(sites)]), widths[-1] if site_out else None)


def discover_outline(config: DiscoverConfig) -> dict[str, object]:
    """Of `saes.discover.discover`: both extractions and the training."""
    sketch = Sketch.of(config.model, dtype=config.dtype)
    site = config.site or str(default_site(sketch.preset, sketch.cfg.n_layers))
    plan: dict[str, object] = {}
    for side, count in zip(SIDES, (config.train_tokens, config.held_out_tokens), strict=True):
        text = ExtractConfig(
            model=config.model,
            sites=(site,),
            corpus=config.corpus,
            split="train" if side == "train" else "held-out",
            max_tokens=count,
            max_length=config.max_length,
            dtype=config.dtype,
            seed=config.seed,
            tokens=config.out / "tokens" / side,
        )
        plan[f"extract {side}"] = extraction_outline(text, config.out / "store" / side, sketch=sketch)
    train = plan["extract train"]
    assert isinstance(train, dict)
    shape = stream_shape(sketch, (site,), None)
    plan["train"] = training_outline(config.recipe(), shape, int(train["rows"]), config.out / "sae")
    plan["evaluate"] = f"{config.loss_tokens:,} held-out tokens, run clean, spliced and zero-ablated"
    plan["state"] = folder_state(config.out, "config.json", "evaluation.json", "features.jsonl", "report.html")
    return plan


def sweep_outline(members: Members, shape: Shape, rows: int, out: Path, *, device: str | None) -> dict[str, object]:
    """Of `saes.sweep.sweep`."""
    configs = named(members)
    there = [name for name in configs if (out / name / "cfg.json").exists()]
    seconds = 0.0
    for name, config in configs.items():
        sae = shape.of(config)
        if name not in there:
            seconds += config.steps(rows) * _step_seconds(config, sae.d_in, sae.d_sae, device)
    streams: dict[tuple[int, int], list[TrainConfig]] = {}
    for config in configs.values():
        streams.setdefault(stream_key(config, rows), []).append(config)
    return {
        "members": ", ".join(configs),
        "rows": rows,
        "memory": "; then ".join(estimate(own, shape, batch) for (_, batch), own in streams.items()),
        "there": ", ".join(there) or "none of them",
        "seconds": round(seconds, 1),
        "basis": BASIS,
    }


def evaluation_outline(
    sae: str, store: Path, model: str | None, loss_tokens: int, parts: Sequence[str], out: Path | None
) -> Mapping[str, object]:
    """Of `saes.evaluate.evaluate`: the store is opened, neither the SAE's nor the model's weights are."""
    held = ActivationStore.open(store)
    name = model or held.specs[0].model or "?"
    sketch = Sketch.of(name)
    spent = sketch.seconds(Site.parse(f"resid_post.{sketch.cfg.n_layers - 1}"), [256] * max(1, 3 * loss_tokens // 256))
    return {
        "sae": sae,
        "rows": len(held),
        "model": sketch.described(),
        "loss": f"3 runs of the whole model over {loss_tokens:,} tokens",
        "parts": ", ".join(parts) or "none besides",
        "out": "printed only" if out is None else f"{out}{' is there and is replaced' if out.exists() else ''}",
        "memory": f"about {size(sketch.weight_bytes())} for the model",
        "seconds": round(spent, 1),
        "basis": "the runs of the model, at half the rate of its matrix products, measured here for a moment",
    }


def bench_outline(config: BenchConfig, out: Path | None) -> Mapping[str, object]:
    """Of `midlens bench`: what is measured, and the least that it takes."""
    effort = config.effort
    least = effort.repeats * effort.seconds * 10
    extractions = len(config.lengths) if "extraction" in config.parts else 0
    return {
        "subject": config.model or config.shape or "smollm2-135m (the default shape, random weights)",
        "device": str(parse_device(config.device)),
        "ceilings": f"{effort.repeats} rounds; writes {size(effort.disk_bytes)} below {config.folder} and deletes it",
        "extraction": f"{extractions} mixes of lengths, {config.repeats} rounds each" if extractions else "not run",
        "sae": f"{config.architecture}, batches of {config.batch:,}" if "sae" in config.parts else "not run",
        "out": "printed only" if out is None else f"lines are added to {out}",
        "seconds": round(least + extractions * config.repeats * (0 if config.quick else 20), 1),
        "basis": "the least time each measurement is given, and extractions of ten seconds at the ceiling run at half",
    }
