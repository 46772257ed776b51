"""Panel runs: orders of options, votes, chance, agreement, and answers that are asked for once, at a real endpoint."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from interp.errors import InputError
from interp.judges import Endpoint, EndpointJudge, LexiconJudge, Question, Scores
from interp.judging.question import one_hot
from interp.stats import wilson
from saes.primitives.categories import categories
from saes.primitives.kept import Kept
from saes.primitives.panel_runs import PanelRun, agreement, described
from saes.primitives.results import Condition, Sample, chances
from tests.chat_endpoint import ChatServer, serving

TEXTS = ["She was full of joy.", "He felt only boredom.", "Nothing of the kind.", "Such awe."]


class First:
    """Chooses whatever option stands first: the judge that shuffled options are there for."""

    name = "first"

    def __init__(self) -> None:
        self.asked: list[tuple[str, Question]] = []

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        self.asked += [(text, question) for text in texts]
        return Scores(self.name, question, one_hot([0] * len(texts), len(question.options)))


class Server(ChatServer):
    """Answers with the category that the text names, "hard to say" without one; refuses after some answers."""

    def __init__(self) -> None:
        super().__init__(self._said)
        self.refuse_after: int | None = None

    def _said(self, body: dict[str, Any]) -> str | None:
        if self.refuse_after is not None and len(self.seen) >= self.refuse_after:
            return None
        asked = body["messages"][-1]["content"]
        named = categories().named_in(asked.split("</text>")[0])
        return "yes" if "Does the text" in asked else (named or ("hard to say",))[0]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def _judge(server: Server, name: str) -> EndpointJudge:
    return EndpointJudge(Endpoint(server.url, name, retries=0, concurrency=2), name=name)


def test_a_judge_that_takes_the_first_option_chooses_all_emotions_alike():
    texts = [f"text {i}" for i in range(400)]
    judge = First()
    run = PanelRun((judge,), categories(), orders=64)
    counts = Counter(vote["first"] for vote in run.votes(texts, seed=0))
    assert len(counts) > 18 and max(counts.values()) < 60, counts
    again = PanelRun((First(),), categories(), orders=64)
    assert again.votes(texts, seed=0) == run.votes(texts, seed=0), "the order is a function of text and seed"
    assert again.votes(texts, seed=1) != run.votes(texts, seed=0)
    assert again.votes(texts[7:9], seed=0) == run.votes(texts, seed=0)[7:9]
    for _, question in judge.asked[:50]:
        at = question.options.index("joy")
        assert question.descriptions[at] == described("joy", categories())
        assert question.words[at] == categories().words["joy"], "what goes with an option moves with it"


def test_votes_and_unreadable_answers():
    run = PanelRun((LexiconJudge(), LexiconJudge(name="other")), categories())
    votes = run.votes(TEXTS, seed=0)
    assert [vote["lexicon"] for vote in votes] == ["joy", "boredom", None, "awe"]
    assert run.says(TEXTS, "joy", seed=0)[0] == {"lexicon": True, "other": True}
    assert run.says(TEXTS, "joy", seed=0)[2]["lexicon"] is None
    samples = [
        Sample("steered", seed, "p", text, vote, {}, -1.0, 0.0)
        for seed in (0, 1)
        for text, vote in zip(TEXTS[:3], votes, strict=False)
    ]
    one = Condition.of("steered", "joy", samples, None)
    assert (one.hits, one.answers, one.failures) == (4, 12, 4) and not one.strict
    assert one.interval == pytest.approx(wilson(4, 12))


@pytest.mark.parametrize(
    ("votes", "strict", "any_seed"),
    [
        (([3], [3]), True, True),
        (([3], [2]), False, True),
        (([2], [2]), False, False),
        (([3, 0, 3], [3, 3, 2]), True, True),
    ],
)
def test_a_majority_of_judges_on_every_seed(votes: tuple[list[int], list[int]], strict: bool, any_seed: bool):
    samples = [
        Sample("x", seed, "p", "t", {f"j{i}": "joy" if i < hits else None for i in range(5)}, {}, 0.0, 0.0)
        for seed, row in enumerate(votes)
        for hits in row
    ]
    one = Condition.of("x", "joy", samples, None)
    assert (one.strict, one.any_seed) == (strict, any_seed)


def test_chances_are_the_binomials():
    """Three of five at 1/27 is 4.8e-4; two seeds square it."""
    p = float(binom.sf(2, 5, 1 / 27))
    assert p == pytest.approx(4.8e-4, rel=2e-3)
    found = chances(5, 27, 2)
    assert found["strict"] == pytest.approx(p**2) and found["any_seed"] == pytest.approx(1 - (1 - p) ** 2)
    assert found["soft"] == pytest.approx(float(binom.sf(5, 10, 0.5)))
    assert chances(5, 27, 1)["strict"] == pytest.approx(p)
    three = chances(5, 27, 2, texts=3)["strict"]
    assert three == pytest.approx(float(binom.sf(1, 3, p)) ** 2)


def test_guessing_judges_pass_as_often_as_the_chance_says():
    rng = np.random.default_rng(0)
    passed, n = 0, 4_000
    for _ in range(n):
        samples = [
            Sample("x", seed, "p", "t", {f"j{j}": "ab"[int(rng.integers(2))] for j in range(5)}, {}, 0.0, 0.0)
            for seed in (0, 1)
        ]
        passed += Condition.of("x", "a", samples, None).strict
    low, high = wilson(passed, n, level=0.999)
    assert low < chances(5, 2, 2)["strict"] < high


def test_agreement_is_fleiss_kappa():
    """Fleiss' own formula, by hand: two texts, all agree; one text, none do."""
    same = [{"a": "joy", "b": "joy"}, {"a": "awe", "b": "awe"}]
    assert agreement(same, ("joy", "awe")) == pytest.approx(1.0)
    apart = [{"a": "joy", "b": "awe"}, {"a": "awe", "b": "joy"}]
    assert agreement(apart, ("joy", "awe")) == pytest.approx(-1.0)
    assert np.isnan(agreement([{"a": "joy"}], ("joy", "awe")))


def test_a_paid_judge_is_asked_once_across_runs_and_seeds(server: Server, tmp_path: Path):
    def run() -> PanelRun:
        return PanelRun((_judge(server, "m1"), _judge(server, "m2")), categories(), tmp_path, chunk=2)

    first = run().votes(TEXTS, seed=0)
    assert len(server.seen) == 8 and [vote["m1"] for vote in first] == ["joy", "boredom", None, "awe"]
    again = run()
    assert again.votes(TEXTS, seed=0) == first and len(server.seen) == 8 and again.asked == {}
    run().votes(TEXTS[:1], seed=1)
    assert len(server.seen) == 10, "another seed is another question"
    run().says(TEXTS[:1], "joy", seed=0)
    run().says(TEXTS[:1], "joy", seed=0)
    assert len(server.seen) == 12
    orders = {body["messages"][-1]["content"].split("answers: ")[1] for body in server.seen[:8]}
    assert len(orders) == 4, "each text has its order, the same for both judges"


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_a_run_that_is_cut_off_pays_for_no_answer_twice(server: Server, tmp_path: Path, after: int):
    server.refuse_after = after
    with pytest.raises(InputError, match="refuses the request with status 401"):
        PanelRun((_judge(server, "m1"), _judge(server, "m2")), categories(), tmp_path, chunk=3).votes(TEXTS, seed=0)
    server.refuse_after = None
    run = PanelRun((_judge(server, "m1"), _judge(server, "m2")), categories(), tmp_path, chunk=3)
    votes = run.votes(TEXTS, seed=0)
    assert len(server.seen) == 8
    assert votes == PanelRun((_judge(server, "m1"), _judge(server, "m2")), categories()).votes(TEXTS, seed=0)


def test_other_settings_of_a_judge_are_other_answers(tmp_path: Path):
    lists = (("joy", ("nothing",)),)
    PanelRun((LexiconJudge(),), categories(), tmp_path).votes(TEXTS, seed=0)
    other = PanelRun((LexiconJudge(lists),), categories(), tmp_path)
    assert other.votes(TEXTS, seed=0)[2]["lexicon"] == "joy" and other.asked == {"lexicon": 4}


def test_bad_panels_are_named():
    with pytest.raises(InputError, match="one judge or more, of different names"):
        PanelRun((), categories())
    with pytest.raises(InputError, match=r"got \['lexicon', 'lexicon'\]"):
        PanelRun((LexiconJudge(), LexiconJudge()), categories())
    with pytest.raises(InputError, match="one or more of each"):
        chances(0, 27, 2)
    with pytest.raises(InputError, match="has no texts"):
        Condition.of("steered", "joy", [], None)


def test_kept_values_survive_a_line_cut_off_anywhere(tmp_path: Path):
    path = tmp_path / "kept.jsonl"
    kept = Kept(path)
    kept.add([({"a": 1}, "x"), ({"a": 2}, "y")])
    whole = path.read_bytes()
    kept.add([({"a": 3}, "z")])
    for end in range(len(whole), len(path.read_bytes())):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(path.read_bytes()[:end])
        again = Kept(cut)
        assert [again.get({"a": i}) for i in (1, 2, 3)] == ["x", "y", None]
        again.add([({"a": 3}, "z")])
        assert cut.read_bytes() == path.read_bytes()
    path.write_bytes(b"{broken\n" + whole)
    with pytest.raises(InputError, match="line 1 is damaged"):
        Kept(path)
