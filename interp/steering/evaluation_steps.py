"""The steps of an evaluation, each kept under a key that says all it depends on."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interp.corpus import Document
from interp.judging.question import Judge, Question
from interp.model import HookedModel
from interp.multiple_choice import Item, multiple_choice_accuracy
from interp.steering.axbench import choose_and_report, harmonic, rate
from interp.steering.contrast import ContrastSet
from interp.steering.evaluation import PROMPTED
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.fingerprint import fingerprint
from interp.steering.generation import Generated, generate_texts
from interp.steering.neutral import NeutralEffect, NeutralText, as_generated, neutral_effect, prompted_effect
from interp.steering.prompts import asked_for, prompts_of
from interp.steering.records import Records
from interp.steering.steering import Steering
from interp.tensorfile import tensors_digest


class Steps:
    """What is measured on, and the measurements made so far."""

    def __init__(
        self,
        model: HookedModel,
        contrast: ContrastSet,
        config: EvaluationConfig,
        judges: Sequence[Judge],
        question: Question,
        neutral: Sequence[Document],
        questions: Sequence[Item],
        records: Records,
    ) -> None:
        self.model, self.contrast, self.config, self.judges, self.question = model, contrast, config, judges, question
        self._weights = fingerprint(model)
        self.records, self.questions = records, tuple(questions[: config.questions])
        self.prompts = prompts_of(contrast, n=config.n_prompts, seed=config.seed)
        length = config.neutral_length
        self.text = NeutralText.of(
            model, neutral, n=config.neutral_documents, length=length, prompt=min(8, length // 2)
        )
        source, target = contrast.concepts
        self.instruction = config.instruction or (
            f"Whatever is asked, your answer must be {target.description or target.name}, "
            f"and not {source.description or source.name}."
        )
        self.progress: Callable[[int], object] | None = None
        self._texts: dict[tuple[str, float], dict[str, Generated]] = {}

    @property
    def n_texts(self) -> int:
        """Texts of one point."""
        return sum(map(len, self.prompts.values()))

    def texts(self, method: str, steering: Steering | None = None, beta: float = 0.0) -> dict[str, Generated]:
        """The texts of a point, by set of prompts; all of them are generated together."""
        if (method, beta) not in self._texts:
            self._texts[method, beta] = self._generated(method, steering, beta)
        return self._texts[method, beta]

    def _generated(self, method: str, steering: Steering | None, beta: float) -> dict[str, Generated]:
        plain = [prompt for prompts in self.prompts.values() for prompt in prompts]
        given = [asked_for(prompt, self.instruction) for prompt in plain] if method == PROMPTED else plain
        key = {**self._key(steering), "prompts": _hash(given), "plain": _hash(plain)}
        key |= {"writing": self.config.writing.facts()}
        label = f"text-{method}-{beta:g}"
        known = self.records.have(label, key)

        def make() -> dict[str, Any]:
            hooks = None if steering is None else steering.hooks()
            writing, progress = self.config.writing, self.progress
            return generate_texts(self.model, given, hooks, writing=writing, plain=plain, progress=progress).to_json()

        whole = Generated.from_json(self.records.get(label, key, make))
        if known and self.progress is not None:
            self.progress(len(given))
        ends = np.cumsum([len(prompts) for prompts in self.prompts.values()]).tolist()
        return {
            kind: whole.part(slice(end - len(self.prompts[kind]), end))
            for kind, end in zip(self.prompts, ends, strict=True)
        }

    def judged(self, kind: str, generated: Generated) -> dict[str, dict[str, Any]]:
        """Each judge's scores (weight of the target minus weight of the source), 0 where it had nothing to say."""
        return {judge.name: self._judged(judge, kind, generated) for judge in self.judges}

    def _judged(self, judge: Judge, kind: str, generated: Generated) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            # A judge refuses no text, but an empty one says nothing: it is not shown.
            shown = [i for i, text in enumerate(generated.texts) if text.strip()]
            scores, silent = np.zeros(len(generated.texts)), len(generated.texts) - len(shown)
            if shown:
                found = judge.score([generated.texts[i] for i in shown], self.question, seed=self.config.seed)
                source, target = (found.weight(one.name) for one in self.contrast.concepts)
                scores[shown] = np.nan_to_num(target - source)
                silent += found.n_failed
            return {"scores": [round(float(score), 5) for score in scores], "silent": silent}

        key = {"judge": judge.name, "question": self.question.facts(), "words": self.question.words}
        key |= {"texts": _hash(generated.texts), "seed": self.config.seed}
        return self.records.get(f"judge-{judge.name}-{kind}", key, make)

    def neutral(self, method: str, steering: Steering, betas: Sequence[float]) -> dict[float, NeutralEffect]:
        """KL and cross-entropy on neutral text at every strength."""

        def make() -> list[dict[str, Any]]:
            found = neutral_effect(self.model, self.text, {beta: steering.at(beta).hooks() for beta in betas})
            return [vars(found[beta]) for beta in betas]

        key = {**self._key(steering), "betas": list(betas), "text": _hash(self.text.rows), "prompt": self.text.prompt}
        held = self.records.get(f"neutral-{method}", key, make)
        return {beta: _effect(value) for beta, value in zip(betas, held, strict=True)}

    def prompted(self) -> NeutralEffect:
        """The same of the instruction in front."""

        def make() -> dict[str, Any]:
            return vars(prompted_effect(self.model, self.text, self.instruction))

        key = {**self._key(None), "instruction": self.instruction, "text": _hash(self.text.rows)}
        return _effect(self.records.get("neutral-prompt", key, make))

    def answered(self, method: str, steering: Steering | None) -> list[bool]:
        """Which multiple-choice questions are answered rightly; under the scope `generated` all but the first token
        count as generated, for nothing is."""
        hooks = {} if steering is None else dict(steering.hooks())
        if steering is not None and steering.scope == "generated":
            hooks = {site: as_generated(edit, 1) for site, edit in hooks.items()}

        def make() -> list[bool]:
            return multiple_choice_accuracy(self.model, self.questions, hooks).correct.tolist()

        key = {**self._key(steering), "questions": _hash(self.questions)}
        return self.records.get(f"questions-{method}", key, make)

    def rated(self, method: str, steering: Steering, betas: Sequence[float], rater: Judge) -> dict[str, Any]:
        """AxBench's score of a method on the source prompts, for the target concept."""
        prompts = [prompt.text for prompt in self.prompts["source"]]
        rows = []
        for beta in betas:
            texts = self.texts(method, steering.at(beta), beta)["source"].texts

            def make(texts: tuple[str, ...] = texts) -> dict[str, Any]:
                shown = [text if text.strip() else "(nothing)" for text in texts]
                found = rate(rater, prompts, shown, self.contrast.target.name, seed=self.config.seed)
                return {name: [None if np.isnan(x) else float(x) for x in values] for name, values in found.items()}

            key = {"judge": rater.name, "texts": _hash(texts), "concept": self.contrast.target.name}
            held = self.records.get(f"rate-{rater.name}-{method}-{beta:g}", key, make)
            rows.append(harmonic(*(np.array(held[name], np.float64) for name in ("concept", "instruction", "fluency"))))
        return vars(choose_and_report(betas, np.stack(rows), seed=self.config.seed, level=self.config.level))

    def analytic(self, steering: Steering | None) -> dict[str, dict[str, float]]:
        """By site, what was written down when the edit was fitted; the disturbance at its own strength."""
        found: dict[str, dict[str, float]] = {}
        if steering is None:
            return found
        for site, edit in steering.edits.items():
            facts = steering.provenance.get("sites", {}).get(str(site), {})
            one = {name: facts[name] for name in ("alpha", "alpha_debiased", "rho") if _finite(facts.get(name))}
            if _finite(facts.get("eta")) and facts.get("beta"):
                one["eta"] = facts["eta"] * (edit.beta / facts["beta"]) ** 2
            found[str(site)] = one
        return found

    def described(self, steering: Steering) -> dict[str, Any]:
        """What a steering is, for the provenance."""
        return {
            "method": steering.method,
            "scope": steering.scope,
            "sites": [str(site) for site in sorted(steering.edits)],
            "provenance": dict(steering.provenance),
        }

    def _key(self, steering: Steering | None) -> dict[str, Any]:
        edits: Mapping[Any, Any] = {} if steering is None else steering.edits
        return {
            "model": self._weights,
            "dtype": str(self.model.dtype),
            "scope": None if steering is None else str(steering.scope),
            "edits": {str(site): tensors_digest(edit.tensors(), edit.facts()) for site, edit in edits.items()},
        }


def _effect(value: Mapping[str, Sequence[Any]]) -> NeutralEffect:
    return NeutralEffect(**{name: tuple(items) for name, items in value.items()})


def _hash(values: Any) -> str:
    return hashlib.sha256(repr(tuple(values)).encode(errors="surrogatepass")).hexdigest()[:24]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
