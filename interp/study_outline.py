"""What surveys, steerings and the Sudoku demonstration would do, before they do it; see `interp.outline`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from interp.attention.survey_config import SurveyConfig
from interp.errors import InputError
from interp.outline import BASIS, Sketch, folder_state, size
from interp.sites import Site
from interp.steering.contrast import read_contrast
from interp.steering.evaluate_job import EVALUATION_FILE, EvaluateConfig
from interp.steering.fit_job import FitConfig, read_texts
from interp.steering.steering import Steering
from interp.sudoku.demo import PAGE, DemoConfig
from interp.sudoku.presets import preset

_TOKENS = 32
"""Tokens that a prompt is taken to have."""


def survey_outline(models: Sequence[str], out: Path, config: SurveyConfig) -> Mapping[str, object]:
    """Of `interp.attention.survey.survey`: every model's config is read, no weights."""
    from interp.attention.survey import FILE
    from interp.attention.survey_models import FIVE

    if not models:
        raise InputError("name at least one model to survey, such as smollm2-135m or gpt2")
    plan: dict[str, object] = {}
    for model in models:
        name = FIVE.get(model, model)
        try:
            sketch = Sketch.of(name, dtype=config.dtype, device=config.device)
        except InputError as error:
            plan[model] = f"not outlined: {error}"
            continue
        layers = config.chosen_layers(sketch.cfg.n_layers)
        runs = config.max_tokens // config.max_length * (config.operating + config.behaviour)
        seconds = sketch.seconds(Site.parse(f"resid_post.{max(layers)}"), [config.max_length] * runs) if runs else 0.0
        plan[model] = {
            "model": sketch.described(),
            "heads": f"{len(layers)} layers of {sketch.cfg.n_heads} heads, {config.draws} random orientations each",
            "text": f"{runs:,} windows of {config.max_length} positions" if runs else "the model is not run",
            "memory": f"about {size(sketch.weight_bytes())} for the weights",
            "seconds": round(seconds, 1),
        }
    return plan | {
        "state": folder_state(out, FILE, "survey.html"),
        "basis": f"the runs of the model alone, {BASIS}; spectra of weights are not counted",
    }


def fit_outline(model: str, config: FitConfig, out: Path) -> Mapping[str, object]:
    """Of `interp.steering.fit_job.fit_job`."""
    sketch = Sketch.of(model)
    sites = [Site.parse(site) for site in config.sites] or ([sketch.preset.site] if sketch.preset else [])
    if not sites:
        raise InputError(f"say where to edit in {model!r}: sites, such as resid_post.8 (only presets have a default)")
    if config.contrast is not None:
        kinds = read_contrast(config.contrast).train
        counts = [len(kinds.source), len(kinds.target), len(kinds.unrelated)]
        prompts = f"{', '.join(f'{n:,}' for n in counts)} of the training split of {config.contrast}"
    else:
        files = [path for path in (config.source, config.target, config.neutral) if path is not None]
        counts = [len(read_texts(path)) for path in files]
        prompts = ", ".join(f"{n:,} of {path}" for n, path in zip(counts, files, strict=True))
    count = sum(min(n, config.max_prompts or n) for n in counts)
    runs = len(sites) if config.sequential else 1
    seconds = runs * sketch.seconds(max(sites), [_TOKENS] * count)
    return {
        "model": sketch.described(),
        "method": f"{config.method}, read in the metric {config.whiten}",
        "sites": ", ".join(map(str, sites)),
        "prompts": prompts,
        "memory": f"about {size(sketch.weight_bytes() + 24 * len(sites) * sketch.cfg.d_model**2)}",
        "disk": f"less than {size(16 * len(sites) * sketch.cfg.d_model**2)} under {out}",
        "state": folder_state(out, "steering.json"),
        "seconds": round(seconds, 1),
        "basis": f"{count:,} prompts of {_TOKENS} tokens, {BASIS}",
    }


def evaluate_outline(model: str, steerings: Sequence[Path], config: EvaluateConfig, out: Path) -> Mapping[str, object]:
    """Of `interp.steering.evaluate_job.evaluate_job`."""
    if not steerings:
        raise InputError("give the folder of one steering or more")
    loaded = {folder.name: Steering.load(folder) for folder in steerings}
    sketch = Sketch.of(model)
    methods = [*loaded, *config.baselines]
    points = 1 + config.prompt_only + len(methods) * len(config.betas)
    kinds = 2
    last = Site.parse(f"resid_post.{sketch.cfg.n_layers - 1}")
    texts = points * kinds * config.n_prompts
    lengths = [_TOKENS + config.max_new_tokens] * texts + [config.neutral_length] * points * config.neutral_documents
    return {
        "model": sketch.described(),
        "steerings": ", ".join(loaded),
        "points": f"{points:,}: unsteered{', prompted' if config.prompt_only else ''}, and {len(methods)} methods "
        f"({', '.join(methods)}) at {len(config.betas)} strengths",
        "texts": f"{texts:,} of up to {config.max_new_tokens} new tokens; judges: {', '.join(config.judges)}",
        "memory": f"about {size(sketch.weight_bytes())} for the weights",
        "state": folder_state(out, EVALUATION_FILE, "evaluation.html"),
        "seconds": round(sketch.seconds(last, lengths), 1),
        "basis": f"{BASIS}; generation, which runs token by token, takes longer",
    }


def demo_outline(out: Path, config: DemoConfig) -> Mapping[str, object]:
    """Of `interp.sudoku.demo.demo`."""
    settings = preset(config.preset)
    steps = config.steps or settings.steps
    trained = [seed for seed in config.seeds if (out / "models" / f"seed{seed}" / "model.safetensors").exists()]
    names = ["probes"] + [f"{p}-seed{s}" for s in config.seeds for p in ("circuit", "interventions", "solving")]
    done = [name for name in names if (out / "results" / f"{name}.json").exists()]
    return {
        "models": f"{len(config.seeds)} of preset {config.preset}, {steps:,} steps each, {config.workers} at a time",
        "there": f"models of seeds {', '.join(map(str, trained)) or 'none'}; studies: {', '.join(done) or 'none'}",
        "studies": ", ".join(name for name in names if name not in done) or "none left",
        "puzzles": f"{config.test_puzzles:,} to solve, {config.probe_puzzles:,} of the probes, "
        f"{config.circuit_puzzles:,} of the circuit",
        "state": folder_state(out, PAGE),
        "time": "minutes on two cores for the defaults; it grows with steps, seeds and puzzles",
    }
