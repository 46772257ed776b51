"""Top examples, firing counts and context windows against brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from saes import ranking
from saes.firing import EDGES, N_BINS, FiringFitter
from saes.ranking import Ranking


def _stream(seed: int, n: int = 60, f: int = 5, docs: int = 6):
    """Random activations with many equal values: columns feature, value, row, document."""
    rng = np.random.default_rng(seed)
    doc_of_row = np.sort(rng.integers(0, docs, n))
    fires = rng.random((n, f)) < 0.4
    values = np.where(fires, rng.integers(1, 5, (n, f)) / 4, 0.0)
    rows, features = np.nonzero(values)
    columns = features, values[rows, features].astype(np.float32), rows, doc_of_row[rows]
    return values, doc_of_row, tuple(torch.as_tensor(c) for c in columns)


def _brute_force(values: np.ndarray, doc_of_row: np.ndarray, k: int) -> list[list[tuple[float, int, int]]]:
    lists = []
    for column in values.T:
        best: dict[int, tuple[float, int]] = {}
        for row, value in enumerate(column):
            doc = int(doc_of_row[row])
            if value > 0 and (doc not in best or value > best[doc][0]):
                best[doc] = (float(value), row)
        entries = sorted(((v, r, d) for d, (v, r) in best.items()), key=lambda e: (-e[0], e[1]))
        lists.append(entries[:k])
    return lists


def _as_lists(result: ranking.Ranked) -> list[list[tuple[float, int, int]]]:
    rows = zip(result.values.tolist(), result.rows.tolist(), result.docs.tolist(), strict=True)
    return [[e for e in zip(v, r, d, strict=True) if e[1] >= 0] for v, r, d in rows]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 7), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_streaming_ranking_equals_sorting_everything(seed, k, cuts):
    values, doc_of_row, columns = _stream(seed)
    ranked = Ranking(5, k)
    edges = [0, *sorted(cuts), 60]
    for start, stop in itertools.pairwise(edges):
        inside = (columns[2] >= start) & (columns[2] < stop)
        ranked.update(*(c[inside] for c in columns))
        ranked._flush()
    assert _as_lists(ranked.result()) == _brute_force(values, doc_of_row, k)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_does_not_depend_on_order_or_merging(seed):
    values, doc_of_row, columns = _stream(seed)
    expected = _brute_force(values, doc_of_row, 3)
    shuffled = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(seed))
    assert _as_lists(Ranking(5, 3).update(*(c[shuffled] for c in columns)).result()) == expected
    odd = columns[2] % 2 == 1
    one = Ranking(5, 3).update(*(c[odd] for c in columns))
    other = Ranking(5, 3).update(*(c[~odd] for c in columns))
    assert _as_lists(one.merge(other).result()) == expected


def test_ranking_keeps_one_example_per_document():
    feature = torch.zeros(4, dtype=torch.int64)
    ranked = Ranking(1, 3)
    ranked.update(feature, torch.tensor([9.0, 8.0, 7.0, 1.0]), torch.arange(4), torch.tensor([0, 0, 0, 1]))
    assert _as_lists(ranked.result()) == [[(9.0, 0, 0), (1.0, 3, 1)]]


def test_ranking_of_nothing_is_empty():
    result = Ranking(3, 2).result()
    assert torch.equal(result.rows, torch.full((3, 2), -1)) and not result.values.any()


def test_ranking_refuses_no_examples():
    with pytest.raises(InputError, match="k=0 examples per feature: expected at least 1"):
        Ranking(3, 0)


@pytest.mark.parametrize("seed", range(4))
def test_firing_counts_equal_brute_force(seed):
    values, _, columns = _stream(seed)
    firing = FiringFitter(5).update(columns[0], columns[1], n_tokens=60).result()
    fires = (values > 0).sum(0)
    assert firing.fires.tolist() == fires.tolist() and firing.n_tokens == 60
    np.testing.assert_allclose(firing.density.numpy(), fires / 60, rtol=1e-15)
    np.testing.assert_allclose(firing.mean.numpy(), values.sum(0) / np.maximum(fires, 1), rtol=1e-15)
    np.testing.assert_array_equal(firing.maximum.numpy(), values.max(0))
    for f in range(5):
        expected = np.histogram(values[:, f][values[:, f] > 0], bins=EDGES.numpy())[0]
        assert firing.histogram[f].tolist() == expected.tolist()


def test_firing_merges_by_adding():
    _, _, columns = _stream(1)
    whole = FiringFitter(5).update(columns[0], columns[1], n_tokens=60).result()
    low = columns[2] < 17
    parts = [FiringFitter(5).update(columns[0][m], columns[1][m], n_tokens=n) for m, n in ((low, 17), (~low, 43))]
    merged = parts[0].merge(parts[1]).result()
    for name in whole._fields:
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-14, atol=0)


def test_histogram_bins_are_cut_to_what_fired():
    values = torch.tensor([1.0, 1.0, 1.5, 1e-9, 3e9])
    firing = FiringFitter(3).update(torch.tensor([0, 0, 0, 1, 1]), values, n_tokens=5).result()
    counts, edges = firing.bins(0)
    # A quarter of an octave per bin from 1: 1, 1.19, 1.41, 1.68
    assert counts == (2, 0, 1) and edges == pytest.approx((1.0, 2**0.25, 2**0.5, 2**0.75), rel=1e-6)
    counts, edges = firing.bins(1)
    assert len(counts) == N_BINS and edges[0] == 0.0 and edges[-1] == pytest.approx(3e9)
    assert firing.bins(2) == ((), ())
