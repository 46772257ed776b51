"""Top examples, firing counts and context windows against brute force."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.lens import Lens
from saes import fires, ranking
from saes.examples import Example, Feature, Source, load_features, read_features, write_features
from saes.fires import FireLog
from saes.firing import EDGES, N_BINS, FiringFitter
from saes.ranking import Ranking
from tests import planted


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


def test_an_equal_value_from_an_earlier_row_still_enters_a_full_list():
    ranked, one = Ranking(1, 1), torch.ones(1)
    for row in (5, 2):
        ranked.update(torch.zeros(1, dtype=torch.int64), one, torch.tensor([row]), torch.tensor([row])).result()
    assert _as_lists(ranked.result()) == [[(1.0, 2, 2)]]


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


# Whole path: store and token file -> features


def _store(path: Path, name: str, lengths: list[int], seed: int, missing: float = 0.2):
    """A store of random rows for random documents; some positions are left out, position 0 always."""
    tokens = planted.token_file(path / f"{name}-tokens", lengths, seed=seed)
    rng = np.random.default_rng(seed)
    kept = [
        (d, p) for d in rng.permutation(len(lengths)).tolist() for p in range(1, lengths[d]) if rng.random() > missing
    ]
    doc, position = (torch.tensor(column) for column in zip(*kept, strict=True))
    x = torch.from_numpy(rng.normal(size=(len(kept), 12)).astype(np.float32))
    # Halves make ties; one row in twenty is massive.
    x = torch.round(x * 2) / 2
    x[::20] *= 500
    return Source(planted.store(path / name, tokens, x, doc, position), tokens), x, kept


def _dense(sae, x: torch.Tensor, threshold: float) -> np.ndarray:
    """TopK by sorting; independent of Codes, kernels and FireLog."""
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu().detach().numpy()
    keep = np.argsort(-pre, axis=1, kind="stable")[:, : sae.config.k]
    out = np.zeros_like(pre)
    np.put_along_axis(out, keep, np.take_along_axis(pre, keep, 1), 1)
    out[np.linalg.norm(x.numpy(), axis=1) > threshold] = 0
    return out


def _expected_examples(acts, stores, feature, k, before, after):
    """By walking over documents with dictionaries."""
    found, at = [], 0
    for source, x, kept in stores:
        values = {key: float(acts[at + i, feature]) for i, key in enumerate(kept)}
        best: dict[int, tuple[float, int, int]] = {}
        for row, ((doc, position), value) in enumerate(values.items()):
            if value > 0 and value > best.get(doc, (0.0,))[0]:
                best[doc] = (value, at + row, position)
        for doc, (value, row, position) in best.items():
            span = range(max(0, position - before), min(len(source.tokens[doc]), position + after + 1))
            found.append(
                (
                    (-value, row),
                    Example(
                        doc_id=source.tokens.ids[doc],
                        position=position,
                        activation=value,
                        tokens=tuple(f"w{source.tokens[doc][p]}" for p in span),
                        activations=tuple(values.get((doc, p), 0.0) for p in span),
                        peak=position - span[0],
                    ),
                )
            )
        at += len(x)
    return [example for _, example in sorted(found, key=lambda pair: pair[0])[:k]]


def _same(found: Example, expected: Example):
    assert (found.doc_id, found.position, found.tokens, found.peak) == (
        expected.doc_id,
        expected.position,
        expected.tokens,
        expected.peak,
    )
    assert found.activation == found.activations[found.peak]
    assert found.activations == pytest.approx(expected.activations, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("cache_bytes", [2**30, 4_000, 0])
@pytest.mark.parametrize("before,after", [(3, 2), (0, 0), (40, 40)])
def test_features_equal_brute_force(tmp_path, monkeypatch, cache_bytes, before, after):
    monkeypatch.setattr(fires, "_ROWS", 16)
    stores = [_store(tmp_path, "a", [9, 30, 2, 14, 21, 5], 0), _store(tmp_path, "b", [12, 17, 8], 1)]
    sae = planted.orthonormal_sae(12, 10, 3)
    threshold = 50.0
    acts = _dense(sae, torch.cat([x for _, x, _ in stores]), threshold)
    found = list(
        read_features(
            sae,
            [source for source, _, _ in stores],
            planted.SITE,
            tokenizer=planted.word_tokenizer(),
            n_examples=4,
            before=before,
            after=after,
            threshold=threshold,
            cache_bytes=cache_bytes,
        )
    )
    usual = np.linalg.norm(torch.cat([x for _, x, _ in stores]).numpy(), axis=1) <= threshold
    assert 0 < (~usual).sum() < 20 and len(found) == 10
    for feature in found:
        column = acts[:, feature.index]
        fires_ = column[column > 0]
        assert feature.density == pytest.approx(len(fires_) / usual.sum(), rel=1e-12)
        assert feature.max_activation == pytest.approx(fires_.max(), rel=1e-5)
        assert feature.mean_activation == pytest.approx(fires_.mean(), rel=1e-5)
        assert sum(feature.histogram) == len(fires_) and len(feature.edges) == len(feature.histogram) + 1
        expected = _expected_examples(acts, stores, feature.index, 4, before, after)
        assert len(feature.examples) == len(expected) == 4
        for one, other in zip(feature.examples, expected, strict=True):
            _same(one, other)


def test_promoted_tokens_come_from_the_decoder(tmp_path):
    source, _, _ = _store(tmp_path, "a", [20, 20], 0)
    sae = planted.orthonormal_sae(12, 10, 3)
    lens = Lens(torch.randn(97, 12, generator=torch.Generator().manual_seed(1)))
    found = list(
        read_features(
            sae, [source], planted.SITE, tokenizer=planted.word_tokenizer(), lens=lens, n_tokens=3, n_examples=1
        )
    )
    logits = sae.W_dec.detach() @ lens.W.T
    for feature, row in zip(found, logits, strict=True):
        order = row.argsort(descending=True).tolist()
        names = planted.word_tokenizer().convert_ids_to_tokens(order)
        assert [token for token, _ in feature.promoted] == names[:3]
        assert [token for token, _ in feature.suppressed] == names[:-4:-1]
        assert [x for _, x in feature.promoted] == pytest.approx(row[order[:3]].tolist(), rel=1e-5)


def test_a_feature_that_never_fires(tmp_path):
    source, _, _ = _store(tmp_path, "a", [20, 20], 0)
    sae = planted.orthonormal_sae(12, 10, 3)
    with torch.no_grad():
        sae.b_enc[4] = -1e9
    feature = list(read_features(sae, [source], planted.SITE, tokenizer=planted.word_tokenizer()))[4]
    assert feature == Feature(4, 0.0, 0.0, 0.0, (), (), (), (), ())


def test_features_survive_the_disk(tmp_path):
    source, _, _ = _store(tmp_path, "a", [20, 30, 10], 0)
    sae = planted.orthonormal_sae(12, 10, 3)
    lens = Lens(torch.randn(97, 12, generator=torch.Generator().manual_seed(1)))
    features = list(read_features(sae, [source], planted.SITE, tokenizer=planted.word_tokenizer(), lens=lens))
    odd = Feature(10, 0.25, 1.0, 1.0, (1,), (1.0, 2.0), (('\n\u2028 é"<', 1.0),), (), ())
    assert write_features(tmp_path / "features.jsonl", [*features, odd]) == 11
    found = list(load_features(tmp_path / "features.jsonl"))
    assert len(found) == 11 and found[-1] == odd
    for a, b in zip(found, features, strict=False):
        assert a.max_activation == pytest.approx(b.max_activation, rel=1e-3)
        assert (a.index, a.histogram) == (b.index, b.histogram)
        assert [t for t, _ in a.promoted] == [t for t, _ in b.promoted]
        for one, other in zip(a.examples, b.examples, strict=True):
            assert (one.doc_id, one.position, one.tokens, one.peak) == (
                other.doc_id,
                other.position,
                other.tokens,
                other.peak,
            )
            assert one.activations == pytest.approx(other.activations, rel=1e-3)
    assert write_features(tmp_path / "again.jsonl", found) == 11
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "features.jsonl").read_bytes()


def test_a_damaged_feature_list_is_refused(tmp_path):
    path = tmp_path / "features.jsonl"
    write_features(path, [Feature(0, 0.0, 0.0, 0.0, (), (), (), (), ())])
    with path.open("a") as file:
        file.write('{"index": 1}\n')
    with pytest.raises(InputError, match=r"features\.jsonl, line 2 has density, .*; got index"):
        list(load_features(path))


def test_the_wrong_token_file_is_refused(tmp_path):
    source, _, _ = _store(tmp_path, "a", [20, 20], 0)
    other = planted.token_file(tmp_path / "other", [20, 20], seed=5)
    with pytest.raises(InputError, match="was made from the token file of digest "):
        read_features(
            planted.orthonormal_sae(12, 10, 3),
            [Source(source.store, other)],
            planted.SITE,
            tokenizer=planted.word_tokenizer(),
        )


@pytest.mark.parametrize(
    "made, message",
    [
        ({"model_name": "gpt2"}, "was made for the model gpt2, and is asked to work on planted"),
        ({"hook_name": "blocks.0.hook_resid_post"}, "was made for the site blocks.0.hook_resid_post"),
    ],
)
def test_an_sae_of_another_model_or_site_is_refused(tmp_path, made, message):
    source, _, _ = _store(tmp_path, "a", [20, 20], 0)
    sae = planted.orthonormal_sae(12, 10, 3, **made)
    with pytest.raises(InputError, match=message):
        FireLog(sae, source.store, planted.SITE)
    with pytest.raises(InputError, match=message):
        read_features(sae, [source], planted.SITE, tokenizer=planted.word_tokenizer())
    found = list(read_features(sae, [source], planted.SITE, tokenizer=planted.word_tokenizer(), force=True))
    plain = planted.orthonormal_sae(12, 10, 3)
    assert found == list(read_features(plain, [source], planted.SITE, tokenizer=planted.word_tokenizer()))
    wide = planted.orthonormal_sae(13, 10, 3)
    with pytest.raises(InputError, match="reads activations of width 13, these have width 12"):
        read_features(wide, [source], planted.SITE, tokenizer=planted.word_tokenizer(), force=True)


@pytest.mark.parametrize("sources,before", [(0, 3), (1, -1)])
def test_bad_options_are_refused(tmp_path, sources, before):
    source, _, _ = _store(tmp_path, "a", [20, 20], 0)
    with pytest.raises(InputError, match=f"got {sources} stores, before={before}, after=8: expected one or more"):
        read_features(
            planted.orthonormal_sae(12, 10, 3),
            [source] * sources,
            planted.SITE,
            tokenizer=planted.word_tokenizer(),
            before=before,
        )
