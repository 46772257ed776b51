"""The search on a model in which the recipes are planted; its converses; interruptions."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InputError
from interp.judges import LexiconJudge, Question, Scores
from interp.judging.question import one_hot
from interp.sealing import digest
from saes.primitives.coverage import cover, cover_emotion, shuffled_labels
from saes.primitives.planning import Effort
from saes.primitives.recipe_search import Candidates, SearchConfig, most_trials, search_recipe
from saes.primitives.results import CONDITIONS, Coverage
from saes.primitives.writing import Writer
from tests.primitives.planted_recipes import NOISE, PAIR, PROMPTS, SINGLE, judges, plant, setup


class Blind:
    """Chooses at random, by text: labels that have nothing to do with what is written."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        n = len(question.options)
        names = sorted(question.options)
        picks = [names[int(digest([text, self.name])[:12], 16) % n] for text in texts]
        return Scores(self.name, question, one_hot([question.options.index(pick) for pick in picks], n))


@pytest.fixture(scope="module")
def coverage() -> Coverage:
    return cover({"emotion0": SINGLE, "emotion1": PAIR, "emotion2": NOISE}, setup())


def test_a_planted_feature_is_found_and_its_controls_do_nothing(coverage: Coverage):
    cell = coverage.cells[0]
    assert cell.chosen is not None and cell.chosen.features == (0,) and cell.kind == "naming"
    assert cell.chosen.terms[0].strength > 0
    assert [one.name for one in cell.conditions] == list(CONDITIONS)
    held = {one.name: one for one in cell.conditions}
    assert held["steered"].strict and held["steered"].soft and held["steered"].hits == held["steered"].answers == 6
    assert {name: held[name].hits for name in CONDITIONS[1:]} == dict.fromkeys(CONDITIONS[1:], 0)


def test_a_composition_is_found_which_neither_feature_gives_alone(coverage: Coverage):
    cell = coverage.cells[1]
    assert cell.chosen is not None and set(cell.chosen.features) == {1, 2} and cell.kind == "recipe"
    assert all(term.strength > 0 for term in cell.chosen.terms)
    assert cell.conditions[0].strict
    alone = [trial for trial in cell.search if len(trial.spec.terms) == 1]
    assert len(alone) == 8 and max(trial.hit for trial in alone) < 0.1


def test_nothing_is_reported_where_no_feature_is(coverage: Coverage):
    cell = coverage.cells[2]
    assert cell.chosen is None and len(cell.search) > 6, "singles and pairs were tried"
    assert [one.name for one in cell.conditions] == ["zero", "prompt only"]
    assert coverage.strict[0] == 2 and coverage.soft[0] == 2
    assert coverage.passes("strict", "zero") == 0


@pytest.mark.parametrize("candidates", [SINGLE, PAIR, NOISE, Candidates(), Candidates(selves=(5,))])
def test_the_plan_charges_what_is_done_and_no_recipe_where_there_is_no_candidate(candidates: Candidates):
    """Texts written and answers given; only a search that ends without a recipe does less."""
    shared = setup(trials=1_000)
    shared = dataclasses.replace(shared, prompts=PROMPTS, search=dataclasses.replace(shared.search, seeds=(1000,)))
    effort, seeds = Effort(1_000, len(PROMPTS), 8), len(shared.seeds)
    cell, possible = cover_emotion("emotion0", candidates, shared), most_trials(candidates, shared.search)
    charged = effort.prompts + sum(effort.texts(seeds, possible))
    calls = 3 * effort.prompts + effort.calls(seeds, 3, possible)
    assert len(cell.search) <= possible
    assert shared.writer.written <= charged and sum(shared.panel.asked.values()) <= calls
    if len(cell.search) == possible and (cell.chosen is not None or not candidates.all):
        assert shared.writer.written == charged
    if not candidates.all:
        assert cell.chosen is None and charged == (1 + 2 * seeds) * len(PROMPTS)


def test_the_pair_is_not_found_without_one_of_its_features():
    cell = cover_emotion("emotion1", Candidates(naming=(1, 5), selves=(6,)), setup())
    assert not any(one.name == "steered" and one.strict for one in cell.conditions)


def test_other_emotions_dealt_out_to_the_texts_are_not_hit(coverage: Coverage):
    assert coverage.shuffled is not None
    assert coverage.shuffled.hits == 0 and coverage.shuffled.strict == 0 and coverage.shuffled.cells == 2
    again = shuffled_labels(coverage.cells, coverage.emotions)
    assert again == coverage.shuffled


def test_with_labels_unrelated_to_the_texts_nothing_passes():
    """Five blind judges, eight emotions, one text a seed: 2.6e-4 of cells pass by chance, 0.001 of four."""
    shared = setup(panel=tuple(Blind(f"blind{i}") for i in range(5)), trials=16)
    found = cover({f"emotion{i}": c for i, c in enumerate((SINGLE, PAIR, NOISE, NOISE))}, shared)
    assert found.strict[0] == 0 and found.chance_strict < 3e-4


def test_the_search_and_the_confirmation_share_no_seed():
    shared = setup()
    search_recipe("emotion0", SINGLE, shared.template, shared.writer, shared.panel, PROMPTS, shared.search)
    with pytest.raises(InputError, match=r"seeds \[1\] are of the search"):
        type(shared)(**{**vars(shared), "search": SearchConfig(seeds=(1,))})


def test_coverage_survives_the_trip_through_json(coverage: Coverage):
    import json

    text = json.dumps(coverage.to_json(), allow_nan=False)
    again = Coverage.from_json(json.loads(text))
    assert again == coverage
    with pytest.raises(InputError, match="a coverage of emotions has"):
        Coverage.from_json({**coverage.to_json(), "extra": 1})


class Killed(BaseException):
    """The process ends here."""


class Stopping(LexiconJudge):
    """A judge that is killed at its n-th call, and counts what it was asked."""

    seen: list[tuple[str, str, int]]
    calls: int

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        self.__dict__["calls"] -= 1
        if self.calls == 0:
            raise Killed
        self.seen.extend((text, question.text, seed) for text in texts)
        return super().score(texts, question, seed=seed)


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_run_killed_between_answers_or_texts_goes_on(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    todo = {"emotion0": SINGLE, "emotion1": PAIR}
    whole = cover(todo, setup(tmp_path / "whole", trials=14, batch_size=8))
    seen: list[tuple[str, str, int]] = []
    batches: list[Any] = []
    calls: list[int] = []
    kills, cut = 0, None

    def stopping(left: int) -> tuple[Stopping, ...]:
        made = tuple(Stopping(name=judge.name) for judge in judges())
        for one in made:
            one.__dict__.update(seen=[], calls=left)
        made[0].__dict__["seen"] = seen
        return made

    original = Writer._batch

    def counted(self: Any, requests: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2 * stop + 1:
            raise Killed
        found = original(self, requests)
        batches.extend(requests)
        return found

    monkeypatch.setattr(Writer, "_batch", counted)
    for left in (stop, 10**6, 10**6):
        try:
            cut = cover(todo, setup(tmp_path / "cut", stopping(left), trials=14, batch_size=8))
        except Killed:
            kills += 1
    assert kills == 2 and cut == whole
    assert len(set(seen)) == len(seen), "nothing was put to the judge twice"
    written = {(r.way.steering, r.way.instruction, r.prompt, r.seed) for r in batches}
    assert len(written) == len(batches), "no text was written twice"


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="strengths other than 0"):
        SearchConfig(strengths=(0.0,))
    shared = setup()
    with pytest.raises(InputError, match="unknown category 'envy'"):
        cover({"envy": SINGLE}, shared)
    found = search_recipe("emotion0", Candidates(), shared.template, shared.writer, shared.panel, PROMPTS)
    assert found.chosen is None and found.trials == ()


def test_the_planted_pair_cancels_what_hides_it():
    _, sae, _ = plant()
    rows = sae.W_dec.detach()
    assert np.allclose(rows.norm(dim=1), 0.17, atol=1e-6)
    assert (rows[1] + rows[2]).norm() < 0.5 * (rows[1].norm() + rows[2].norm())
