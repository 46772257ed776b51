"""One evaluation of steerings over strengths: what they achieve, what they cost, beside baselines.

    found = evaluate(model, {"midsteer": steering, "vanilla": other}, read_contrast("horse-motorcycle"),
                     judges=[LexiconJudge()], neutral=documents, out="runs/horses")
    found.front("lexicon"), found.save("evaluation.json")

For every method and β: texts from prompts of the source concept, the target concept and unrelated ones, scored by
judges that see the texts alone; KL and ΔCE on neutral text; perplexity under the unsteered model, repetition,
compressibility; multiple-choice questions. The unsteered model and the instruction in the prompt are points of their
own. With `out`, every step is kept as it is done and an interrupted evaluation goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.corpus import Document
from interp.errors import InputError
from interp.judging.question import Judge, Question
from interp.model import HookedModel
from interp.multiple_choice import Item
from interp.progress import bar
from interp.steering.contrast import ContrastSet
from interp.steering.evaluation import (
    PROMPTED,
    UNSTEERED,
    Accuracy,
    Point,
    SetResult,
    SteeringEvaluation,
    accuracy,
    kl_and_ce,
)
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.evaluation_steps import Steps
from interp.steering.generation import Generated
from interp.steering.neutral import NeutralEffect
from interp.steering.records import Records
from interp.steering.steering import Steering


def evaluate(
    model: HookedModel,
    methods: Mapping[str, Steering],
    contrast: ContrastSet,
    *,
    judges: Sequence[Judge],
    neutral: Sequence[Document],
    betas: Mapping[str, Sequence[float]] | None = None,
    questions: Sequence[Item] = (),
    question: Question | None = None,
    rater: Judge | None = None,
    config: EvaluationConfig | None = None,
    out: str | Path | None = None,
    show: bool | None = None,
) -> SteeringEvaluation:
    """Measure every method at every strength; `betas` gives a method strengths of its own, `rater` adds AxBench's
    score, `question` replaces the one made of the contrast set's concepts."""
    config = config or EvaluationConfig()
    _check(methods, judges, betas or {})
    records = Records(None if out is None else Path(out) / "records")
    steps = Steps(model, contrast, config, judges, question or concept_question(contrast), neutral, questions, records)
    grid = {name: tuple((betas or {}).get(name, config.betas)) for name in methods}
    runs = 1 + config.prompt_only + sum(map(len, grid.values()))
    with bar(runs * steps.n_texts, "steered texts", unit="text", show=show) as progress:
        steps.progress = progress.update
        base = steps.texts(UNSTEERED)
        points = [_point(steps, UNSTEERED, 0.0, base, base, None)]
        if config.prompt_only:
            effect = steps.prompted()
            points.append(_point(steps, PROMPTED, 1.0, steps.texts(PROMPTED), base, effect))
        for name, steering in methods.items():
            effects = steps.neutral(name, steering, grid[name])
            for beta in grid[name]:
                texts = steps.texts(name, steering.at(beta), beta)
                points.append(_point(steps, name, beta, texts, base, effects[beta], steering.at(beta)))
    rated = {name: steps.rated(name, methods[name], grid[name], rater) for name in methods} if rater else {}
    return SteeringEvaluation(_facts(steps, methods, rater), tuple(points), _samples(steps, methods, grid), rated)


def concept_question(contrast: ContrastSet) -> Question:
    """Which concept a text has: the source's, the target's or neither."""
    source, target = contrast.concepts
    about = [one.description or one.name for one in (source, target)]
    return Question.choice(
        "Which of these fits the text best?",
        [source.name, target.name, "neither"],
        descriptions=[*about, f"something else than {source.name} or {target.name}"],
        words=[source.words, target.words, ()] if source.words and target.words else (),
    )


def _check(methods: Mapping[str, Steering], judges: Sequence[Judge], betas: Mapping[str, Sequence[float]]) -> None:
    if not methods or not judges:
        raise InputError("an evaluation needs one method and one judge at least")
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise InputError(f"two judges have the same name: {', '.join(names)}")
    if taken := {UNSTEERED, PROMPTED} & set(methods):
        raise InputError(f"{', '.join(taken)} is measured anyway; name the method otherwise")
    if unknown := set(betas) - set(methods):
        raise InputError(f"betas for {', '.join(unknown)}, but the methods are {', '.join(methods)}")


def _point(
    steps: Steps,
    method: str,
    beta: float,
    texts: Mapping[str, Generated],
    base: Mapping[str, Generated],
    effect: NeutralEffect | None,
    steering: Steering | None = None,
) -> Point:
    level = steps.config.level
    sets = {
        name: SetResult.of(one, steps.judged(name, one), steps.judged(name, base[name]), level=level)
        for name, one in texts.items()
    }
    kl, delta_ce = kl_and_ce(effect, level=level)
    return Point(method, beta, sets, kl, delta_ce, _accuracy(steps, method, steering), steps.analytic(steering))


def _accuracy(steps: Steps, method: str, steering: Steering | None) -> Accuracy | None:
    """Of the questions; the instruction of the prompt-only baseline is not put in front of them."""
    if not steps.questions or method == PROMPTED:
        return None
    return accuracy(steps.answered(method, steering), steps.answered(UNSTEERED, None), level=steps.config.level)


def _samples(
    steps: Steps, methods: Mapping[str, Steering], grid: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], ...]:
    """The first texts of each kind, of every point; they were generated already and are read from memory."""
    runs = {UNSTEERED: steps.texts(UNSTEERED)}
    if steps.config.prompt_only:
        runs[PROMPTED] = steps.texts(PROMPTED)
    runs |= {
        f"{name}, β = {beta:g}": steps.texts(name, methods[name].at(beta), beta)
        for name in methods
        for beta in grid[name]
    }
    return tuple(
        {"set": kind, "prompt": prompt.text, "texts": {name: run[kind].texts[i] for name, run in runs.items()}}
        for kind, prompts in steps.prompts.items()
        for i, prompt in enumerate(prompts[: steps.config.samples])
    )


def _facts(steps: Steps, methods: Mapping[str, Steering], rater: Judge | None) -> dict[str, Any]:
    source, target = steps.contrast.concepts
    facts = {
        "model": steps.model.name,
        "revision": steps.model.revision,
        "contrast": steps.contrast.name,
        "source": source.name,
        "target": target.name,
        "judges": [judge.name for judge in steps.judges],
        "rater": rater.name if rater else None,
        "question": steps.question.facts(),
        "instruction": steps.instruction if steps.config.prompt_only else None,
        "prompts": {name: len(prompts) for name, prompts in steps.prompts.items()},
        "config": asdict(steps.config),
        "methods": {name: steps.described(steering) for name, steering in methods.items()},
    }
    return json.loads(json.dumps(facts))  # as it will be read again
