"""The judges that run here: what they read, against plain forward passes, and what they leave out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.judging.logprob import NEUTRAL
from interp.model import HookedModel
from saes.primitives.categories import Categories, categories
from saes.primitives.coverage import judge_validity
from saes.primitives.local_judges import ExamplesJudge, WordsJudge, known_examples, local_panel
from saes.primitives.panel_runs import PanelRun
from tests.primitives.planted_recipes import plant

WORDING = "{text} f1 f2"


@pytest.fixture(scope="module")
def planted() -> tuple[HookedModel, Categories]:
    model, _, emotions = plant()
    return model, emotions


def test_words_are_read_from_the_next_token_and_calibrated(planted: tuple[HookedModel, Categories]):
    """Against one forward pass a text, probabilities summed in float64."""
    model, emotions = planted
    question = PanelRun((WordsJudge(model, WORDING),), emotions).question
    texts = ["f3 f4", "f10 f11 f12 f13", ""]

    def plain(text: str) -> np.ndarray:
        batch = model.to_tokens([WORDING.replace("{text}", text)])
        with torch.no_grad():
            p = model.hf(batch.tokens[:, : int(batch.lengths[0])]).logits[0, -1].double().softmax(-1)
        ids = model.tokenizer.get_vocab()
        spelled = [
            sorted({ids[s] for w in emotions.words[name] for s in (w, w.capitalize())}) for name in emotions.names
        ]
        return np.array([float(p[some].mean().log()) for some in spelled])

    expected = np.stack([plain(text) for text in texts]) - np.mean([plain(text) for text in NEUTRAL], axis=0)
    expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    found = WordsJudge(model, WORDING).score(texts, question).weights
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    alone = [WordsJudge(model, WORDING).score([text], question).weights[0] for text in texts]
    np.testing.assert_allclose(found, alone, rtol=1e-4)


def _embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of letters, at length 1."""
    rows = np.array([[text.count(letter) + 1e-3 for letter in "abcdef"] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_text_does_not_speak_for_itself_as_an_example():
    emotions = Categories("two", ("joy", "awe"), {"joy": ("joy",), "awe": ("awe",)})
    examples = {"joy": ("aaa", "bbb"), "awe": ("ccc", "ddd")}
    run = PanelRun((ExamplesJudge(emotions, examples, _embed),), emotions)
    assert [vote["examples"] for vote in run.votes(["aab", "ccd"], seed=0)] == ["joy", "awe"]
    weights = run.weights(["aaa"], seed=0)[0, 0]
    assert weights[0] == pytest.approx(0.5, abs=0.01), "without itself, nothing says that it is joy"
    assert run.says(["aab", "ccd"], "joy", seed=0) == [{"examples": True}, {"examples": False}]
    with pytest.raises(InputError, match="'awe' has fewer than two examples"):
        ExamplesJudge(emotions, {"joy": ("a", "b"), "awe": ("c",)}, _embed)


def test_the_panel_has_five_judges_and_examples_for_all_27(planted: tuple[HookedModel, Categories]):
    model, _ = planted
    known = known_examples(categories())
    assert sorted({len(some) for some in known.values()}) == [5, 10]
    names = [judge.name for judge in local_panel(model, categories())]
    assert names == ["feeling", "narrator", "embedding", "examples", "lexicon"]
    assert len(local_panel(model, planted[1])) == 4, "of other emotions there are no examples"


def test_validity_counts_right_answers_and_unread_ones():
    class Fixed:
        name = "fixed"

        def score(self, texts, question, *, seed=0):
            from interp.judges import LexiconJudge

            return LexiconJudge().score(texts, question, seed=seed)

    run = PanelRun((Fixed(),), categories())
    found = judge_validity(run, [("joy", "so much joy"), ("awe", "so much joy"), ("awe", "nothing")])
    assert found == {"fixed": (1, 3, 1), "majority": (1, 3, 0)}


def test_a_wording_needs_its_slot(planted: tuple[HookedModel, Categories]):
    with pytest.raises(InputError, match="exactly once"):
        WordsJudge(planted[0], "What is it?")
