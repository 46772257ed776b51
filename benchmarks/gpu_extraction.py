"""Part "extraction" of `gpu.py`: tokens per second of Llama 3.1 8B and Gemma 2 9B, and what sinks cost them.

    no sink     every batch captured, nothing brought to the host: what the forward passes alone can do
    to memory   rows selected, brought to pinned memory, dropped there
    to disk     a whole extraction: shards, checksums, fsync, manifest

Random weights of the real sizes (`interp.bench.shapes`), sequence 1,024, bfloat16, budgets of 8k, 16k and 32k tokens a
batch, and with blocks compiled (`interp.compiled`). `ratio` is to "no sink", so 0.97 is a loss of three per cent. The
share of the ceiling refers to the model's own products, measured in the same rounds.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_frame import Bench, Item
from interp.bench import shapes
from interp.bench.ceilings import Effort, measure_ceilings
from interp.bench.extraction import Task, suited_tokens, time_extraction
from interp.bench.flops import sequence_flops
from interp.compiled import compile_blocks
from interp.extract import prepare
from interp.model import HookedModel
from interp.pipeline import assemble
from interp.tokenfile import TokenFile

NO_SINK = "no sink"
SECONDS = 4.0  # of one run, at the ceiling


def run(bench: Bench) -> None:
    """The ceilings and the 16k budget of both models first."""
    bench.run(items(bench, Subjects(bench)))


def items(bench: Bench, subjects: "Subjects") -> Iterator[Item]:
    """Ceilings, extraction by budget, with compiled blocks, the hottest kernels."""
    first, *budgets = (32, 16, 64) if bench.small else (16_384, 32_768, 8192)
    for name in subjects.names:
        yield _item(bench, subjects, name, "ceilings", partial(ceilings, bench, subjects, name, first))
        yield _item(bench, subjects, name, f"budget {first}", partial(extraction, bench, subjects, name, first))
    for name in subjects.names:
        call = partial(extraction, bench, subjects, name, first, compiled=True)
        yield _item(bench, subjects, name, f"compiled, budget {first}", call)
    for name in subjects.names:
        yield _item(bench, subjects, name, "profile", partial(profile, bench, subjects, name, first))
        for budget in budgets:
            yield _item(bench, subjects, name, f"budget {budget}", partial(extraction, bench, subjects, name, budget))


def _item(bench: Bench, subjects: "Subjects", name: str, variant: str, call: Any) -> Item:
    site = shapes.default_site(name)
    return Item(name, f"{site}, sequence {subjects.length}", subjects.dtype, variant, call)


class Subjects:
    """Models and their tokens, made when first asked for."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.names = ("tiny-llama", "tiny-gemma2") if bench.small else ("llama-3.1-8b", "gemma-2-9b")
        self.length = 16 if bench.small else 1024
        self.dtype = "float32" if bench.small else "bfloat16"
        self._models: dict[tuple[str, bool], HookedModel] = {}
        self._tokens: dict[str, TokenFile] = {}
        self.rates: dict[str, float] = {}

    def model(self, name: str, *, compiled: bool = False) -> HookedModel:
        """Up to its site; compiled block by block (on a machine without a GPU only traced), or not."""
        if (name, compiled) not in self._models:
            where = {"upto": shapes.default_site(name), "dtype": self.dtype, "device": self.bench.device}
            model = self._models[name, compiled] = shapes.random_model(name, **where)
            if compiled:
                compile_blocks(model.anatomy, model.hf, backend="eager" if self.bench.small else "inductor")
        return self._models[name, compiled]

    def tokens(self, name: str) -> TokenFile:
        """Documents of the sequence's length, as many as take some seconds at the ceiling."""
        if name not in self._tokens:
            spec = shapes.spec_of(name)
            cost = sequence_flops(spec, shapes.default_site(name), self.length) / self.length
            least = 8 * self.length
            rate = self.rates.get(name, 6e14)
            count = least if self.bench.small else suited_tokens(rate, cost, seconds=SECONDS, least=least)
            lengths = shapes.equal_lengths(count, self.length)
            folder = self.bench.scratch / f"tokens-{name}"
            self._tokens[name] = shapes.synthetic_tokens(folder, vocabulary=spec.d_vocab, lengths=lengths)
        return self._tokens[name]


def ceilings(bench: Bench, subjects: Subjects, name: str, budget: int) -> list[dict[str, Any]]:
    """What the machine can do at most: products, copies, disk."""
    small = {"repeats": 1, "seconds": 0.001, "copy_bytes": 1 << 20, "disk_bytes": 1 << 20}
    effort = Effort(**small) if bench.small else Effort(repeats=3, disk_bytes=2 << 30)
    spec, dtype = shapes.spec_of(name), getattr(torch, subjects.dtype)
    found = measure_ceilings(spec, tokens=budget, dtype=dtype, device=bench.device, folder=bench.scratch, effort=effort)
    subjects.rates[name] = found["matmul"].median
    return [
        {"variant": f"ceiling: {rate.name}", "value": rate.median, "low": min(rate.values), "high": max(rate.values)}
        | {"unit": rate.unit, "note": rate.detail}
        for rate in found.rates.values()
    ]


def extraction(
    bench: Bench, subjects: Subjects, name: str, budget: int, *, compiled: bool = False
) -> list[dict[str, Any]]:
    """The three ways, each as often."""
    model, tokens, site = subjects.model(name, compiled=compiled), subjects.tokens(name), shapes.default_site(name)
    of = "compiled, " * compiled + f"budget {budget}"
    task = Task(site=site, max_length=subjects.length, token_budget=budget)
    repeats = 1 if bench.small else 3
    bare = [without_sink(bench, model, tokens, task)]
    seconds = 0.001 if bench.small else 0.3
    found = time_extraction(model, tokens, task, bench.scratch, name=name, repeats=repeats, seconds=seconds)
    bare += [without_sink(bench, model, tokens, task) for _ in range(repeats)]
    bare = bare[1:]  # the first loads and allocates
    middle = statistics.median(bare)
    share = middle * found[0]["flops_per_token"] / statistics.median(found[0]["matmul"])
    row = {"value": middle, "low": min(bare), "high": max(bare), "unit": "tokens/s"}
    rows = [{"variant": f"{NO_SINK}, {of}", **row, "note": f"{share:.1%} of the ceiling of products"}]
    for one in found:
        note = f"{one['share']['median']:.1%} of the ceiling; {one['limited_by']} limits; {one['batches']} batches"
        row = {"value": one["median"], "low": one["min"], "high": one["max"], "unit": "tokens/s", "detail": one}
        row |= {"ratio": one["median"] / middle, "against": NO_SINK, "peak_bytes": one["memory"].get("cuda_peak")}
        rows.append({"variant": f"to {one['sink']}, {of}", **row, "note": note})
    return rows


def without_sink(bench: Bench, model: HookedModel, tokens: TokenFile, task: Task) -> float:
    """Tokens per second of capturing every batch; tokens are assembled before the clock starts."""
    settings = {"max_length": task.max_length, "token_budget": task.token_budget}
    extraction = prepare(model, tokens, [task.site], bench.scratch / "bare", **settings)
    batches = [assemble(extraction.plan, extraction.selector, i).batch for i in range(len(extraction.plan.buckets))]
    bench.settle()
    begun = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model.capture(batch.tokens, [task.site], lengths=batch.lengths)
    bench.settle()
    return extraction.plan.n_tokens / (time.perf_counter() - begun)


def profile(bench: Bench, subjects: Subjects, name: str, budget: int) -> dict[str, Any]:
    """The ten hottest kernels of one batch, by their own time."""
    model, site = subjects.model(name), shapes.default_site(name)
    batch = torch.arange(budget).remainder(model.cfg.d_vocab).view(-1, subjects.length)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * (bench.device.type == "cuda")
    with torch.inference_mode():
        model.capture(batch, [site])
        bench.settle()
        with torch.profiler.profile(activities=kinds) as seen:
            model.capture(batch, [site])
            bench.settle()
    gpu = bench.device.type == "cuda"
    own = "self_device_time_total" if gpu else "self_cpu_time_total"
    # on a GPU an operation's entry repeats the time of the kernels it launched: the kernels' own entries alone count
    kernels = [e for e in seen.key_averages() if not gpu or e.device_type == torch.autograd.DeviceType.CUDA]
    events = sorted(kernels, key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) or 1.0
    hottest = [
        {"kernel": e.key, "calls": e.count, "ms": getattr(e, own) / 1000, "share": getattr(e, own) / total}
        for e in events[:10]
    ]
    return {"value": total / 1000, "unit": "ms", "note": told(hottest), "detail": {"hottest": hottest}}


def told(hottest: Sequence[dict[str, Any]]) -> str:
    """The first three in words."""
    return "; ".join(f"{each['share']:.0%} {each['kernel'][:60]} x {each['calls']}" for each in hottest[:3])
