"""Batches: a permutation of all tokens, under the budget, right-padded, for every list of lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.batching import Buckets, batches, bucketed, windows_of
from interp.errors import InputError
from tests.toy_store import token_file

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=40)


def fed(buckets: Buckets, bos: bool) -> set[tuple[int, int]]:
    """(document, position) of every own token fed; fails on a token fed twice."""
    seen: list[tuple[int, int]] = []
    windows = buckets.windows
    for doc, start, length in zip(windows.doc, windows.start, windows.length, strict=True):
        seen += [(int(doc), int(start) + i) for i in range(int(bos), int(length))]
    assert len(set(seen)) == len(seen)
    return set(seen)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(2, 40), st.integers(0, 100), st.integers(1, 8), st.booleans(), st.integers(0, 5))
def test_every_token_once_and_the_budget_respected(lengths, max_length, extra, multiple, bos, seed):
    budget = max_length + multiple + extra
    buckets = bucketed(lengths, token_budget=budget, max_length=max_length, multiple=multiple, seed=seed, bos=bos)
    assert fed(buckets, bos) == {(d, p) for d, n in enumerate(lengths) for p in range(n)}
    assert (buckets.windows.length <= max_length).all()
    assert (buckets.padded <= budget).all()
    assert len(buckets.ends) == 0 or buckets.ends[-1] == len(buckets.windows)
    assert (np.diff(buckets.ends, prepend=0) > 0).all()


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(0, 20), st.integers(1, 90))
def test_halving_changes_neither_windows_nor_order(lengths, index, tokens):
    buckets = bucketed(lengths, token_budget=100, max_length=20)
    halved = buckets.halve(index, tokens=tokens)
    assert set(buckets.ends) <= set(halved.ends)
    for number, size in enumerate(buckets.padded):
        first, stop = buckets.span(number)
        inside = [end for end in halved.ends if first < end < stop]
        cut = number >= index and size >= tokens and stop - first > 1
        assert inside == ([(first + stop) // 2] if cut else [])


def test_seeds_give_one_order_each():
    lengths = list(range(1, 60)) * 3
    same, again, other = (bucketed(lengths, token_budget=128, max_length=32, seed=s) for s in (1, 1, 2))
    for name in ("doc", "start", "length"):
        assert (getattr(same.windows, name) == getattr(again.windows, name)).all()
    assert (same.windows.doc != other.windows.doc).any()
    assert (
        same.windows.length[: len(same.windows) // 2] != np.sort(same.windows.length)[: len(same.windows) // 2]
    ).any()


def test_equal_lengths_waste_nothing():
    assert bucketed([16] * 33 + [8] * 64, token_budget=64, max_length=16).waste == 0.0


def test_waste_is_the_share_of_padding():
    buckets = bucketed([10, 7], token_budget=2_000, max_length=10)
    assert len(buckets) == 2 or buckets.waste == pytest.approx(3 / 20)
    padded = bucketed([10], token_budget=16, max_length=10, multiple=16)
    assert padded.waste == pytest.approx(6 / 16)


def test_far_apart_lengths_are_not_padded_to_each_other():
    buckets = bucketed([500] * 3 + [5] * 3, token_budget=4_000, max_length=512)
    assert buckets.waste == 0.0


def test_windows_with_a_bos_start_one_before_their_first_token():
    windows = windows_of([7], max_length=4, bos=True)
    assert windows.start.tolist() == [-1, 2, 5]
    assert windows.length.tolist() == [4, 4, 2]


def test_batches_hold_the_tokens_of_the_file(tmp_path):
    for bos in (False, True):
        file = token_file(tmp_path / f"t{bos}", [5, 30, 0, 17, 3, 64], prepend_bos=bos)
        seen = np.zeros(file.n_tokens, int)
        for batch in batches(file, token_budget=64, max_length=16, seed=3):
            assert batch.tokens.numel() <= 64
            for row, length, doc, start in zip(batch.tokens, batch.lengths, batch.doc, batch.start, strict=True):
                own = row[int(bos) : length]
                at = int(start) + int(bos)
                assert own.tolist() == file[int(doc)][at : at + len(own)].tolist()
                assert not bos or row[0] == 1
                assert not row[length:].any()
                seen[file.offsets[int(doc)] + at : file.offsets[int(doc)] + at + len(own)] += 1
        assert (seen == 1).all()


def test_chosen_documents_only():
    windows = windows_of([3, 4, 5], max_length=8, docs=[2, 0])
    assert sorted(windows.doc.tolist()) == [0, 2]
    with pytest.raises(InputError, match=r"docs must lie in 0\.\.2, got 0\.\.3"):
        windows_of([3, 4, 5], max_length=8, docs=[0, 3])


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="token_budget=16 cannot hold one window of 20 tokens"):
        bucketed([20], token_budget=16, max_length=32)
    with pytest.raises(InputError, match="max_length must leave room for a token behind the BOS, got 1"):
        bucketed([20], token_budget=16, max_length=1, bos=True)
    with pytest.raises(InputError, match="multiple must be at least 1"):
        bucketed([20], token_budget=32, max_length=32, multiple=0)
