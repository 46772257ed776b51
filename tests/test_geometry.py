"""Directions of dictionaries: against dense arithmetic, and planted copies, splits and opposites."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saes.geometry as geometry_module
from interp.errors import InputError
from interp.model import HookedModel
from saes.geometry import Spread, expected_maximum, geometry, nearest, splitting
from saes.sae import SAE, SAEConfig
from saes.stability import match
from saes.suite import SuiteConfig, compare, fires_in, run_suite
from saes.tensor_rows import TensorRows
from tests.tiny_models import tiny


def _rows(f: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(f, d, generator=torch.Generator().manual_seed(seed))


def _cosines(A: torch.Tensor, B: torch.Tensor) -> np.ndarray:
    a, b = A.double().numpy(), B.double().numpy()
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


@settings(max_examples=25, deadline=None)
@given(f=st.integers(2, 23), g=st.integers(1, 17), cells=st.integers(1, 200), seed=st.integers(0, 10**6))
def test_nearest_is_the_dense_maximum_whatever_the_chunks(f, g, cells, seed):
    A, B = _rows(f, 5, seed), _rows(g, 5, seed + 1)
    own = _cosines(A, A)
    np.fill_diagonal(own, -np.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_module, "_CELLS", cells)
        among, across = nearest(A), nearest(A, B)
        split = splitting(A, B, threshold=0.3)
    np.testing.assert_allclose(among.cosine, own.max(1), atol=1e-6)
    np.testing.assert_allclose(across.cosine, _cosines(A, B).max(1), atol=1e-6)
    assert all(own[i, j] == pytest.approx(own[i].max(), abs=1e-6) for i, j in enumerate(among.row.tolist()))
    expected = [np.flatnonzero(row >= 0.3).tolist() for row in _cosines(A, B)]
    assert [split.of(i) for i in range(f)] == expected


def test_planted_copies_and_opposites():
    A = torch.eye(6)
    A[5] = 3 * A[0] + 1e-3 * A[1]  # nearly a copy of row 0, of another length
    A[4] = -A[3]  # an opposite is not alike
    A[2] = 0  # a feature without direction
    found = nearest(A)
    assert found.row[0] == 5 and found.row[5] == 0 and found.cosine[0] > 0.999
    assert found.cosine[3] == 0 and found.cosine[4] == 0 and found.cosine[2] == 0


def test_planted_splits_are_counted_exactly():
    """Narrow feature i has i children; the rest of the wide dictionary is orthogonal to all of them."""
    d = 40
    basis = torch.linalg.qr(_rows(d, d))[0]
    narrow, spare = basis[:4], basis[4:]
    children = [0.8 * narrow[i] + 0.6 * spare[3 * i + j] for i in range(4) for j in range(i)]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([torch.stack(children), spare[-10:]])[order]
    found = splitting(2 * narrow, 0.5 * wide, threshold=0.7)
    assert found.counts.tolist() == [0, 1, 2, 3]
    parents = [i for i in range(4) for _ in range(i)]
    for i in range(4):
        assert sorted(order[found.of(i)].tolist()) == [n for n, parent in enumerate(parents) if parent == i]
    np.testing.assert_allclose(found.cosines, 0.8, atol=1e-6)
    expected = {"no_child": 0.25, "one_child": 0.25, "several_children": 0.5, "mean_children": 1.5, "most_children": 3}
    assert found.summary() == expected
    assert splitting(narrow, wide, threshold=0.81).counts.sum() == 0


def test_chance_is_what_random_directions_give():
    for d, g in ((8, 30), (64, 500)):
        A, B = _rows(4000, d, seed=3), _rows(g, d, seed=4)
        maxima = _cosines(A, B).max(1)
        # One draw of B: spread over draws measured at 0.01 (d 8) and 0.003 (d 64).
        assert expected_maximum(d, g) == pytest.approx(maxima.mean(), abs=0.03 if d == 8 else 0.01)
    assert expected_maximum(16, 1) == pytest.approx(0, abs=1e-6)


def test_geometry_of_an_sae():
    W_enc, W_dec = _rows(30, 8, 1), _rows(30, 8, 2)
    W_enc[:10] = 5 * W_dec[:10]
    weights = {"W_enc": W_enc.T, "b_enc": torch.zeros(30), "W_dec": W_dec, "b_dec": torch.zeros(8)}
    found = geometry(SAE.of_weights(SAEConfig(d_in=8, d_sae=30, k=2), **weights))
    both = _cosines(W_enc, W_dec).diagonal()
    assert found.alignment is not None and found.alignment.mean == pytest.approx(both.mean(), abs=1e-6)
    assert found.alignment.most == pytest.approx(1, abs=1e-6)
    for name, rows in (("decoder", W_dec), ("encoder", W_enc)):
        dense = _cosines(rows, rows)
        np.fill_diagonal(dense, -np.inf)
        spread: Spread = getattr(found, name)
        assert spread.median == pytest.approx(np.median(dense.max(1)), abs=1e-6)
        assert spread.over_05 == (dense.max(1) > 0.5).mean()
    config = SAEConfig(d_in=8, d_sae=30, k=2, d_out=8, apply_b_dec_to_input=False)
    assert geometry(SAE.of_weights(config, **weights)).alignment is None, "a transcoder's two spaces are not compared"


def test_features_that_are_dead_count_in_nothing(tmp_path):
    """Those alive are of an SAE whose dead ones would change every figure; told by the rows of a store, both ways."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    rows = torch.cat([basis[:10], basis[:10] + 0.1])  # the second ten repeat the first, and never fire
    bias = torch.cat([torch.zeros(10), torch.full((10,), -100.0)])

    def made(order):
        weights = {"W_enc": rows[order].T, "b_enc": bias[order], "W_dec": rows[order], "b_dec": torch.zeros(16)}
        config = SAEConfig(d_in=16, d_sae=20, architecture="standard", metadata={"hook_name": "resid_post.3"})
        return SAE.of_weights(config, **weights)

    sae, other = made(torch.arange(20)), made(torch.randperm(20, generator=g))
    x = torch.rand(200, 10, generator=g) @ basis[:10]
    alive = fires_in(TensorRows({"resid_post.3": x}), "resid_post.3")
    assert alive(sae).tolist() == [True] * 10 + [False] * 10
    whole, found = geometry(sae), geometry(sae, alive=alive(sae))
    assert (whole.features, found.features) == (20, 10)
    assert whole.decoder.median > 0.9 and found.decoder.most < 1e-5 and found.alignment.mean == pytest.approx(1)
    assert found.chance == expected_maximum(16, 9)
    other.save(tmp_path)
    config, model = SuiteConfig(geometry=True, against=str(tmp_path)), HookedModel.wrap(tiny("llama"))
    parts = run_suite(sae, model, config, "resid_post.3", alive=alive)
    assert parts["geometry"] == found.to_json()
    matching, splits = (parts["against"][name] for name in ("matching", "splitting"))
    assert matching == match(rows[:10], rows[:10]).summary() | {"features": 10, "other_features": 10}
    assert matching["share_over_09"] == 1 and (splits["one_child"], splits["narrow"], splits["wide"]) == (1, 10, 10)
    few = torch.zeros(20, dtype=torch.bool).index_fill_(0, torch.tensor([3]), True)
    with pytest.raises(InputError, match="1 of the SAE's 20 features fire on these rows, and directions are compared"):
        geometry(sae, alive=few)
    for own, its, whose in ((few, few & False, "the other SAE's"), (few & False, few & False, "the SAE's")):
        with pytest.raises(InputError, match=f"none of {whose} 20 features fires on these rows"):
            compare(sae, other, own, its)
    everything = run_suite(sae, model, config, "resid_post.3")
    assert everything["against"]["splitting"]["several_children"] == 1 and everything["geometry"] == whole.to_json()


def test_bad_input():
    with pytest.raises(InputError, match="width 3 and of width 4 cannot be compared"):
        nearest(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InputError, match="two rows or more to compare with one another, got 1"):
        nearest(torch.ones(1, 3))
    with pytest.raises(InputError, match=r"threshold=0\.0: expected a cosine above 0"):
        splitting(torch.ones(2, 3), torch.ones(2, 3), threshold=0.0)
