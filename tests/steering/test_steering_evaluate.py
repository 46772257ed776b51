"""One evaluation on a tiny model: strengths that compare, steps that are kept, scopes, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.corpus import Document
from interp.errors import InputError
from interp.judges import LexiconJudge, Question, Scores
from interp.model import HookedModel
from interp.multiple_choice import read_items
from interp.sites import Site
from interp.steering.baselines import RANDOM, fit_methods, matched_betas, mean_eta
from interp.steering.contrast import ContrastSet, read_contrast
from interp.steering.edits import AffineEdit
from interp.steering.evaluate import concept_question, evaluate
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.fit import Settings
from interp.steering.methods import Recipe
from interp.steering.prompts import fitting_prompts, prompts_of
from interp.steering.steering import Steering
from tests.tiny_models import tiny

SITE = Site.parse("resid_post.1")
SMALL = EvaluationConfig(
    betas=(1.0, 3.0), n_prompts=3, max_new_tokens=4, neutral_documents=2, neutral_length=12, questions=3, samples=1
)
DOCUMENTS = [Document(f"d{i}", f"Number {i}: " + "rain falls on the hills and the rivers rise. " * 4) for i in range(4)]
JUDGES = [LexiconJudge()]


@pytest.fixture(scope="module")
def model(smollm2) -> HookedModel:
    return HookedModel.wrap(tiny("llama", vocab_size=len(smollm2.tokenizer)), smollm2.tokenizer)


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return read_contrast("horse-motorcycle")


@pytest.fixture(scope="module")
def methods(model: HookedModel, contrast: ContrastSet) -> dict[str, Steering]:
    settings = Settings(Recipe("midsteer", calibrate=False), level=None)
    return fit_methods(model, fitting_prompts(contrast, chat=True, n=24), SITE, settings=settings)


def test_matched_strengths_disturb_neutral_activations_alike(
    model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering]
):
    """On the very rows that the fit was measured on, recomputed here; at equal β they are far apart."""
    prompts = fitting_prompts(contrast, chat=True, n=24)
    batch = model.to_tokens(prompts.neutral)
    with torch.no_grad():
        acts = model.capture(batch.tokens, [SITE], lengths=batch.lengths)[SITE].double()
    keep = ~batch.template
    rows = torch.stack([x[k].mean(0) for x, k in zip(acts, keep, strict=True)])
    weight = keep.sum(1).double()

    def moved(name: str, beta: float) -> float:
        edit = methods[name].at(beta).edits[SITE]
        return float(weight @ (edit(rows.float()).double() - rows).square().sum(1) / weight.sum())

    betas = matched_betas(methods, "midsteer", (0.5, 2.0))
    for i, beta in enumerate((0.5, 2.0)):
        wanted = moved("midsteer", beta)
        for name in methods:
            assert moved(name, betas[name][i]) == pytest.approx(wanted, rel=2e-3), name
    sizes = [mean_eta(steering) for steering in methods.values()]
    assert max(sizes) > 3 * min(sizes)


def test_the_random_direction_is_no_relation_of_the_concept(methods: dict[str, Steering]):
    random, add = (methods[name].edits[SITE] for name in (RANDOM, "add"))
    assert isinstance(random, AffineEdit) and isinstance(add, AffineEdit)
    assert random.rank == 0 and random.delta is not None and add.delta is not None
    assert abs(float(torch.cosine_similarity(random.delta, add.delta, dim=0))) < 0.5


def test_a_steering_that_does_nothing_changes_nothing(
    model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering]
):
    """β so small that activations stay as they are: no KL, no change, and the random stream is shared."""
    off = {"off": methods["midsteer"].at(1e-30)}
    found = evaluate(
        model, off, contrast, judges=JUDGES, neutral=DOCUMENTS, betas={"off": (1e-30,)},
        config=EvaluationConfig(**{**vars(SMALL), "temperature": 1.0}), questions=read_items(), show=False,
    )  # fmt: skip
    (point,) = found.of("off")
    assert point.kl.value == pytest.approx(0, abs=1e-6) and point.accuracy is not None
    assert point.accuracy.change.value == 0
    for one in point.sets.values():
        assert one.change["lexicon"].mean.value == 0 and one.change["lexicon"].wrong_way.value == 0
        assert one.change["lexicon"].p == 1
    for sample in found.samples:
        assert sample["texts"]["unsteered"] == sample["texts"]["off, β = 1e-30"]


class Interrupted(Exception):
    pass


class Failing(LexiconJudge):
    """Reads what is given, and fails on the fifth set of texts."""

    left = 4

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        if type(self).left == 0:
            raise Interrupted
        type(self).left -= 1
        return super().score(texts, question, seed=seed)


def test_an_interrupted_evaluation_goes_on_and_finds_the_same(
    model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    pair = {name: methods[name] for name in ("midsteer", "add")}

    def run(out: Path, judge: LexiconJudge) -> object:
        return evaluate(model, pair, contrast, judges=[judge], neutral=DOCUMENTS, config=SMALL, out=out, show=False)

    whole = run(tmp_path / "whole", LexiconJudge())
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Failing())
    calls = []
    from interp.steering import evaluation_steps

    real = evaluation_steps.generate_texts
    monkeypatch.setattr(
        evaluation_steps, "generate_texts", lambda *args, **named: calls.append(1) or real(*args, **named)
    )
    done = len(list((tmp_path / "cut" / "records").glob("text-*")))
    assert run(tmp_path / "cut", LexiconJudge()) == whole
    assert 0 < done < 6 and len(calls) == 6 - done
    assert run(tmp_path / "cut", LexiconJudge()) == whole and len(calls) == 6 - done


def test_a_scope_of_generated_tokens_is_measured_on_neutral_text_and_questions_too(
    model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering]
):
    strong = Steering(methods["add"].edits, "generated", methods["add"].provenance, "add")
    found = evaluate(
        model, {"add": strong}, contrast, judges=JUDGES, neutral=DOCUMENTS, betas={"add": (50.0,)}, config=SMALL,
        questions=read_items(), show=False,
    )  # fmt: skip
    (point,) = found.of("add")
    assert point.kl.value > 0.01 and point.accuracy is not None


def test_analytic_numbers_go_with_the_strength(model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering]):
    found = evaluate(
        model, {"midsteer": methods["midsteer"]}, contrast, judges=JUDGES, neutral=DOCUMENTS, config=SMALL, show=False
    )
    one, three = (point.analytic[str(SITE)] for point in found.of("midsteer"))
    assert three["eta"] == pytest.approx(9 * one["eta"]) and three["rho"] == one["rho"]
    assert found.points[0].accuracy is None


def test_prompts_are_held_out_and_a_text_set_gives_openings(contrast: ContrastSet):
    found = prompts_of(contrast, n=10)
    assert {p.text for p in found["source"]} <= set(contrast.held_out.source)
    assert not {p.text for p in found["unrelated"]} & set(contrast.train.unrelated)
    texts = prompts_of(read_contrast("sentiment"), n=5)
    assert set(texts) == {"source", "target", "open", "unrelated"}
    for prompt in texts["source"]:
        assert not prompt.instruction
        assert any(text.startswith(prompt.text) for text in read_contrast("sentiment").held_out.source)
    assert prompts_of(contrast, n=10) == found and prompts_of(contrast, n=10, seed=1) != found


def test_judges_get_a_question_with_a_way_out(contrast: ContrastSet):
    question = concept_question(contrast)
    assert question.options == ("horses", "motorcycles", "neither")
    scores = LexiconJudge().score(["The horse neighed.", "A motorcycle roared past.", "Tea is hot."], question)
    shift = np.nan_to_num(scores.weight("motorcycles") - scores.weight("horses"))
    assert shift[0] < 0 < shift[1] and shift[2] == 0


def test_what_cannot_be_compared_is_refused(model: HookedModel, contrast: ContrastSet, methods: dict[str, Steering]):
    def run(given: dict[str, Steering], **options: object) -> None:
        evaluate(model, given, contrast, **{"judges": JUDGES, "neutral": DOCUMENTS, "config": SMALL} | options)  # pyright: ignore[reportArgumentType]

    with pytest.raises(InputError, match="one method and one judge"):
        run({})
    with pytest.raises(InputError, match="prompt is measured anyway"):
        run({"prompt": methods["add"]})
    with pytest.raises(InputError, match="betas for flop, but the methods are flip"):
        run({"flip": methods["flip"]}, betas={"flop": (1.0,)})
    with pytest.raises(InputError, match="two judges have the same name"):
        run({"flip": methods["flip"]}, judges=[LexiconJudge(), LexiconJudge()])
    hand = Steering.of(model, {SITE: methods["add"].edits[SITE]})
    with pytest.raises(InputError, match="does not say what it disturbs"):
        matched_betas({"hand": hand}, "hand", (1.0,))
