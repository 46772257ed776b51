"""Absorption against planted dictionaries whose scores are known, a slow reference, and the real model."""

import dataclasses

import numpy as np
import pytest
import torch

from interp.errors import InputError
from saes.absorption import AbsorptionConfig, _split, absorption, absorption_of_rows, score_words
from saes.codes import Codes
from saes.first_letter import Words, some, vocabulary_words, word_rows
from saes.sae import SAE, SAEConfig
from saes.suite import SuiteConfig, ask

PER_LETTER, LETTERS = 20, "abcd"


def _sae(W_enc: torch.Tensor, W_dec: torch.Tensor, k: int) -> SAE:
    f, d = W_dec.shape
    weights = {"W_enc": W_enc.T, "b_enc": torch.zeros(f), "W_dec": W_dec, "b_dec": torch.zeros(d)}
    return SAE.of_weights(SAEConfig(d_in=d, d_sae=f, k=k), **weights)


def _planted(absorbed: dict[str, int], *, split: str = "", lengths: float = 1.0):
    """x = 2 p(letter) + w(word), all directions orthonormal. Feature 0..3: the letters'. One more feature per absorbed
    word, reading and writing x's own direction; the letter's encoder is turned away from that word. A `split` letter
    has two features, one for each half of its words. `lengths`: norms of the decoder rows."""
    n = PER_LETTER * len(LETTERS)
    basis = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))[0]
    p, w = basis[:4], basis[4 : 4 + n]
    letters = [letter for letter in LETTERS for _ in range(PER_LETTER)]
    x = torch.stack([2 * p[LETTERS.index(letter)] + w[i] for i, letter in enumerate(letters)])
    W_enc, W_dec, silenced = p.clone(), list(p), []
    extra = []
    for letter, count in absorbed.items():
        first = LETTERS.index(letter) * PER_LETTER
        for i in range(first, first + count):
            W_enc[LETTERS.index(letter)] -= 3 * w[i]
            extra.append(x[i] / 5**0.5)
            silenced.append(i)
    if split:
        at = LETTERS.index(split)
        half = torch.arange(at * PER_LETTER, (at + 1) * PER_LETTER)
        one, two = half[::2], half[1::2]
        W_enc[at] = p[at] - 3 * w[two].sum(0)
        extra_enc, extra_dec = [p[at] - 3 * w[one].sum(0)], [p[at]]
    else:
        extra_enc, extra_dec = [], []
    # An absorbing feature fires on its own word, with √5, and is below 0 on the letter's other words.
    enc = [(5**0.5 + 1) * w[i] - 0.5 * p[LETTERS.index(letters[i])] for i in silenced]
    rows = torch.stack([*W_enc, *enc, *extra_enc])
    dec = torch.stack([*W_dec, *extra, *extra_dec]) * lengths
    return _sae(rows / lengths, dec, k=len(rows)), x, letters, np.array(silenced, int)


@pytest.mark.parametrize("lengths", [1.0, 0.17, 6.0])
@pytest.mark.parametrize("count", [0, 5, 9])
def test_a_planted_share_of_absorbed_words_is_the_score(count, lengths):
    """Whatever the norms of the decoder rows: a folded scale must not change who absorbs whom."""
    sae, x, letters, silenced = _planted({"a": count} if count else {}, lengths=lengths)
    codes = sae.encode(x).dense()
    assert (codes[silenced, 0] == 0).all() and (codes[:PER_LETTER, 0] > 0).sum() == PER_LETTER - count
    found = absorption_of_rows(sae, x, letters)
    config = AbsorptionConfig()
    held = np.flatnonzero(_split(letters, config))
    share = np.isin(held[held < PER_LETTER], silenced).mean()
    scores = {letter.letter: letter for letter in found.letters}
    assert set(scores) == set(LETTERS) and not found.left_out
    assert scores["a"].n_words == 6, "every test word is recognised"
    assert scores["a"].main == (0,) and scores["a"].full == share and scores["a"].fraction == pytest.approx(share)
    assert count < 9 or share > 0, "the planted words reach the test side"
    assert sum(scores["a"].absorbers.values()) == round(6 * share)
    assert all(scores[letter].full == scores[letter].fraction == 0 for letter in "bcd")
    assert found.full == pytest.approx(share / 4) and found.summary()["letters"] == 4


def test_a_split_letter_is_not_absorbed():
    sae, x, letters, _ = _planted({}, split="b")
    found = {letter.letter: letter for letter in absorption_of_rows(sae, x, letters).letters}
    assert set(found["b"].main) == {1, 4} and found["b"].full == 0 and found["b"].fraction == 0
    assert found["a"].main == (0,)


def test_a_planted_share_of_one_word():
    """Main puts 0.8 of 2 along the probe, the absorber the other 1.2: fraction 0.6, and no full absorption."""
    p = torch.eye(4)[0]
    W = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0.05, 0, 0, 0.998749]])
    sae = _sae(W, W, k=2)
    x = torch.tensor([[2.0, 1, 0, 0]])

    def fraction(values, indices, x=x, **changes):
        codes = Codes(torch.tensor(values), torch.tensor(indices, dtype=torch.int64), torch.tensor([0, len(values)]), 4)
        found = score_words(sae, x, codes, 3 * p, [0], config=dataclasses.replace(AbsorptionConfig(), **changes))
        return float(found.fraction), bool(found.full)

    assert fraction([0.8, 2.0], [0, 1]) == (pytest.approx(0.6), False)
    assert fraction([2.0], [1]) == (1.0, True), "the main feature is silent: all of it"
    assert fraction([2.5], [0]) == (0.0, False), "the main feature carries all there is"
    assert fraction([2.0, 2.0], [0, 1]) == (0.0, False), "nothing is missing beside the main feature"
    assert fraction([0.5, 1.2], [0, 1]) == (0.0, False), "0.72 of 2 is less than the share that counts"
    assert fraction([0.5, 1.2], [0, 1], share=0.3)[0] == pytest.approx(0.72 / 1.22)
    assert fraction([1.5, 3.0], [0, 1])[0] == pytest.approx(0.5 / 2), "at most what the main feature leaves"
    assert fraction([60.0], [3])[0] == 0 and fraction([60.0], [3])[1], "cosine 0.05: enough for one, not for the other"
    assert fraction([2.0], [1], x=-x) == (0.0, False), "the probe does not find the letter"
    assert fraction([], []) == (0.0, False)


def _slow(sae, x, codes, p, main, c: AbsorptionConfig):
    """The definition, one word and one feature at a time."""
    p, W = (p / p.norm()).double().numpy(), sae.W_dec.detach().double().numpy()
    dense, full, fraction = codes.dense().double().numpy(), [], []
    for a, row in zip(dense, x.double().numpy(), strict=True):
        total = row @ p
        along = {j: a[j] * (W[j] @ p) for j in np.flatnonzero(a)}
        cosine = {j: W[j] @ p / np.linalg.norm(W[j]) for j in along}
        top = max(along, key=along.get) if along else None
        full.append(
            top is not None
            and not any(a[j] > 1e-8 for j in main)
            and cosine[top] >= c.full_cosine
            and total > 0
            and along[top] / total >= c.share
        )
        M = sum(along.get(j, 0.0) for j in main)
        others = sorted((v for j, v in along.items() if j not in main and cosine[j] >= c.fraction_cosine and v > 0))
        A = sum(others[-c.max_absorbing :])
        if total <= 0 or M >= total or A / total < c.share:
            fraction.append(0.0)
        elif M <= 0:
            fraction.append(1.0)
        else:
            fraction.append(min(A, total - M) / (min(A, total - M) + M))
    return full, fraction


@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_the_definition(seed):
    g = torch.Generator().manual_seed(seed)
    d, f, n = 6, 25, 200
    W = torch.randn(f, d, generator=g) * torch.rand(f, 1, generator=g) * 2
    x, p = torch.randn(n, d, generator=g), torch.randn(d, generator=g)
    x += p * torch.rand(n, 1, generator=g) * 2
    codes = Codes.of_fixed_k(torch.rand(n, 6, generator=g), torch.rand(n, f, generator=g).argsort(1)[:, :6], f)
    found = score_words(_sae(W, W, 6), x, codes, p, [3, 11])
    full, fraction = _slow(_sae(W, W, 6), x, codes, p, [3, 11], AbsorptionConfig())
    assert found.full.tolist() == full and 5 < sum(full) < n - 5
    np.testing.assert_allclose(found.fraction, fraction, atol=1e-6)
    assert 5 < sum(0 < value < 1 for value in fraction)


def test_letters_without_a_probe_are_left_out_with_the_reason():
    sae, x, letters, _ = _planted({})
    x = torch.cat([x, torch.randn(21, 128, generator=torch.Generator().manual_seed(5)) * 3])
    found = absorption_of_rows(sae, x, [*letters, *"y" * 20, "z"])
    assert "the probe's F1 is 0" in found.left_out["y"] and "too few" in found.left_out["z"]
    assert len(found.letters) == 4
    with pytest.raises(InputError, match="101 rows, but 80 letters"):
        absorption_of_rows(sae, x, letters)


def test_words_and_their_rows_on_the_real_model(smollm2):
    words = vocabulary_words(smollm2.tokenizer, per_letter=3)
    assert {"a", "m", "s"} <= set(words.letters) and max(map(words.letters.count, words.letters)) == 3
    for word, token in zip(words.words, words.ids, strict=True):
        assert smollm2.tokenizer.decode([token]) == " " + word and word.isascii() and word.islower()
    words = some(words, 3)
    sae = _random(smollm2.cfg.d_model)
    x = word_rows(sae, smollm2, words, "resid_post.3", batch=2)
    last = word_rows(sae, smollm2, dataclasses.replace(words, position=-1), "resid_post.3")
    before, after = words.template.split("{word}")
    for i, token in enumerate(words.ids):
        head = smollm2.tokenizer(before).input_ids
        ids = torch.tensor([[*head, token, *smollm2.tokenizer(after).input_ids]])
        with torch.no_grad():
            stream = smollm2.hf(ids, output_hidden_states=True).hidden_states[4][0]
        torch.testing.assert_close(x[i], stream[len(head)], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(last[i], stream[-1], rtol=1e-4, atol=1e-3)


def _random(d: int, f: int = 300) -> SAE:
    W = torch.nn.functional.normalize(torch.randn(f, d, generator=torch.Generator().manual_seed(0)))
    return _sae(W, W, k=16)


def test_absorption_runs_on_the_real_model(smollm2):
    words = vocabulary_words(smollm2.tokenizer, per_letter=30)
    chosen = [i for i, letter in enumerate(words.letters) if letter in "kqvyz"]
    words = Words(tuple(words.words[i] for i in chosen), tuple(words.ids[i] for i in chosen))
    found = absorption(_random(smollm2.cfg.d_model), smollm2, words, "resid_post.3")
    assert len(found.letters) + len(found.left_out) == 5 and len(found.letters) >= 2, "letters are there to be read"
    for letter in found.letters:
        assert letter.probe_f1 > 0.6 and 0 <= letter.full <= letter.fraction + 1e-9 <= 1.1 and letter.main
    assert set(found.to_json()["mean"]) == {"full", "fraction", "split_features", "letters", "words"}
    with pytest.raises(InputError, match="for the site"):
        sae = _random(smollm2.cfg.d_model)
        sae.config = dataclasses.replace(sae.config, metadata={"hook_name": "blocks.4.hook_resid_post"})
        absorption(sae, smollm2, words, "resid_post.3")


def test_prompts_that_cannot_work_are_refused(smollm2):
    sae = _random(smollm2.cfg.d_model)
    with pytest.raises(InputError, match=r"must hold \{word\} exactly once"):
        Words(("cat",), (5,), template="no place")
    with pytest.raises(InputError, match="position=0 counts from the end"):
        Words(("cat",), (5,), position=0)
    with pytest.raises(InputError, match="falls on token 0 of a prompt of 1"):
        word_rows(sae, smollm2, Words(("cat",), (5,), template="{word}"), "resid_post.3")
    with pytest.raises(InputError, match="2 words and 1 token ids"):
        Words(("cat", "dog"), (5,))


def test_transcoders_are_refused_before_anything_runs(smollm2):
    """A probe of what is read has no place among directions of what is written, be they as wide as one another."""
    metadata = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    for width in (8, 6):
        config = SAEConfig(d_in=8, d_sae=9, k=2, d_out=width, apply_b_dec_to_input=False, metadata=metadata)
        transcoder = SAE(config)
        for call in (
            lambda sae=transcoder: absorption_of_rows(sae, torch.ones(4, 8), "aabb"),
            lambda sae=transcoder: absorption(sae, smollm2, Words(("cat",), (5,))),
            lambda sae=transcoder: ask(sae, SuiteConfig(absorption=True)),
        ):
            with pytest.raises(InputError, match=r"reads blocks\.3\.hook_mlp_in and writes .*mlp_out: give an SAE"):
                call()
