"""How much work a run is, and how it is cut to a budget: texts, judge calls, tokens to paid judges, time, memory.

    texts of an emotion     trials · prompts  +  conditions · seeds · prompts
    judge calls             judges · (texts of the search  +  2 · texts of the conditions)    forced choice; yes or no
    seconds                 texts · tokens / (tokens per second)  +  judge calls · seconds per call

Trials are no more than an emotion's candidates allow, conditions 6; an emotion without any candidate has neither trials
nor a recipe, and 2 conditions. Before all of them there are `prompts` unsteered texts, written and judged once.

`fitted` takes the most thorough `Effort` whose time fits what is left of the budget, by speeds measured on this model,
SAE and panel just before; if not even the least fits, it says how many emotions do. What was cut is said in words.

`outline` states all of it before any work, from shapes alone: by a preset's published configuration (nothing is
downloaded), or from the config of a model that is at hand. Its times are estimates at an assumed rate, which it names,
except the lens step's, for which some rows go through an unembedding of this size here:

    lens    seconds = (d_sae + decoys) · seconds per row,  twice: the untrained SAE goes through it too
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from interp.anatomy import ModelSpec
from interp.bench.shapes import SHAPES, spec_of
from interp.loading import parse_device
from interp.outline import Sketch, folder_state, size
from interp.presets import PRESETS
from interp.quiet import quiet_transformers
from saes.memory import memory_of
from saes.primitives.categories import Categories
from saes.primitives.data import scenes
from saes.primitives.dictionary import Outlined, check_outline, sae_outline
from saes.primitives.lens_scores import CHUNK_BYTES
from saes.primitives.options import PrimitivesConfig, check_early, emotion_set, emotions_of
from saes.primitives.results import CONDITIONS, UNSTEERED

LOCAL_JUDGES = 5
"""Of the panel that runs here."""
TRIAL_TEXTS = 8
"""By which speeds are measured."""
_KNOWN = 30
"""Scenes of known emotion, at most, that the panel is tried on."""
TEXTS_AT_ONCE = 256
"""Short ones, of 8 tokens, in a batch of 2,048 tokens."""
PAID_PROMPT, PAID_ANSWER = 260, 6
"""Tokens of a call to an endpoint: instruction, 27 options and a short text; the answer."""
_LENS_ROWS = 64
_SHAPE_OF = {"llama-3.1-8b-instruct": "llama-3.1-8b", "gemma-2-9b-it": "gemma-2-9b"}


@dataclass(frozen=True)
class Effort:
    """How thoroughly each emotion is searched."""

    trials: int
    """Specifications tried by the search."""
    prompts: int
    """Neutral prompts that every specification and condition is tried on."""
    tokens: int
    """Length of a text."""

    def texts(self, seeds: int, possible: int | None = None) -> tuple[int, int]:
        """Of one emotion: those of the search, and those of the conditions. `possible`: the most trials that its
        candidates allow; by default any number."""
        trials = self.trials if possible is None else min(self.trials, possible)
        conditions = len(CONDITIONS if trials else UNSTEERED)
        return trials * self.prompts, conditions * seeds * self.prompts

    def calls(self, seeds: int, judges: int, possible: int | None = None) -> int:
        """Of one emotion, to all judges."""
        search, conditions = self.texts(seeds, possible)
        return judges * (search + 2 * conditions)

    def seconds(self, seeds: int, judges: int, speeds: "Speeds", possible: int | None = None) -> float:
        """Of one emotion."""
        texts = sum(self.texts(seeds, possible))
        return speeds.seconds(texts * self.tokens, self.calls(seeds, judges, possible))

    def once(self, judges: int, speeds: "Speeds") -> float:
        """Seconds of the unsteered texts that every search is held against."""
        return speeds.seconds(self.prompts * self.tokens, judges * self.prompts)


EFFORTS = (
    Effort(24, 4, 48), Effort(18, 4, 48), Effort(14, 4, 40), Effort(12, 3, 40), Effort(9, 3, 32), Effort(7, 2, 32),
    Effort(5, 2, 24), Effort(3, 1, 24),
)  # fmt: skip
"""From thorough to the least that is a search at all."""


@dataclass(frozen=True)
class Speeds:
    """Measured: tokens written in a second by a batch under a steering, seconds of one answer of one judge."""

    tokens_per_second: float
    seconds_per_call: float

    def seconds(self, tokens: int, calls: int) -> float:
        """Of writing and of judging."""
        return tokens / self.tokens_per_second + calls * self.seconds_per_call


@dataclass(frozen=True)
class Fit:
    """What the budget allows."""

    effort: Effort
    n_emotions: int
    seconds: float
    """Of these emotions together."""
    cut: tuple[str, ...]
    """What was left out, in words; empty where nothing was."""


def fitted(left: float, possible: Sequence[int], *, seeds: int, judges: int, speeds: Speeds) -> Fit:
    """The most thorough effort that `left` seconds allow for every emotion, in order; `possible`: the most trials that
    the candidates of each allow, 0 where there are none."""
    n, sums = len(possible), [0.0]
    for effort in EFFORTS:
        each = (effort.seconds(seeds, judges, speeds, trials) for trials in possible)
        sums = list(accumulate(each, initial=effort.once(judges, speeds)))
        if sums[-1] <= left:
            return Fit(effort, n, sums[-1], _cut(effort))
    fits = max(1, sum(total <= left for total in sums[1:]))
    missing = (f"about {n - fits} of {n} emotions",) if fits < n else ()
    return Fit(EFFORTS[-1], fits, sums[fits], (*_cut(EFFORTS[-1]), *missing))


def _cut(effort: Effort) -> tuple[str, ...]:
    full, names = EFFORTS[0], {"trials": "trials", "prompts": "prompts", "tokens": "tokens a text"}
    pairs = ((names[key], getattr(effort, key), getattr(full, key)) for key in names)
    return tuple(f"{name}: {ours} of {whole}" for name, ours, whole in pairs if ours < whole)


def known_scenes(config: PrimitivesConfig, known: Categories) -> list[tuple[str, str]]:
    """Scenes (emotion, text) of the set's emotions, evenly taken; none where the set has none of them."""
    labels = known if config.scenes else None
    texts = [(s.emotion, s.text) for s in scenes(config.scenes, emotions=labels) if s.emotion in known.names]
    return texts[:: max(1, math.ceil(len(texts) / _KNOWN))]


def _calls(config: PrimitivesConfig, known: Categories, n: int, effort: Effort, judges: int) -> int:
    """Of a run on `n` emotions at the most: known scenes, trial texts, unsteered texts, and the emotions."""
    before = len(known_scenes(config, known)) + TRIAL_TEXTS + effort.prompts
    return judges * before + n * effort.calls(config.seeds, judges)


@dataclass(frozen=True)
class _Shapes:
    """What memory and time follow from."""

    name: str
    spec: ModelSpec
    weight_bytes: int
    dtype: torch.dtype
    source: str


def outline(config: PrimitivesConfig, *, local_judges: int = LOCAL_JUDGES) -> dict[str, object]:
    """All of it, by name, for `--dry-run` and before a run; writes nothing and loads no weights."""
    check_early(config)
    known = emotion_set(config)
    emotions = emotions_of(config, known)
    shapes, sae = _shapes(config), sae_outline(config.sae) if config.sae else None
    d, v, layers = shapes.spec.d_model, shapes.spec.d_vocab, shapes.spec.n_layers
    if sae is not None:
        check_outline(sae, config.model, d, site=config.site, force=config.force)
    f = sae.d_sae if sae else config.recipe.width(d) if config.sae is None else None
    judges = len(config.remote) + (local_judges if "local" in config.judges else 0)
    ends = (EFFORTS[-1], EFFORTS[0])

    def calls(judges: int) -> list[int]:
        return [_calls(config, known, len(emotions), one, judges) for one in ends]

    return {
        "model": f"{shapes.name}: {layers} layers of width {d:,}, vocabulary {v:,}; {shapes.source}",
        "sae": _sae_line(config, sae, f),
        "emotions": f"{len(emotions)} of the {len(known)} of {known.name}: {', '.join(emotions)}",
        "memory": _memory(config, shapes, f),
        "texts": _range([one.prompts + len(emotions) * sum(one.texts(config.seeds)) for one in ends])
        + "; fewer where an emotion has few candidates or no recipe",
        "judge calls": f"{_range(calls(judges))}; {judges} judges",
        "paid judges": _paid(config, calls(len(config.remote))),
        "lens": _lens(shapes, f, config.decoys),
        "writing": _writing(shapes, [len(emotions) * sum(one.texts(config.seeds)) * one.tokens for one in ends]),
        "budget": f"{config.budget:g} minutes: the search is cut to it by speeds measured before it begins",
        "state": folder_state(config.out, "sae", "catalogue.json", "coverage.json", "report.html"),
    }  # fmt: skip


def _shapes(config: PrimitivesConfig) -> _Shapes:
    name = _SHAPE_OF.get(config.model, config.model)
    if name in SHAPES and not (PRESETS.get(config.model) and PRESETS[config.model].package):
        spec = spec_of(name)
        dtype = torch.bfloat16 if config.dtype is None else getattr(torch, config.dtype)
        return _Shapes(config.model, spec, _parameters(name) * dtype.itemsize, dtype, "from its published shape")
    sketch = Sketch.of(config.model, dtype=config.dtype)
    return _Shapes(config.model, sketch.cfg, sketch.weight_bytes(), sketch.dtype, "from its configuration")


def _parameters(shape: str) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    found = SHAPES[shape]
    with quiet_transformers(), torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(found.family, **found.config))
    return sum(parameter.numel() for parameter in hf.parameters())


def _sae_line(config: PrimitivesConfig, sae: Outlined | None, f: int | None) -> str:
    if sae is not None:
        active = "" if sae.l0 is None else f", about {sae.l0:g} active"
        return f"{sae.name}: {sae.d_sae:,} features at {sae.site or config.site}{active}"
    if config.sae is not None:
        return f"{config.sae}: its shape is known once it is read"
    return f"{config.architecture}, {f:,} features, k {config.k}, trained here on {config.train_tokens:,} tokens"


def _memory(config: PrimitivesConfig, shapes: _Shapes, f: int | None) -> str:
    """The most at once: the model; the catalogue or, if that is more, an SAE's weights twice while it is read."""
    d, parts = shapes.spec.d_model, catalogue_bytes(shapes.spec.d_model, shapes.spec.d_vocab, f)
    if config.sae is not None and f is not None and 16 * d * f > sum(parts.values()):
        parts = {"SAE while it is read": 16 * d * f}
    parts = {"model": shapes.weight_bytes} | parts
    if config.sae is None:
        parts["training"] = memory_of(config.recipe, config.recipe.shape(d)).peak
    listed = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    return f"at most about {size(sum(parts.values()))} ({listed})"


def catalogue_bytes(d: int, v: int, f: int | None) -> dict[str, int]:
    """Of the catalogue of `f` features beside the model, in float32; `benchmarks/primitives_memory.py` measures it. The
    untrained SAE's encoder is its decoder. A batch has codes of `TEXTS_AT_ONCE` texts, twice while they are pooled."""
    parts = {"unembedding for the lens": 4 * d * v, "logits of a chunk": CHUNK_BYTES}
    if f is not None:
        parts |= {"SAE and an untrained one": 12 * d * f, "codes of a batch of texts": 8 * f * TEXTS_AT_ONCE}
    return parts


def _range(ends: Sequence[int]) -> str:
    low, high = ends
    return f"{low:,} to {high:,}"


def _paid(config: PrimitivesConfig, calls: Sequence[int]) -> str:
    if not config.remote:
        return "none: no text leaves this machine"
    return (
        f"{_range(calls)} calls of {', '.join(config.remote)} at {config.endpoint}; tokens sent about "
        f"{_range([PAID_PROMPT * count for count in calls])}, received about "
        f"{_range([PAID_ANSWER * count for count in calls])}; answers are kept, none is asked for twice"
    )


def _lens(shapes: _Shapes, f: int | None, decoys: int) -> str:
    if f is None:
        return "its time is known once the SAE is read"
    each = lens_seconds_per_row(shapes.spec.d_model, shapes.spec.d_vocab)
    rows = 2 * (f + (max(f, decoys) if decoys else 0))
    return (
        f"about {rows * each / 60:,.1f} minutes here: {rows:,} rows (SAE, an untrained one, decoys for each) "
        f"at {1e3 * each:.2f} ms, of {_LENS_ROWS} rows measured"
    )


def _writing(shapes: _Shapes, tokens: Sequence[int]) -> str:
    from interp.bench.ceilings import matmul_rate
    from interp.bench.flops import products

    rate = matmul_rate(products(shapes.spec), 16, shapes.dtype, parse_device(None), 0.02)
    per_token = 2 * 2 * shapes.weight_bytes / shapes.dtype.itemsize / rate
    low, high = (count * per_token / 60 for count in tokens)
    return (
        f"{_range(tokens)} tokens, about {low:,.0f} to {high:,.0f} minutes here at half the rate of this model's "
        "matrix products in batches of 16, measured for a moment; judges come on top"
    )


def lens_seconds_per_row(d: int, v: int, *, rows: int = _LENS_ROWS, parts: int = 16) -> float:
    """Seconds of one decoder row against an unembedding of `v` rows, measured on a part of them."""
    part = max(1, v // parts)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, d, generator=g), torch.randn(part, d, generator=g)
    torch.topk(x[:2] @ w.T, min(100, part))
    start = time.perf_counter()
    torch.topk(x @ w.T, min(100, part))
    return (time.perf_counter() - start) / rows * v / part
