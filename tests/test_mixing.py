"""The mixing statistic: closed forms against counting, and sources that mix well, badly and as well as they can."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from interp.errors import InputError
from interp.extract import extract
from interp.mixing import MixingReport, expected_documents, mixing
from interp.stream import ActivationStream
from tests.toy_store import SITES, ToyModel, token_file

ROW = 12 + 4 * 6 * 2


class Ordered:
    """Documents of these many rows, read in the order of `permute(n, seed)`."""

    def __init__(self, rows, permute) -> None:
        self.docs, self.permute = np.repeat(np.arange(len(rows)), rows), permute

    def __len__(self) -> int:
        return len(self.docs)

    def trace(self, start, stop, *, seed, epoch=0):
        places = self.permute(len(self.docs), seed)[start:stop]
        return places, self.docs[places]

    def document_rows(self):
        return np.bincount(self.docs)


def in_order(n, seed):
    return np.arange(n)


def anywhere(n, seed):
    return np.random.default_rng(seed).permutation(n)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_expectations_are_those_of_every_possible_batch(size):
    docs = np.repeat(np.arange(4), [1, 2, 4, 2])
    every = [docs[list(chosen)] for chosen in combinations(range(len(docs)), size)]
    assert len(every) == comb(9, size)
    distinct = np.mean([len(set(batch)) for batch in every])
    same = np.mean([np.mean([a == b for a, b in combinations(batch, 2)]) for batch in every])
    report = mixing(Ordered([1, 2, 4, 2], anywhere), size, seed=0)
    assert report.documents_perfect == pytest.approx(distinct, rel=1e-12)
    assert report.same_document_perfect == pytest.approx(same, rel=1e-12)


def test_the_expectation_holds_for_large_corpora():
    """Against simulation: 40 draws of 4,096 rows out of 3 million."""
    rows = np.random.default_rng(0).integers(1, 600, 10_000)
    docs = np.repeat(np.arange(len(rows)), rows)
    draw = np.random.default_rng(1)
    found = [len(np.unique(docs[draw.choice(len(docs), 4096, replace=False)])) for _ in range(40)]
    assert abs(np.mean(found) - expected_documents(rows, 4096)) < 5 * np.std(found) / np.sqrt(40)


def test_an_unshuffled_source_is_far_from_perfect():
    report = mixing(Ordered([100] * 50, in_order), 50, seed=0)
    assert report.documents == 1 and report.same_document == 1 and report.reach == 49
    assert report.clumping == pytest.approx(4999 / 99)
    assert report.documents_perfect > 30


def test_a_global_shuffle_is_perfect_within_chance():
    """32 of 100 batches; the standard error comes from 300 independent shuffles of 32 batches each."""
    rows = np.random.default_rng(0).integers(1, 100, 100)
    n, size = int(rows.sum()), 50
    report = mixing(Ordered(rows, anywhere), size, seed=5)
    assert report.batches == 32
    docs = np.repeat(np.arange(100), rows)
    same, distinct = [], []
    for seed in range(300):
        read = docs[np.random.default_rng(seed).permutation(n)][: 32 * size].reshape(32, size)
        counts = np.array([np.bincount(batch, minlength=100) for batch in read])
        same.append((counts * (counts - 1)).sum() / (32 * size * (size - 1)))
        distinct.append((counts > 0).sum() / 32)
    perfect = report.same_document_perfect
    assert abs(np.mean(same) - perfect) < 5 * np.std(same) / np.sqrt(300)
    assert abs(report.same_document - perfect) < 4 * np.std(same) < 0.2 * perfect
    assert abs(report.documents - report.documents_perfect) < 4 * np.std(distinct)
    assert report.reach > 0.95 * n


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", [30, 12, 44, 25, 9, 38] * 40)


def stream(tokens, generation: int) -> ActivationStream:
    return ActivationStream(
        ToyModel(), tokens, SITES, max_length=64, token_budget=256, dtype="float32", buffer_bytes=2 * generation * ROW
    )


def test_a_stream_that_fits_into_one_generation_is_a_global_shuffle(tokens):
    report = mixing(stream(tokens, 10_000), 64, seed=0, batches=1000)
    assert report.batches == len(stream(tokens, 10_000)) // 64  # every whole batch
    assert abs(report.clumping - 1) < 0.1
    assert abs(report.documents / report.documents_perfect - 1) < 0.01


def test_a_stream_mixes_within_its_horizon(tokens):
    """Every document is in one generation: G times the pairs of a global shuffle; a batch reaches over W, or two."""
    for generation in (700, 1500):
        source = stream(tokens, generation)
        report = mixing(source, 64, seed=0, batches=1000)
        g = source.material.generations
        assert report.clumping == pytest.approx(g, rel=0.1)
        assert 0.9 * len(source) / g < report.reach <= 2 * generation
        within = expected_documents(source.document_rows()[: len(source.document_rows()) // g], 64)
        assert report.documents == pytest.approx(within, rel=0.05)


def test_the_trace_is_what_the_batches_hold(tokens, tmp_path):
    store = extract(ToyModel(), tokens, SITES, tmp_path / "s", max_length=64, progress=False)
    for source in (store, stream(tokens, 1000)):
        docs = np.concatenate([batch.doc.numpy() for batch in source.batches([], 50, seed=3, epoch=1)])
        assert np.array_equal(source.trace(0, len(source), seed=3, epoch=1)[1], docs)
        assert sorted(source.document_rows()) == sorted(np.unique(docs, return_counts=True)[1])
    report = mixing(store, 64, seed=0, batches=1000)
    assert abs(report.clumping - 1) < 0.1 and report.reach > 0.9 * len(store)


def test_the_report_in_a_line():
    report = MixingReport(
        batches=32,
        size=4096,
        rows=1_000_000,
        documents=1520.04,
        documents_perfect=3700.2,
        same_document=0.003,
        same_document_perfect=0.002,
        reach=93_000,
    )
    assert report.describe() == (
        "mixing: 1,520.0 documents in a batch of 4,096 rows (perfect shuffle: 3,700.2), 1.50 times its pairs of one "
        "document, rows up to 93,000 of 1,000,000 places apart"
    )


def test_documents_of_one_row_cannot_clump():
    assert mixing(Ordered([1] * 20, in_order), 5, seed=0).clumping == 1


@pytest.mark.parametrize(("size", "batches"), [(1, 4), (0, 4), (10, 0)])
def test_a_single_row_mixes_nothing(size, batches):
    with pytest.raises(InputError, match=f"at least two rows, got {batches} batches of {size}"):
        mixing(Ordered([5] * 20, anywhere), size, seed=0, batches=batches)
