"""Extraction timed: tokens per second to disk and to memory, what share of the ceiling that is, and what limits it.

    share = tokens/s * FLOP/token / (FLOP/s of the same products, measured just before and just after)

A share is taken within a run, so that another program's load falls on both of its sides.
Tokens are the real ones, never padding; operations are those the model needs for them (`interp.bench.flops`). A run to
disk is a whole extraction: plan, shards, checksums, fsync, manifest. A run to memory stops where rows have arrived on
the host, and drops them there.
"""

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.background import Background
from interp.bench.ceilings import Ceilings, matmul_rate
from interp.bench.flops import mean_flops, products
from interp.bench.measure import Measured, measure, spread
from interp.bench.report import Row, make_row, peak_memory
from interp.errors import InputError
from interp.extract import StoreDtype, prepare
from interp.extraction import Extraction
from interp.feeding import Feed
from interp.model import HookedModel
from interp.pinned import SLOTS
from interp.pipeline import Ready, Rows, assemble
from interp.sites import Site
from interp.stages import Stages
from interp.tokenfile import TokenFile, tokenize
from interp.tokenwriter import TextDocument

Sink = Literal["memory", "disk"]
_CHARACTERS = 8  # per token; prose has four or five


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is extracted and how: settings of `interp.extract`."""

    site: Site
    max_length: int = 512
    token_budget: int | None = None
    store_dtype: StoreDtype = "bfloat16"


class Run(NamedTuple):
    """One timed extraction."""

    measured: Measured
    stages: Stages
    matmul: float
    """Operations per second of the model's products: the mean of just before and just after."""


def time_extraction(
    model: HookedModel,
    tokens: TokenFile,
    task: Task,
    folder: str | Path,
    *,
    name: str,
    repeats: int = 3,
    sinks: Sequence[Sink] = ("memory", "disk"),
    seconds: float = 0.3,
    ceilings: Ceilings | None = None,
    tokeniser: float | None = None,
) -> list[Row]:
    """One row per sink, after `repeats` rounds in which they take turns; scratch files go below `folder`.

    `seconds`: of each product when the ceiling is measured. `ceilings` (disk, copies) and `tokeniser` (tokens/s) are
    what else the rates are compared with.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    scratch = Path(folder) / "extraction"
    runs: dict[Sink, list[Run]] = {sink: [] for sink in sinks}
    plan = _prepared(model, tokens, task, scratch)
    to_memory(plan, batches=2)  # whatever is loaded, compiled or allocated once
    ceiling = partial(matmul_rate, products(model.cfg), plan.plan.token_budget, model.dtype, model.device, seconds)
    before = ceiling()
    for turn in range(repeats):
        for sink in sinks if turn % 2 == 0 else reversed(sinks):
            ready = _prepared(model, tokens, task, scratch)
            work = partial(to_memory, ready) if sink == "memory" else partial(ready.run, progress=False)
            measured, after = measure(work, device=model.device), ceiling()
            runs[sink].append(Run(measured, ready.stages, (before + after) / 2))
            before = after
            shutil.rmtree(scratch, ignore_errors=True)
    facts = _facts(model, task, plan)
    return [_row(f"{name}, to {sink}", runs[sink], sink, facts, ceilings, tokeniser) for sink in sinks]


def _prepared(model: HookedModel, tokens: TokenFile, task: Task, path: Path) -> Extraction:
    settings: dict[str, Any] = {"max_length": task.max_length, "token_budget": task.token_budget}
    return prepare(model, tokens, [task.site], path, store_dtype=task.store_dtype, **settings)


def to_memory(extraction: Extraction, *, batches: int | None = None) -> None:
    """Run a planned extraction up to where its rows are on the host, and drop them; `batches`: only the first."""
    plan, runner, stages = extraction.plan, extraction.runner, extraction.stages

    def make(number: int) -> Ready:
        with stages.timed("tokens"):
            return runner.near(assemble(plan, extraction.selector, number))

    numbers = range(len(plan.buckets))[:batches]
    runner.begin(int(plan.buckets.padded.max()))
    with Background("host", depth=SLOTS) as host, Feed(make) as feed:
        feed.start(iter(numbers))
        for _ in numbers:
            computed = runner.compute(feed.take())
            with stages.timed("stall"):
                host.room()
            host.do(partial(_arrive, stages, runner.send(computed)))


def _arrive(stages: Stages, rows: Rows) -> None:
    rows.wait()
    rows.time(stages)
    rows.release()


def _facts(model: HookedModel, task: Task, extraction: Extraction) -> dict[str, Any]:
    plan = extraction.plan
    lengths = plan.buckets.windows.length.tolist()
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "site": str(task.site),
        "store_dtype": task.store_dtype,
        "tokens": plan.n_tokens,
        "windows": len(lengths),
        "window_lengths": spread(lengths),
        "max_length": task.max_length,
        "token_budget": plan.token_budget,
        "batches": len(plan.buckets),
        "padding": round(plan.buckets.waste, 4),
        "flops_per_token": mean_flops(model.cfg, task.site, lengths),
        "bytes_per_token": plan.rows * plan.layout.row_bytes / plan.n_tokens,
    }


def _row(
    name: str,
    runs: Sequence[Run],
    sink: Sink,
    facts: Mapping[str, Any],
    ceilings: Ceilings | None,
    tokeniser: float | None,
) -> Row:
    rates = [facts["tokens"] / run.measured.seconds for run in runs]
    shares = [rate * facts["flops_per_token"] / run.matmul for rate, run in zip(rates, runs, strict=True)]
    middle = sorted(runs, key=lambda run: run.measured.seconds)[len(runs) // 2]
    bytes_per_second = spread(rates)["median"] * facts["bytes_per_token"]
    channel = "disk_write" if sink == "disk" else "device_to_host"
    limit = None if ceilings is None else ceilings.get(channel)
    return make_row(
        "extraction",
        name,
        "tokens/s",
        rates,
        sink=sink,
        share=spread(shares),
        matmul=[run.matmul for run in runs],
        limited_by=limiting(middle.stages, spread(rates)["median"], tokeniser),
        stages=middle.stages.as_dict(),
        seconds=[run.measured.seconds for run in runs],
        cpu_seconds=[run.measured.cpu_seconds for run in runs],
        bytes_per_second=bytes_per_second,
        share_of_bytes=None if limit is None else {"of": channel, "share": bytes_per_second / limit},
        memory=peak_memory([run.measured for run in runs]),
        **facts,
    )


def limiting(stages: Stages, tokens_per_second: float, tokeniser: float | None = None) -> str:
    """What limits: a stage of the run, or the tokeniser if text reaches the run more slowly than it takes tokens."""
    return "tokeniser" if tokeniser is not None and tokeniser < tokens_per_second else stages.limiting()


def time_tokeniser(
    tokenizer: Any, documents: Iterable[TextDocument], folder: str | Path, *, n_tokens: int, repeats: int = 3
) -> Row:
    """How fast text becomes token files on this machine: about `n_tokens` of these documents, from memory."""
    path, rates, some, size = Path(folder) / "tokenised", list[float](), list[TextDocument](), 0
    for document in documents:
        some.append(document)
        size += len(document.text)
        if size > _CHARACTERS * n_tokens:
            break
    for _ in range(repeats):
        begun = time.perf_counter()
        file = tokenize(some, tokenizer, path, max_tokens=n_tokens)
        rates.append(file.n_tokens / (time.perf_counter() - begun))
        shutil.rmtree(path)
    return make_row("tokeniser", type(tokenizer).__name__, "tokens/s", rates, tokens=n_tokens)


def suited_tokens(rate: float, flops_per_token: float, *, seconds: float, least: int) -> int:
    """How many tokens take about so many seconds at the ceiling, at least `least`."""
    return max(least, round(seconds * rate / flops_per_token))
