"""The whole benchmark as one stream of rows: ceilings, extraction, the tokeniser, SAE steps (`midlens bench`)."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from interp.anatomy import ModelSpec
from interp.batching import default_token_budget
from interp.bench import extraction, shapes
from interp.bench.ceilings import Ceilings, Effort, each_rate
from interp.bench.flops import sequence_flops
from interp.bench.report import Row
from interp.corpus import read_corpus
from interp.errors import InputError
from interp.extract import StoreDtype
from interp.loading import parse_device, parse_dtype
from interp.model import HookedModel
from interp.precision import default_dtype
from interp.presets import PRESETS
from interp.sites import Site
from saes import bench
from saes.recipe import Compute, Training

Part = Literal["ceilings", "extraction", "sae"]
Mix = Literal["equal", "mixed"]
DEFAULT_SHAPE = "smollm2-135m"
_SECONDS = 10.0  # of one extraction, at the ceiling


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    shape: str | None = None
    """A model by shape, with random weights: llama-3.1-8b, gemma-2-9b, smollm2-135m (the default), or a tiny one."""
    model: str | None = None
    """Instead of a shape: a preset, a hub id, a local folder or a GGUF file."""
    site: str | None = None
    """Where to extract; by default where the model's public SAEs stand."""
    parts: tuple[Part, ...] = ("ceilings", "extraction", "sae")
    """What to run; the ceilings are measured in any case, `ceilings` alone ends there."""
    lengths: tuple[Mix, ...] = ("equal", "mixed")
    """Documents of max-length tokens each, and documents of log-normal length (median 400 tokens, sigma 1)."""
    tokens: int | None = None
    """Of each extraction; by default what takes ten seconds at the ceiling, at least a batch."""
    max_length: int = 512
    """Positions fed at once; longer documents become several windows."""
    budget: int | None = None
    """Padded tokens per batch; by default what suits the device."""
    repeats: int = 3
    """Rounds behind each figure."""
    dtype: str | None = None
    """Of the model; by default what suits the device."""
    store_dtype: StoreDtype = "bfloat16"
    """Of the rows on disk."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""
    folder: Path = Path(".")
    """On the disk to measure: stores and scratch files are written below it, and deleted."""
    architecture: Training = "topk"
    """Of the SAE steps; topk and batchtopk are held against the dense step."""
    features: int | None = None
    """Of the SAE; by default eight times the model's width."""
    k: int = 32
    """Active features per token."""
    batch: int = 1024
    """Activations per SAE step."""
    compute: Compute = "float32"
    """Precision of the SAE's dense product."""
    seed: int = 0
    """Of weights, tokens and lengths."""
    quick: bool = False
    """Seconds instead of minutes: few tokens, short measurements. The figures mean little."""

    def __post_init__(self) -> None:
        if self.shape is not None and self.model is not None:
            raise InputError(f"shape {self.shape!r} and model {self.model!r} were both given; give one of them")
        for name in ("tokens", "max_length", "budget", "repeats", "features", "k", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if not Path(self.folder).is_dir():
            raise InputError(f"folder {self.folder} does not exist; give one on the disk to measure")
        if not self.parts or not self.lengths:
            raise InputError("parts and lengths need at least one value each")

    @property
    def effort(self) -> Effort:
        """How long and how large to measure the ceilings."""
        small = {"seconds": 0.01, "copy_bytes": 8 << 20, "disk_bytes": 8 << 20} if self.quick else {}
        return Effort(repeats=self.repeats, **small)


def measurements(config: BenchConfig) -> Iterator[Row]:
    """Every row, as soon as it is measured."""
    subject = _Subject(config)
    with tempfile.TemporaryDirectory(dir=config.folder, prefix="bench-") as scratch:
        rates = {}
        budget = config.budget or default_token_budget(subject.device.type)
        measured = each_rate(subject.spec, budget, subject.dtype, subject.device, Path(scratch), config.effort)
        for rate in measured:
            rates[rate.name] = rate
            yield rate.row()
        ceilings = Ceilings(rates)
        if "extraction" in config.parts:
            yield from _extraction(config, subject, ceilings, Path(scratch), budget)
        subject.model = None  # its memory is the SAE's now
        if "sae" in config.parts:
            yield from _steps(config, subject, ceilings)


class _Subject:
    """The model of the run, loaded only where it is needed, and its numbers."""

    def __init__(self, config: BenchConfig) -> None:
        shape = config.shape or (DEFAULT_SHAPE if config.model is None else None)
        self.device = parse_device(config.device)
        self.dtype = parse_dtype(config.dtype) or default_dtype(self.device)
        self.site = Site.parse(config.site) if config.site else _site(shape, config.model)
        self.model: HookedModel | None = None
        where = {"upto": self.site, "dtype": self.dtype, "device": self.device}
        if shape is None:
            assert config.model is not None
            self.model = HookedModel.load(config.model, **where)
        elif "extraction" in config.parts:
            self.model = shapes.random_model(shape, seed=config.seed, **where)
        self.spec: ModelSpec = self.model.cfg if self.model is not None else shapes.spec_of(str(shape))


def _site(shape: str | None, model: str | None) -> Site:
    if shape is not None:
        return shapes.default_site(shape)
    if model not in PRESETS:
        raise InputError(f"{model} is no preset, so its site is not known; give one, such as site='resid_post.12'")
    return PRESETS[model].site


def _extraction(
    config: BenchConfig, subject: _Subject, ceilings: Ceilings, scratch: Path, budget: int
) -> Iterator[Row]:
    model, longest = subject.model, min(config.max_length, 64) if config.quick else config.max_length
    assert model is not None
    cost = sequence_flops(subject.spec, subject.site, longest) / longest
    seconds = 0.0 if config.quick else _SECONDS
    least = 8 * longest if config.quick else max(budget, longest)
    n = config.tokens or extraction.suited_tokens(ceilings["matmul"].median, cost, seconds=seconds, least=least)
    tokeniser = None
    if model.tokenizer is not None:
        text = read_corpus("builtin")
        yield (row := extraction.time_tokeniser(model.tokenizer, text, scratch, n_tokens=n, repeats=config.repeats))
        tokeniser = row["median"]
    task = extraction.Task(
        site=subject.site, max_length=longest, token_budget=config.budget, store_dtype=config.store_dtype
    )
    for mix in config.lengths:
        lengths = shapes.equal_lengths(n, longest) if mix == "equal" else shapes.mixed_lengths(n, seed=config.seed)
        tokens = shapes.synthetic_tokens(
            scratch / mix, vocabulary=subject.spec.d_vocab, lengths=lengths, seed=config.seed
        )
        yield from extraction.time_extraction(
            model,
            tokens,
            task,
            scratch,
            name=f"{mix} lengths",
            repeats=config.repeats,
            seconds=config.effort.seconds,
            ceilings=ceilings,
            tokeniser=tokeniser,
        )


def _steps(config: BenchConfig, subject: _Subject, ceilings: Ceilings) -> list[Row]:
    d = subject.spec.d_model
    task = bench.Task(
        d=d,
        f=config.features or (2 if config.quick else 8) * d,
        k=config.k,
        batch=min(config.batch, 64) if config.quick else config.batch,
        architecture=config.architecture,
        compute=config.compute,
    )
    seconds = 0.01 if config.quick else 1.0
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
    return bench.time_steps(
        task, device=subject.device, repeats=config.repeats, seconds=seconds, ceilings=ceilings, seed=config.seed
    )
