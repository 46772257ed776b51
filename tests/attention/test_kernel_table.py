"""Tables of a model's heads: every column against its definition, what rows depend on, layer scores, the real model."""

import math
from typing import Any

import pytest
import torch

from interp.attention.heads import kernel
from interp.attention.layer_scores import PUBLISHED, layer_scores
from interp.attention.metrics import HeadMetrics, head_metrics
from interp.attention.ranks import Ranks
from interp.attention.table import kernel_eigenvalues, kernel_rows
from interp.errors import InputError
from tests.attention.test_ranks_metrics import dense_directionality
from tests.tiny_models import tiny


def test_columns():
    hf = tiny("llama")
    rows = kernel_rows(hf, draws=4, progress=False)
    assert [(row["layer"], row["head"], row["group"]) for row in rows[:5]] == [
        (0, 0, 0),
        (0, 1, 0),
        (0, 2, 1),
        (0, 3, 1),
        (1, 0, 0),
    ]
    ranks = [f"{part}_{name}" for part in ("routing", "filtering") for name in Ranks._fields]
    assert {*HeadMetrics._fields, *ranks, "capacity", "z_routing_r90", "null_spectral_abscissa"} <= set(rows[0])
    assert {"gaussian_routing_fraction", "gaussian_z_routing_erank1"} <= set(rows[0])
    assert len(rows) == 12 and all(type(value) in (int, float) for row in rows for value in row.values())
    m = kernel(hf, 1).bilinear
    metrics, routing, filtering = head_metrics(m), m.routing().ranks(), m.filtering().ranks()
    for h, row in enumerate(rows[4:8]):
        assert row["capacity"] == 32
        for name in HeadMetrics._fields:
            assert row[name] == pytest.approx(float(getattr(metrics, name)[h]), rel=1e-9), name
        for name in Ranks._fields:
            assert row[f"routing_{name}"] == pytest.approx(float(getattr(routing, name)[h]), rel=1e-9)
            assert row[f"filtering_{name}"] == pytest.approx(float(getattr(filtering, name)[h]), rel=1e-9)
        assert abs(row["z_routing_fraction"]) < 30 and row["null_spectral_abscissa"] > 0


def test_rows_do_not_depend_on_the_other_layers():
    hf = tiny("gpt2")
    whole = kernel_rows(hf, draws=3, seed=5, progress=False)
    part = kernel_rows(hf, layers=[2], draws=3, seed=5, progress=False)
    for a, b in zip(whole[8:], part, strict=True):
        assert a == pytest.approx(b, nan_ok=True)
    other = kernel_rows(hf, layers=[2], draws=3, seed=6, progress=False)
    assert other[0]["null_routing_fraction"] != part[0]["null_routing_fraction"]
    assert other[0]["routing_fraction"] == part[0]["routing_fraction"]


def test_threads_change_nothing():
    hf, threads = tiny("llama"), torch.get_num_threads()
    tables = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            tables.append(kernel_rows(hf, layers=[0], draws=3, progress=False))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(a == pytest.approx(b, nan_ok=True) for a, b in zip(*tables, strict=True))


def test_without_nulls():
    rows = kernel_rows(tiny("llama"), layers=[0], draws=0, progress=False)
    assert not any("null_" in name or "z_" in name or "gaussian" in name for name in rows[0])


def test_conventions_reach_the_table():
    hf = tiny("gpt2")
    tables = [
        kernel_rows(hf, layers=[1], draws=0, progress=False, **options)
        for options in ({}, {"fold_norm": False}, {"biases": True})
    ]
    assert len({round(table[0]["energy"], 9) for table in tables}) == 3


def test_a_zero_head():
    hf: Any = tiny("gpt2")
    with torch.no_grad():
        hf.transformer.h[0].attn.c_attn.weight[:, :12] = 0  # queries of head 0
    zero, other = kernel_rows(hf, layers=[0], draws=3, progress=False)[:2]
    assert zero["energy"] == zero["routing_r90"] == zero["filtering_erank1"] == 0
    assert math.isnan(zero["routing_fraction"]) and math.isnan(zero["z_routing_fraction"])
    assert math.isfinite(other["z_routing_fraction"])


def test_eigenvalues():
    hf = tiny("llama")
    found = kernel_eigenvalues(hf, progress=False)
    assert found.shape == (3, 4, 16) and found.dtype == torch.complex128
    M = kernel(hf, 2).bilinear.dense()
    torch.testing.assert_close(found[2].sum(-1).real, M.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close((found[2] ** 3).sum(-1).real, (M @ M @ M).diagonal(dim1=-2, dim2=-1).sum(-1))


def test_refusals_reach_the_table():
    with pytest.raises(InputError, match="normalises queries and keys"):
        kernel_rows(tiny("qwen3"), progress=False)


def test_layer_scores_against_dense_matrices():
    """Sum of all heads of raw weights, queries paired with their own group."""
    hf: Any = tiny("llama")
    found = layer_scores(hf)
    for layer, block in enumerate(hf.model.layers):
        q = block.self_attn.q_proj.weight.detach().double().view(4, 16, 48)
        k = block.self_attn.k_proj.weight.detach().double().view(2, 16, 48)[[0, 0, 1, 1]]
        M = torch.einsum("hed,hef->df", q, k)
        assert float(found.symmetry[layer]) == pytest.approx(float(torch.trace(M @ M) / M.square().sum()), abs=1e-10)
        assert float(found.directionality[layer]) == pytest.approx(dense_directionality(M), abs=1e-9)
    assert found.median() == pytest.approx((float(found.symmetry.median()), float(found.directionality.median())))


def test_published_medians_are_of_models_with_keys_for_every_head():
    assert PUBLISHED["gpt2"] == (0.15, -0.58) and not any("llama-3" in name for name in PUBLISHED)
    assert all(-1 <= value <= 1 for pair in PUBLISHED.values() for value in pair)


def test_heads_of_the_real_model(smollm2):
    rows = kernel_rows(smollm2, layers=[6], draws=5, progress=False)
    for row in rows:
        assert 2 <= row["routing_r90"] <= row["capacity"] == 128
        assert 0 < row["routing_fraction"] < 1 and row["spectral_abscissa"] <= row["numerical_abscissa"]
        assert row["energy"] == pytest.approx(row["routing_energy"] + row["filtering_energy"])
        assert abs(row["z_filtering_erank1"]) > 3  # trained heads are not randomly oriented
