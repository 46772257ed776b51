"""The plan before a run: counts against counting, the cut to a budget, outlines from shapes alone, early refusals."""

import dataclasses
import itertools
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.bench.shapes import spec_of
from interp.errors import InputError
from saes.primitives.options import FEW, PrimitivesConfig, check_early, data_of, emotion_set, emotions_of
from saes.primitives.planning import EFFORTS, Effort, Speeds, _memory, _Shapes, fitted, outline
from saes.primitives.results import CONDITIONS, UNSTEERED

QUICK = Speeds(tokens_per_second=1e6, seconds_per_call=1e-6)
LLAMA: dict[str, Any] = {"model": "llama-3.1-8b-instruct", "sae": "llama_scope:l15r_32x"}
GEMMA: dict[str, Any] = {
    "model": "gemma-2-9b-it", "sae": "gemma_scope:layer_20/width_131k/average_l0_81",
}  # fmt: skip


MANY = 100


def test_work_equals_what_is_counted_one_by_one():
    effort = Effort(trials=2, prompts=3, tokens=10)
    search = list(itertools.product(range(2), range(3)))
    conditions = list(itertools.product(CONDITIONS, range(4), range(3)))
    assert effort.texts(4) == (len(search), len(conditions))
    answers = [(judge, text) for judge in range(5) for text in [*search, *conditions, *conditions]]
    assert effort.calls(4, 5) == len(answers)
    speeds = Speeds(tokens_per_second=20.0, seconds_per_call=0.5)
    assert effort.seconds(4, 5, speeds) == pytest.approx(78 * 10 / 20 + len(answers) / 2)
    assert effort.texts(4, 1) == (3, len(conditions))
    unsteered = list(itertools.product(UNSTEERED, range(4), range(3)))
    assert effort.texts(4, 0) == (0, len(unsteered)) and effort.calls(4, 5, 0) == 2 * 5 * len(unsteered)


def test_enough_time_cuts_nothing():
    fit = fitted(600, [MANY] * 27, seeds=2, judges=5, speeds=QUICK)
    assert fit.effort == EFFORTS[0] and fit.n_emotions == 27 and fit.cut == ()


@pytest.mark.parametrize("seconds_per_call", [0.001, 0.02])
def test_less_time_is_kept_to_and_never_means_more_work(seconds_per_call: float):
    speeds, before = Speeds(300.0, seconds_per_call), None
    for left in (3_000, 1_500, 700, 400, 200):
        fit = fitted(left, [MANY] * 8, seeds=2, judges=5, speeds=speeds)
        assert fit.seconds <= left
        work = fit.n_emotions * sum(fit.effort.texts(2)) * fit.effort.tokens
        assert before is None or work <= before
        before = work
        assert bool(fit.cut) == (fit.effort != EFFORTS[0] or fit.n_emotions < 8)


def test_emotions_without_candidates_are_not_charged_for_a_recipe():
    """What suffices for two of eight in full: the others have nothing to search, and nothing is cut."""
    speeds = Speeds(300.0, 0.01)
    full, none = (EFFORTS[0].seconds(2, 5, speeds, possible) for possible in (MANY, 0))
    left = 2 * full + 6 * none + EFFORTS[0].once(5, speeds)
    assert none < full / 4
    fit = fitted(left, [MANY, 0, 0, MANY, 0, 0, 0, 0], seeds=2, judges=5, speeds=speeds)
    assert fit.cut == () and fit.seconds == pytest.approx(left)
    assert fitted(left - 0.1, [MANY, 0, 0, MANY, 0, 0, 0, 0], seeds=2, judges=5, speeds=speeds).cut
    assert fitted(left, [MANY] * 8, seeds=2, judges=5, speeds=speeds).cut
    few = fitted(left, [10] * 2 + [0] * 6, seeds=2, judges=5, speeds=speeds)
    assert few.seconds < left and few.effort == EFFORTS[0], "nor more trials than the candidates allow"


def test_what_is_cut_is_said():
    fit = fitted(10, [MANY] * 27, seeds=2, judges=5, speeds=Speeds(100.0, 0.05))
    assert fit.effort == EFFORTS[-1] and 1 <= fit.n_emotions < 27
    assert fit.cut[0] == "trials: 3 of 24" and fit.cut[-1] == f"about {27 - fit.n_emotions} of 27 emotions"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("options", "parameters", "shape"),
    [(LLAMA, 8_030_261_248, "32 layers of width 4,096"), (GEMMA, 9_241_705_984, "42 layers of width 3,584")],
)
def test_large_models_are_planned_from_their_published_shapes(
    options: dict[str, Any], parameters: int, shape: str, tmp_path: Path
):
    plan = outline(PrimitivesConfig(**options, out=tmp_path / "run", emotions=("all",)))
    assert shape in str(plan["model"]) and "131,072 features" in str(plan["sae"])
    assert f"model {2 * parameters / 2**30:,.2f} GiB" in str(plan["memory"])
    assert str(plan["emotions"]).startswith("27 of the 27") and str(plan["paid judges"]).startswith("none")
    assert "minutes here" in str(plan["lens"])
    assert not (tmp_path / "run").exists()


def test_an_sae_that_is_large_beside_the_vocabulary_needs_most_while_it_is_read():
    config = PrimitivesConfig(**LLAMA)
    shapes = _Shapes("llama", spec_of("llama-3.1-8b"), 2**34, torch.bfloat16, "made up")
    lens, rows = 4 * 4096 * 128_256 / 2**30, 4 * 4096 * 2**17 / 2**30
    at_most = f"at most about {16 + lens + 0.25 + 3 * rows + 0.25:.2f} GiB"
    assert _memory(config, shapes, 2**17).startswith(at_most)
    shapes = dataclasses.replace(shapes, spec=dataclasses.replace(shapes.spec, d_vocab=50_000))
    assert _memory(config, shapes, 2**17).startswith(f"at most about {16 + 4 * rows:.2f} GiB (model")


@pytest.mark.usefixtures("no_network")
def test_calls_and_tokens_of_paid_judges_are_stated(tmp_path: Path):
    config = PrimitivesConfig(
        **LLAMA, out=tmp_path, judges=("a", "b"), endpoint="http://127.0.0.1:9/v1", emotions=("joy", "awe")
    )
    plan = outline(config)
    before = 25 + 8  # scenes of known emotion, texts by which speeds are measured
    low, high = (2 * (before + one.prompts) + 2 * one.calls(2, 2) for one in (EFFORTS[-1], EFFORTS[0]))
    assert f"{low:,} to {high:,} calls of a, b at http://127.0.0.1:9/v1" in str(plan["paid judges"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emotions": ("joy", "hiraeth")}, "unknown emotion 'hiraeth' in cowen-keltner-2017; known: admiration"),
        ({"categories": "press"}, "there are no categories 'press'"),
        ({"sae": "gemma_scope:layer_20/width_131k/average_l0_81"}, "is for the model gemma-2-9b-it, and is asked"),
        (LLAMA | {"site": "resid_post.16"}, r"for the site blocks\.15\.hook_resid_post, not blocks\.16"),
        (LLAMA | {"sae": "llama_scope:l16r_32x"}, "there is no preset for 'llama_scope:l16r_32x'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        check_early(PrimitivesConfig(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": ("gpt",)}, "judges gpt are models behind an endpoint: give its address"),
        ({"endpoint": "http://localhost/v1"}, "an endpoint was given, and no judge that is behind it"),
        ({"judges": ()}, "expected one judge or more"),
        ({"budget": 0.0}, "a budget above 0 minutes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        PrimitivesConfig(**options)


def test_an_empty_word_list_is_refused(tmp_path: Path):
    (tmp_path / "own.json").write_text(json.dumps({"name": "own", "words": {"joy": ["joy"], "fear": []}}))
    with pytest.raises(InputError, match="expected a list of words for 'fear', none of them empty"):
        check_early(PrimitivesConfig(categories=str(tmp_path / "own.json")))


def test_a_base_model_may_use_the_sae_trained_on_it():
    check_early(PrimitivesConfig(**LLAMA | {"model": "llama-3.1-8b"}))


def test_the_emotions_asked_for_come_in_the_order_of_the_set():
    known = emotion_set(PrimitivesConfig())
    assert set(emotions_of(PrimitivesConfig(), known)) == set(FEW)
    assert emotions_of(PrimitivesConfig(emotions=("joy", "awe")), known) == ("awe", "joy")
    press = emotion_set(PrimitivesConfig(categories="press-release"))
    assert "anger" not in emotions_of(PrimitivesConfig(categories="press-release"), press)
    assert emotions_of(PrimitivesConfig(emotions=("all",)), press) == press.names


def test_texts_of_another_language_take_the_place_of_the_bundled_ones(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"first": "Je marche.", "third": "Elle marche."}\n')
    config = PrimitivesConfig(person_pairs=tmp_path / "p.jsonl")
    data = data_of(config, emotion_set(config))
    assert data.persons == (("Je marche.", "Elle marche."),) and len(data.registers["show-dont-tell"]) == 60
