"""Random directions beside a dictionary: the estimate by counting, their covariance, and what they keep out."""

import numpy as np
import torch

from interp.lens import Lens, fold_norm
from saes.primitives.catalogue import Selection, naming_gates
from saes.primitives.decoys import decoy_q, decoy_readings
from saes.primitives.lens_scores import read_sets
from saes.primitives.word_tokens import TokenSets, WordTokens

D, V, C, WORDS = 48, 3_000, 6, 5
RULES = Selection(top_k=40)


def related_words(seed: int = 0) -> tuple[Lens, TokenSets, torch.Tensor]:
    """A vocabulary in which the words of a category lie together, as they do in a trained model; and their centres."""
    g = torch.Generator().manual_seed(seed)
    W, centres = torch.randn(V, D, generator=g), torch.randn(C, D, generator=g)
    W[: C * WORDS] = 0.5 * W[: C * WORDS] + centres.repeat_interleave(WORDS, 0)
    words = tuple(tuple(WordTokens(f"w{c}{i}", (c * WORDS + i,)) for i in range(WORDS)) for c in range(C))
    return Lens(fold_norm(W, None, centred=False)), TokenSets(tuple(f"c{c}" for c in range(C)), words), centres


def test_q_is_the_counted_share_of_decoys():
    rng = np.random.default_rng(0)
    score, decoys = np.round(rng.normal(1, 1, 40), 1), np.round(rng.normal(0, 1, 70), 1)
    score[3] = decoys[5] = -np.inf  # a condition fails
    q = decoy_q(score, decoys)
    assert q[3] == 1 and q.min() < 0.2
    for j in np.flatnonzero(score > -np.inf):
        passing = [t for t in score if -np.inf < t <= score[j]]
        at = [(1 + (decoys >= t).sum()) / (score >= t).sum() * 40 / 70 for t in passing]
        assert np.isclose(q[j], min(1.0, *at))
    assert len(decoy_q(score[:0], decoys)) == 0


def test_decoys_have_the_dictionarys_covariance_and_come_from_the_seed():
    lens, sets, _ = related_words()
    g = torch.Generator().manual_seed(1)
    decoder = torch.randn(2_000, D, generator=g) * torch.linspace(0.1, 3, D)  # far from isotropic
    one, again, other = (decoy_readings(decoder, lens, sets, 9_000, seed=s, top_k=40) for s in (0, 0, 1))
    assert len(one.p) == 9_000  # more than are made at once
    assert (one.means == again.means).all() and not (one.means == other.means).all()
    own = read_sets(decoder, lens, sets, top_k=40)
    np.testing.assert_allclose(np.cov(one.means.T), np.cov(own.means.T), atol=0.12 * own.means.var())


def test_related_words_make_false_gates_which_decoys_keep_out():
    lens, sets, centres = related_words()
    rows = torch.randn(4_000, D, generator=torch.Generator().manual_seed(2))
    decoys = decoy_readings(rows, lens, sets, 20_000, top_k=40)
    random = read_sets(rows, lens, sets, top_k=40)
    assert len(naming_gates(random, RULES)) > 20
    assert not naming_gates(random, RULES, decoys)

    # Gates among them are still found, and few others with them.
    rows[:40] = centres.repeat(7, 1)[:40] + 0.2 * rows[:40]
    with_gates = read_sets(rows, lens, sets, top_k=40)
    found = {c.feature for c in naming_gates(with_gates, RULES, decoy_readings(rows, lens, sets, 20_000, top_k=40))}
    assert len(found & set(range(40))) >= 36
    assert len(found) <= 44
