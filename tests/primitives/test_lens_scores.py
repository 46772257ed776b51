"""Scores against a plain float64 reading of the whole f x v matrix, p-values against counting, bad input by name."""

import itertools

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

from interp.errors import InputError
from interp.lens import Lens, fold_norm
from saes.primitives.lens_scores import (
    ENGLISH_PERSONS,
    PERSONS,
    hit_tail,
    naming_of,
    naming_scores,
    read_sets,
    self_scores,
)
from saes.primitives.word_tokens import TokenSets, WordTokens, token_sets

D, V = 24, 300


def sets_of(*sizes: tuple[int, ...], names: tuple[str, ...] = ()) -> TokenSets:
    """Sets of words of so many tokens each, ids counted from 0."""
    ids = itertools.count()
    words = tuple(
        tuple(WordTokens(f"w{s}{i}", tuple(itertools.islice(ids, n))) for i, n in enumerate(of))
        for s, of in enumerate(sizes)
    )
    return TokenSets(names or tuple(f"set{s}" for s in range(len(sizes))), words)


def lens_of(seed: int = 0) -> Lens:
    g = torch.Generator().manual_seed(seed)
    return Lens(fold_norm(torch.randn(V, D, generator=g), torch.rand(D, generator=g) + 0.5, centred=True))


def rows_of(f: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(f, D, generator=torch.Generator().manual_seed(seed))


def plain_readings(rows: Tensor, lens: Lens, sets: TokenSets, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and hits, a feature, a set and a word at a time."""
    logits = rows.double().numpy() @ lens.W.double().numpy().T
    means, hits = np.zeros((len(rows), len(sets.names))), np.zeros((len(rows), len(sets.names)), int)
    for j, line in enumerate(logits):
        promoted = set(np.argsort(-line)[:k].tolist())
        for c, words in enumerate(sets.words):
            means[j, c] = np.mean([np.mean([line[i] for i in word.ids]) for word in words]) / line.std()
            hits[j, c] = sum(bool(promoted & set(word.ids)) for word in words)
    return means, hits


SETS = sets_of((2, 2, 1, 3), (1, 4), (2, 2, 2))


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_chunks_agree_with_the_whole_matrix(chunk_rows: int):
    rows, lens = rows_of(50), lens_of()
    found = read_sets(rows, lens, SETS, top_k=40, chunk_bytes=chunk_rows * 4 * V)
    means, hits = plain_readings(rows, lens, SETS, 40)
    np.testing.assert_allclose(found.means, means, atol=2e-5)
    assert (found.hits == hits).all() and hits.max() >= 2
    for c, words in enumerate(SETS.words):
        tail = hit_tail([len(w.ids) for w in words], 40, V)
        assert (found.p[:, c] == tail[hits[:, c]]).all()


def test_no_more_logits_are_held_at_once_than_allowed():
    shapes = []

    class Watched(Lens):
        def logits(self, directions: Tensor) -> Tensor:
            shapes.append((len(directions), len(self.W)))
            return super().logits(directions)

    read_sets(rows_of(50), Watched(lens_of().W), SETS, top_k=40, chunk_bytes=8 * 4 * V + 3)
    assert shapes == [(8, V)] * 6 + [(2, V)]


def test_scores_are_those_of_the_equations_and_of_no_scale():
    rows, lens = rows_of(30), lens_of()
    m, _ = plain_readings(rows, lens, SETS, 40)
    n = [4, 2, 3]
    s = naming_scores(rows, lens, SETS, top_k=40)
    for j, c in itertools.product(range(30), range(3)):
        a, b = [i for i in range(3) if i != c]
        error = (1 / n[c] + (1 / n[a] + 1 / n[b]) / 4) ** 0.5
        assert s.score[j, c] == pytest.approx((m[j, c] - (m[j, a] + m[j, b]) / 2) / error, abs=1e-4)
    ordered = np.sort(s.score, axis=1)
    np.testing.assert_array_equal(s.second, ordered[:, -2])
    np.testing.assert_allclose(s.margin, ordered[:, -1] - ordered[:, -2])
    scaled = naming_scores(rows * torch.logspace(-6, 6, 30)[:, None], lens, SETS, top_k=40)
    np.testing.assert_allclose(scaled.score, s.score, atol=1e-4)

    persons = TokenSets(PERSONS, SETS.words)
    own = self_scores(rows, lens, persons, top_k=40)
    expected = (m[:, 0] - (m[:, 1] + m[:, 2]) / 2) / (1 / 4 + (1 / 2 + 1 / 3) / 4) ** 0.5
    np.testing.assert_allclose(own.score, expected, atol=1e-4)
    tail = hit_tail([2, 2, 1, 3], 40, V)
    np.testing.assert_allclose(own.p, np.maximum(tail[own.hits], ndtr(-expected)), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(("sizes", "k", "v"), [([2, 1, 3], 4, 9), ([1], 2, 8), ([3, 3], 1, 8), ([2, 2], 7, 8)])
def test_chance_of_hits_is_that_of_counting_every_draw(sizes: list[int], k: int, v: int):
    ends = np.cumsum([0, *sizes])
    words = [set(range(a, b)) for a, b in itertools.pairwise(ends.tolist())]
    hits = [sum(bool(word & set(draw)) for word in words) for draw in itertools.combinations(range(v), k)]
    expected = [np.mean([h >= least for h in hits]) for least in range(len(sizes) + 1)]
    np.testing.assert_allclose(hit_tail(sizes, k, v), expected, rtol=1e-9)


def test_chance_of_hits_stays_exact_for_a_whole_vocabulary_and_long_lists():
    """Of words with one token each it is the hypergeometric tail, here by scipy."""
    from scipy.stats import hypergeom

    tail = hit_tail([1] * 2000, 100, 128_256)
    np.testing.assert_allclose(tail[:12], hypergeom(128_256, 2000, 100).sf(np.arange(12) - 1), rtol=1e-6)
    assert np.isfinite(tail).all()


def test_one_enormous_token_makes_a_score_and_no_discovery():
    sets = sets_of((1,) * 5, (1,) * 5, (1,) * 5)
    lens = Lens(fold_norm(torch.randn(V, 900, generator=torch.Generator().manual_seed(0)), None, centred=False))
    spike = naming_scores(lens.W[:1], lens, sets, top_k=10)
    every = naming_scores(lens.W[:5].sum(0)[None], lens, sets, top_k=10)
    assert spike.best[0] == every.best[0] == 0
    assert 3 * ndtr(-spike.score[0, 0]) < 0.05 < spike.p[0]
    assert every.p[0] < 1e-4


def test_p_values_of_random_directions_are_no_smaller_than_chance():
    """No more than alpha at each alpha, up to four standard errors; the vocabulary has no order here."""
    rows = rows_of(4000)
    p = naming_scores(rows, lens_of(), sets_of(*[(2,) * 5] * 8), top_k=30).p
    for alpha in (0.001, 0.01, 0.05):
        assert (p <= alpha).mean() <= alpha + 4 * (alpha / len(p)) ** 0.5


def test_a_row_of_zeros_promotes_nothing():
    s = naming_scores(torch.cat([torch.zeros(1, D), rows_of(3)]), lens_of(), SETS, top_k=40)
    assert (s.score[0] == 0).all() and s.hits[0] == 0 and s.p[0] == 1


def test_bad_weights_and_sets_are_named():
    rows, lens = rows_of(9), lens_of()
    rows[7, 3] = torch.nan
    with pytest.raises(InputError, match="decoder row of feature 7 holds NaN or infinite values"):
        read_sets(rows, lens, SETS, top_k=5, chunk_bytes=4 * 4 * V)
    with pytest.raises(InputError, match="top_k=301: expected 1 to 300"):
        read_sets(rows_of(2), lens, SETS, top_k=301)
    with pytest.raises(
        InputError, match="token 305 of a vocabulary of 300: the words were looked up for another model"
    ):
        read_sets(rows_of(2), lens, TokenSets(("a",), ((WordTokens("w", (305,)),),)), top_k=5)
    with pytest.raises(InputError, match="names one category and no other: expected two or more"):
        naming_of(read_sets(rows_of(2), lens, sets_of((1, 1)), top_k=5))
    with pytest.raises(InputError, match="there are none of first person, second person, third person"):
        self_scores(rows_of(2), lens, SETS, top_k=5)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE in which joy, Joy, fear, glee and their blank-led forms are tokens and few other words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = ["joy\njoy joy\nJoy Joy Joy\nfear\nglee glee\nfear fear\nentr entr entr"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def strings(tokenizer, word: WordTokens) -> set[str]:
    return {tokenizer.decode([i]) for i in word.ids}


def test_every_spelling_of_a_word_that_is_one_token_stands_for_it(tokenizer):
    sets = token_sets(tokenizer, {"joy": ["joy", "glee", "joyfulness"], "fear": ["fear"]})
    assert strings(tokenizer, sets.words[0][0]) == {"joy", " joy", "Joy", " Joy"}
    assert [word.word for word in sets.words[0]] == ["joy", "glee"]
    assert sets.left_out == {"joy": ("joyfulness",)}


def test_words_of_several_tokens_are_left_out_or_stand_by_their_first(tokenizer):
    words = {"joy": ["joy"], "entrancement": ["entrancement"], "fear": ["fear"]}
    with pytest.raises(InputError, match=r"no token stands for any word of 'entrancement' \(left out: entrancement"):
        token_sets(tokenizer, words)
    first = token_sets(tokenizer, words, multi_token="first")
    assert strings(tokenizer, first.words[1][0]) == {" entr"} and not first.left_out
    assert strings(tokenizer, first.words[0][0]) == {"joy", " joy", "Joy", " Joy"}  # single tokens as before


def test_a_token_of_two_sets_speaks_for_neither(tokenizer):
    sets = token_sets(tokenizer, {"joy": ["joy", "glee"], "mirth": ["glee", "fear"]})
    assert [[word.word for word in of] for of in sets.words] == [["joy"], ["fear"]]
    assert sets.left_out == {"joy": ("glee",), "mirth": ("glee",)}
    once = token_sets(tokenizer, {"joy": ["joy", "JOY", "fear"]})
    assert once.left_out == {"joy": ("JOY",)}  # the same tokens: counted once


def test_bad_word_lists_are_named(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    with pytest.raises(InputError, match="the word list of 'fear' is empty"):
        token_sets(tokenizer, {"joy": ["joy"], "fear": []})
    with pytest.raises(InputError, match="multi_token='last': expected one of drop, first"):
        token_sets(tokenizer, {"joy": ["joy"]}, multi_token="last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="without a tokenizer"):
        token_sets(None, {"joy": ["joy"]})
    with pytest.raises(InputError, match="different names"):
        TokenSets(("a", "a"), ((WordTokens("w", (1,)),), (WordTokens("x", (2,)),)))


def test_english_persons_share_no_word():
    words = [word for group in ENGLISH_PERSONS.values() for word in group]
    assert tuple(ENGLISH_PERSONS) == PERSONS and len(words) == len(set(words))
