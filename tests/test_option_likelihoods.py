"""Log-probabilities of options: against a plain run, options that begin one another, batches, edits."""

import itertools
import math

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.judging.likelihood import option_likelihoods
from interp.model import HookedModel
from interp.multiple_choice import Item, multiple_choice_accuracy, read_items
from tests.tiny_models import tiny


def _plain(model: HookedModel, context: str, option: str) -> float:
    """log P by Hugging Face alone: one row, one option, nothing shared."""
    ids = model.tokenizer(context + option, add_special_tokens=False).input_ids
    n = len(model.tokenizer(context, add_special_tokens=False).input_ids)
    with torch.no_grad():
        logp = torch.log_softmax(model.hf(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(logp[i - 1, ids[i]]) for i in range(n, len(ids)))


CONTEXTS = [
    "The capital of France is",
    "Q: what is the sky like on a clear summer day?\nA:",
    "Once upon a time there was",
]
OPTIONS = [
    [" Paris", " the city of Lyon", " Rome"],
    [" blue", " grey and dull", " blue green"],
    [" a", " one", " an old"],
]


def test_sums_agree_with_a_plain_run(smollm2: HookedModel):
    found = option_likelihoods(smollm2, CONTEXTS, OPTIONS)
    for i, j in itertools.product(range(3), range(3)):
        expected = _plain(smollm2, CONTEXTS[i], OPTIONS[i][j])
        if (i, j) == (1, 0):  # " blue" is continued by " blue green": what goes on is taken off
            expected += math.log1p(-math.exp(_plain(smollm2, CONTEXTS[1], " blue green") - expected))
        assert found.sums[i, j] == pytest.approx(expected, abs=2e-4)
    assert found.tokens[0].tolist() == [1, 4, 1] and np.allclose(found.per_token[:, 0], found.sums[:, 0])


def test_batches_and_order_change_nothing(smollm2: HookedModel):
    whole = option_likelihoods(smollm2, CONTEXTS, OPTIONS).sums
    alone = option_likelihoods(smollm2, CONTEXTS, OPTIONS, token_budget=1).sums
    turned = option_likelihoods(smollm2, CONTEXTS[::-1], [some[::-1] for some in OPTIONS[::-1]]).sums
    assert np.allclose(whole, alone, atol=2e-4) and np.allclose(whole, turned[::-1, ::-1], atol=2e-4)


def test_ten_is_not_counted_for_one(smollm2: HookedModel):
    """SmolLM2 splits "10" into two digits: the plain sum of "1" holds every answer "10", "17" and "1000"."""
    numbers = [str(n) for n in range(11)]
    assert len(smollm2.tokenizer("10", add_special_tokens=False).input_ids) == 2
    context = "From 0 to 10, ten being the best, I give it full marks, a perfect "
    found = option_likelihoods(smollm2, [context], [numbers])
    one, ten = (_plain(smollm2, context, n) for n in ("1", "10"))
    assert one > ten, "a sum alone could never choose the longer"
    assert math.exp(found.sums[0, 1]) == pytest.approx(math.exp(one) - math.exp(ten), rel=1e-3)
    assert found.sums[0, 10] == pytest.approx(ten, abs=2e-4)
    assert np.exp(found.sums).sum() <= 1 + 1e-6


def test_options_of_one_token_share_a_row(smollm2: HookedModel):
    seen: list[int] = []
    site = "resid_pre.0"

    def count(x, where):
        seen.append(len(x))
        return x

    option_likelihoods(smollm2, CONTEXTS[:1], [[" Paris", " Rome", " London"]], edits={site: count})
    assert sum(seen) == 1
    seen.clear()
    option_likelihoods(smollm2, ["Give a number:"], [[" 1", " 10", " 2", " 20"]], edits={site: count})
    assert sum(seen) == 2, "blank and digits are tokens of their own: one row behind ' 1', one behind ' 2'"


@pytest.mark.parametrize(
    ("contexts", "options", "message"),
    [
        ([], [], "0 contexts and 0 lists"),
        (["a", "b"], [["c", "d"], ["c"]], "all of one length"),
        (["a b"], [["", "c"]], "the option '' is empty"),
        (["a b"], [[" c", " c"]], "the same tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(smollm2: HookedModel, contexts, options, message: str):
    with pytest.raises(InputError, match=message):
        option_likelihoods(smollm2, contexts, options)


def test_the_questions_are_sound():
    items = read_items()
    assert len(items) >= 150 and len({item.question for item in items}) == len(items)
    assert all(len(set(item.options)) == 4 for item in items)
    places = np.bincount([item.answer for item in items], minlength=4)
    assert places.max() - places.min() <= 1, "the right answer stands in every place equally often"
    longest = [max(range(4), key=lambda k: len(item.options[k])) == item.answer for item in items]
    assert np.mean(longest) < 0.4, "taking the longest option is near chance, a quarter"


def test_smollm2_knows_some_of_the_answers_and_loses_them_under_an_edit(smollm2: HookedModel):
    items = read_items()[::8]
    clean = multiple_choice_accuracy(smollm2, items)
    assert clean.correct.tolist() == (clean.chosen == [item.answer for item in items]).tolist()
    assert (clean.margin > 0).tolist() == clean.correct.tolist()
    # 20 questions: chance gives 11 or more right with probability 0.004
    assert clean.correct.sum() >= 11
    noise = torch.randn(576, generator=torch.Generator().manual_seed(0))
    broken = multiple_choice_accuracy(smollm2, items, {"resid_post.10": lambda x, where: 0 * x + noise})
    assert broken.correct.sum() <= 10
    same = multiple_choice_accuracy(smollm2, items[:3], {"resid_post.10": lambda x, where: x})
    assert np.allclose(same.scores, clean.scores[:3], atol=1e-4)


def test_questions_of_ones_own_and_what_is_refused(tmp_path, smollm2: HookedModel):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "2 + 2?", "options": ["4", "5"], "answer": 0}\n')
    assert read_items(path) == (Item("2 + 2?", ("4", "5"), 0, ""),)
    for text, message in (
        ("{", "line 1 is not JSON"),
        ('{"question": "x", "options": ["a", "a"], "answer": 0}', "two or more different ones"),
        ('{"question": "x", "options": ["a", "b"], "answer": 2}', "index of the right one"),
        ("", "all with equally many options"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_items(path)
    with pytest.raises(InputError, match=r"must have \{question\} exactly once"):
        multiple_choice_accuracy(smollm2, read_items()[:1], prompt="Answer:")


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(InputError, match="tokenizer"):
        option_likelihoods(HookedModel.wrap(tiny("llama")), ["a"], [["b", "c"]])
