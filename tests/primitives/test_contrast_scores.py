"""Paired tests of features: values by hand, what is tested, the rate of false discoveries, bad input."""

import jaxtyping
import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from scipy.stats import permutation_test

from interp.errors import InputError
from saes.primitives.contrast_scores import contrast_scores, paired_scores
from saes.sae import SAE
from tests.primitives.planted_primitives import Planted, plant


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(3)


def csr(x: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(x.astype(np.float32))


def test_values_agree_with_a_paired_permutation_test_of_scipy():
    rng = np.random.default_rng(0)
    marked, plain = rng.random((2, 9, 5)).astype(np.float32) * (rng.random((2, 9, 5)) < 0.9)
    marked[:, 2] += 0.5
    found = paired_scores(csr(marked), csr(plain))
    assert found.features.tolist() == [0, 1, 2, 3, 4] and (found.n_pairs, found.n_features) == (9, 5)
    x = marked.astype(np.float64) - plain
    for j in range(5):
        of = permutation_test((x[:, j],), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert found.p[j] == pytest.approx(of.pvalue, rel=1e-9)
        d = x[:, j].mean() / x[:, j].std()
        assert found.effect[j] == pytest.approx(d / (1 + d * d) ** 0.5, rel=1e-6)
    np.testing.assert_allclose(found.marked, marked.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.plain, plain.mean(0), rtol=1e-6)
    assert found.everywhere().tolist() == found.p.tolist()


def test_only_what_can_succeed_is_tested_and_the_rest_is_counted():
    marked, plain = np.zeros((2, 20, 6))
    marked[:, 0] = 1  # in every pair
    marked[:6, 1] = 1  # in as few as reach 0.05
    marked[:5, 2] = 1  # in one less
    marked[:, 3] = plain[:, 3] = 2  # alike
    marked[:, 4], plain[:, 4] = 2, 2 + 2e-6  # but for the last bits
    found = paired_scores(csr(marked), csr(plain))
    assert found.n_fired == 5 and found.features.tolist() == [0, 1]
    assert found.p[1] == pytest.approx(2.0**-5, rel=0.5)
    np.testing.assert_allclose(found.effect, [1, 0.3**0.5])
    assert found.everywhere()[2:].tolist() == [1, 1, 1, 1]
    assert found.floor == 2.0**-19 and found.needed() == 1
    silent = paired_scores(csr(np.zeros((20, 6))), csr(np.zeros((20, 6))))
    assert silent.n_fired == 0 and len(silent.features) == len(silent.q) == 0


def test_what_few_pairs_cannot_show_is_said():
    rng = np.random.default_rng(0)
    marked, plain = rng.random((2, 12, 400))
    marked[:, 0] += 1
    found = paired_scores(csr(marked), csr(plain))
    assert found.p[0] == found.floor == 2.0**-11
    assert found.needed() == 4 and found.q[0] > 0.05  # the clearest effect there can be, alone among 400


def test_the_rate_of_false_discoveries_is_kept():
    """Mean over 40 sets of 300 features, 30 of them with an effect; without a correction it is far above alpha."""
    corrected, plainly, power = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        marked, plain = rng.exponential(1, (2, 24, 300)) * (rng.random((2, 24, 300)) < 0.6)
        marked[:, :30] += 2.5 * rng.random((24, 30))
        found = paired_scores(csr(marked), csr(plain), draws=400)
        for values, rates in ((found.q, corrected), (found.p, plainly)):
            chosen = found.features[values <= 0.05]
            rates.append((chosen >= 30).sum() / max(1, len(chosen)))
        power.append((found.features[found.q <= 0.05] < 30).sum() / 30)
    assert np.mean(corrected) <= 0.05 + 2 * np.std(corrected) / 40**0.5
    assert np.mean(plainly) > 0.2
    assert np.mean(power) > 0.5


def by_hand(p: Planted, text: str, n: int) -> np.ndarray:
    """Mean activations of a text's first n words behind the first, from embeddings and encoder alone."""
    hf = p.model.hf
    ids = [p.model.tokenizer.get_vocab()[word] for word in text.split()[:n]]
    x = hf.transformer.wte.weight[ids] + hf.transformer.wpe.weight[:n]
    return torch.relu(x @ p.sae.W_enc + p.sae.b_enc)[1:].mean(0).detach().numpy()


@pytest.mark.parametrize("lengths", ["matched", "full"])
def test_texts_are_read_through_model_and_sae(planted: Planted, lengths):
    pairs = planted.data.registers["show"]
    found = contrast_scores(planted.model, planted.sae, pairs, lengths=lengths)
    rows = []
    for pair in pairs:
        sizes = [len(text.split()) for text in pair]
        cut = [min(sizes)] * 2 if lengths == "matched" else sizes
        rows.append([by_hand(planted, text, n) for text, n in zip(pair, cut, strict=True)])
    marked, plain = np.array(rows).transpose(1, 0, 2)
    np.testing.assert_allclose(found.marked, marked[:, found.features].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.plain, plain[:, found.features].mean(0), atol=1e-5)
    assert found.n_fired == ((marked > 1e-6) | (plain > 1e-6)).any(0).sum()


def test_swapping_the_sides_turns_the_effect_and_nothing_else(planted: Planted):
    pairs = planted.data.registers["deep"]
    one = contrast_scores(planted.model, planted.sae, pairs)
    other = contrast_scores(planted.model, planted.sae, [pair[::-1] for pair in pairs])
    assert one.features.tolist() == other.features.tolist()
    np.testing.assert_allclose(one.effect, -other.effect, atol=1e-6)
    np.testing.assert_allclose(one.p, other.p)


def test_bad_pairs_are_named(planted: Planted, monkeypatch: pytest.MonkeyPatch):
    model, sae, pairs = planted.model, planted.sae, list(planted.data.registers["deep"])
    with pytest.raises(InputError, match=r"5 pairs cannot reach a p-value of 0.05, whatever they show.*at least 6"):
        contrast_scores(model, sae, pairs[:5])
    with pytest.raises(InputError, match=r"alpha=0: expected a share"):
        contrast_scores(model, sae, pairs, alpha=0)
    with pytest.raises(InputError, match=r"a text of the pair \('f1', ' '\) is empty"):
        contrast_scores(model, sae, [*pairs, ("f1", " ")])
    with pytest.raises(InputError, match="without a tokenizer"):
        contrast_scores(type(model).wrap(model.hf), sae, pairs)
    with pytest.raises(InputError, match=r"marked has shape \(7, 3\), plain \(7, 4\)"):
        paired_scores(csr(np.ones((7, 3))), csr(np.ones((7, 4))))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    with pytest.raises(InputError, match="lengths='equal': expected one of matched, full"):
        contrast_scores(model, sae, pairs, lengths="equal")  # pyright: ignore[reportArgumentType]


def test_an_sae_that_gives_nan_is_refused(planted: Planted):
    weights = {name: tensor.detach().clone() for name, tensor in planted.sae.weights().items()}
    weights["W_enc"] *= 1e30
    weights["b_enc"].fill_(torch.inf)
    broken = SAE.of_weights(planted.sae.config, **weights)
    with pytest.raises(InputError, match="the activations hold NaN or infinite values"):
        contrast_scores(planted.model, broken, planted.data.registers["deep"])
