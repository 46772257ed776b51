"""The operating interaction against dense n x n matrices of the independent forward pass; gauges; padding; rows."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from midlens_kernels.bilinear_spectrum import gram_spectrum
from torch import Tensor

from interp.attention import passes
from interp.attention.operating import GAUGES, against_kernel, operating, operating_rows
from interp.attention.passes import batches_of, compared
from interp.batching import Batch
from interp.errors import InputError
from interp.model import HookedModel
from interp.plain import plain_run
from interp.plain.settings import read_settings
from interp.sites import Point, Site
from tests.tiny_models import FAMILIES, random_tokens, tiny
from tests.toy_store import token_file
from tests.wrapped_models import wrapped

EXACT = {"rtol": 1e-10, "atol": 1e-10}
RANKS = ("erank1", "erank2", "participation", "stable", "r90", "r95", "r99")


def random_qk(n: int, h: int, g: int, e: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, heads, e, generator=generator, dtype=torch.float64) for heads in (h, g))
    return q + 1, k + 2 * torch.randn(g, e, generator=generator, dtype=torch.float64)


def dense(q: Tensor, k: Tensor, scale: float = 1.0, gauge: str = "raw") -> Tensor:
    """h n n: the gauges as what they take out of the n x n matrix."""
    B = torch.stack([scale * q[:, i] @ k[:, i // (q.shape[1] // k.shape[1])].mT for i in range(q.shape[1])])
    if gauge != "raw":
        B = B - B.mean(2, keepdim=True)
    if gauge == "double_centred":
        B = B - B.mean(1, keepdim=True)
    return B


def numpy_measures(B: Tensor) -> dict[str, float]:
    """Routing fraction and ranks of one head's dense matrix, by numpy."""
    matrix = B.numpy()
    A, S = (matrix - matrix.T) / 2, (matrix + matrix.T) / 2
    found = {"routing_fraction": (A**2).sum() / (matrix**2).sum(), "rms": math.sqrt((matrix**2).mean())}
    for name, part in (("routing", A), ("filtering", S)):
        sigma = np.linalg.svd(part, compute_uv=False)
        p, p2 = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
        p, p2 = p[p > 1e-15], p2[p2 > 1e-15]
        found[f"{name}_erank1"] = math.exp(-(p * np.log(p)).sum())
        found[f"{name}_erank2"] = math.exp(-(p2 * np.log(p2)).sum())
        found[f"{name}_participation"] = (sigma**2).sum() ** 2 / (sigma**4).sum()
        found[f"{name}_stable"] = (sigma**2).sum() / sigma[0] ** 2
        for tau in (90, 95, 99):
            r = int(np.searchsorted(np.cumsum(sigma**2) / (sigma**2).sum(), tau / 100) + 1)
            found[f"{name}_r{tau}"] = r + r % 2 if name == "routing" else r
    return found


@pytest.mark.parametrize("n", [3, 8, 12, 16, 40])  # below e, e, below 2e, 2e, above
@pytest.mark.parametrize("gauge", GAUGES)
def test_factors_give_the_dense_matrix_and_the_core_its_spectra(n, gauge):
    q, k = random_qk(n, 4, 2, 8)
    b = operating(q, k, scale=0.3, gauge=gauge)
    B = dense(q, k, 0.3, gauge)
    torch.testing.assert_close(b.left @ b.right.mT, B, **EXACT)
    p = min(n, 16)
    skew = torch.linalg.svdvals((B - B.mT) / 2)
    torch.testing.assert_close(b.routing().values, skew[:, : p // 2 * 2 : 2], **EXACT)
    torch.testing.assert_close(b.routing().energy, skew.square().sum(-1), **EXACT)
    symmetric = torch.linalg.eigvalsh((B + B.mT) / 2)
    torch.testing.assert_close(b.filtering().energy, symmetric.square().sum(-1), **EXACT)
    assert b.left.shape == (4, n, 8)


def test_long_sequences_need_no_square_matrix():
    q, k = random_qk(60_000, 1, 1, 2)  # n x n would take 29 GB
    b = operating(q, k, gauge="double_centred")
    through_gram = gram_spectrum(torch.cat([b.left, b.right], -1).mT @ torch.cat([b.left, b.right], -1))
    torch.testing.assert_close(b.routing().values, through_gram.routing, rtol=1e-7, atol=0)


def test_a_query_head_reads_the_keys_of_its_group():
    q, k = random_qk(9, 4, 2, 8)
    b = operating(q, k)
    for head, group in enumerate((0, 0, 1, 1)):
        torch.testing.assert_close(b.left[head] @ b.right[head].mT, q[:, head] @ k[:, group].mT, **EXACT)


def test_several_sequences_of_one_length():
    (q, k), (r, m) = random_qk(9, 4, 2, 8), random_qk(9, 4, 2, 8, seed=1)
    both = operating(torch.stack([q, r]), torch.stack([k, m]), gauge="double_centred")
    assert both.left.shape == (2, 4, 9, 8)
    one = operating(r, m, gauge="double_centred")
    torch.testing.assert_close(both.left[1] @ both.right[1].mT, one.left @ one.right.mT, **EXACT)


def softmax(B: Tensor) -> Tensor:
    return B.masked_fill(torch.ones(B.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def product(q: Tensor, k: Tensor, gauge: str, **options) -> Tensor:
    b = operating(q, k, gauge=gauge, **options)  # pyright: ignore[reportArgumentType]
    return b.left @ b.right.mT


def test_centring_keys_changes_the_split_and_not_attention():
    q, k = random_qk(40, 4, 2, 8)
    raw, centred, doubly = (product(q, k, gauge, scale=0.3) for gauge in GAUGES)
    for attention in (softmax, lambda B: B.softmax(-1)):
        torch.testing.assert_close(attention(raw), attention(centred), **EXACT)
        assert (attention(raw) - attention(doubly)).abs().max() > 0.1
    raw_split, centred_split = (operating(q, k, gauge=gauge).routing().energy for gauge in GAUGES[:2])
    assert ((raw_split - centred_split).abs() / raw_split > 0.1).all()
    # A soft-cap bends each logit by itself, and the freedom is gone.
    assert (softmax(2 * torch.tanh(raw / 2)) - softmax(2 * torch.tanh(centred / 2))).abs().max() > 0.01


def test_a_sink_routes_half_its_energy_in_one_plane_until_queries_are_centred():
    n, e = 30, 4
    q, k = torch.zeros(n, 1, e, dtype=torch.float64), torch.zeros(n, 1, e, dtype=torch.float64)
    q[..., 0] = 1
    v = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k[:, 0, 0] = v - v.mean()
    for gauge in ("raw", "key_centred"):  # 1 v^T with centred v has no row means to take out
        b = operating(q, k, gauge=gauge)
        ranks = b.routing().ranks()
        assert float(b.routing().energy / (b.routing().energy + b.filtering().energy)) == pytest.approx(0.5, abs=1e-12)
        assert all(float(getattr(ranks, name)) == pytest.approx(2, abs=1e-6) for name in RANKS)
    assert float(operating(q, k, gauge="double_centred").routing().energy) < 1e-20
    # A number per query, u 1^T, looks the same raw and is gone when keys are centred.
    b = operating(k, q)
    assert float(b.routing().energy / (b.routing().energy + b.filtering().energy)) == pytest.approx(0.5, abs=1e-12)
    assert float(operating(k, q, gauge="key_centred").routing().energy) < 1e-20


def test_the_first_position_goes_before_the_means():
    q, k = random_qk(12, 4, 2, 8)
    k[0] *= 50
    for gauge in GAUGES:
        torch.testing.assert_close(product(q, k, gauge, skip_first=True), product(q[1:], k[1:], gauge), **EXACT)
    left_in, left_out = product(q, k, "key_centred")[:, 1:, 1:], product(q, k, "key_centred", skip_first=True)
    assert (left_in - left_out).abs().max() > 1


def independent(model: HookedModel, tokens: Tensor, layer: int) -> Tensor:
    """h n n of one unpadded sequence: scaled, before mask and soft-cap, from the plain forward pass."""
    config = model.hf.config.to_dict()
    run = plain_run(config, model.hf.state_dict(), tokens[None])
    points = (Point.ROT_Q, Point.ROT_K) if model.cfg.rotary else (Point.Q, Point.K)
    q, k = (run.sites[Site(point, layer)][0] for point in points)
    return dense(q, k, read_settings(config).score_scales[layer])


def centred(B: Tensor, gauge: str) -> Tensor:
    if gauge != "raw":
        B = B - B.mean(2, keepdim=True)
    return B - B.mean(1, keepdim=True) if gauge == "double_centred" else B


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2_untied", "qwen2_sliding"])
def test_rows_are_means_over_real_positions_of_the_independent_forward(family):
    model = wrapped(family)
    tokens, lengths = random_tokens(model.hf, 3, 11), torch.tensor([11, 6, 9])
    for i, length in enumerate(lengths):
        tokens[i, length:] = 0
    rows = operating_rows(model, tokens, lengths=lengths, progress=False)
    spec = model.cfg
    expected_heads = [(layer, head) for layer in range(spec.n_layers) for head in range(spec.n_heads)]
    assert [(row["layer"], row["head"]) for row in rows] == expected_heads
    for layer in range(spec.n_layers):
        matrices = [independent(model, tokens[i, :length], layer) for i, length in enumerate(lengths)]
        for row in rows[layer * spec.n_heads : (layer + 1) * spec.n_heads]:
            assert row["group"] == row["head"] // (spec.n_heads // spec.n_kv_heads)
            for gauge in GAUGES:
                found = [numpy_measures(centred(B, gauge)[row["head"]]) for B in matrices]
                for name in found[0]:
                    mean = sum(measures[name] for measures in found) / 3
                    assert row[f"op_{gauge}_{name}"] == pytest.approx(mean, rel=2e-4), (gauge, name)
                spread = np.std([measures["routing_erank1"] for measures in found], ddof=1)
                assert row[f"op_{gauge}_routing_erank1_std"] == pytest.approx(spread, rel=1e-2, abs=1e-4)
            assert row["op_sequences"] == 3 and row["op_positions"] == pytest.approx(26 / 3)
            assert row["op_capacity"] == pytest.approx((10 + 6 + 8) / 3) and not row["op_skip_first"]


def test_tiled_groups_would_be_noticed():
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 1, 11)
    row = operating_rows(model, tokens, layers=[1], progress=False)[1]
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens)
    q, k = (run.sites[Site(point, 1)][0] for point in (Point.ROT_Q, Point.ROT_K))
    right, wrong = q[:, 1] @ k[:, 0].mT / 4, q[:, 1] @ k[:, 1].mT / 4
    assert row["op_raw_routing_fraction"] == pytest.approx(numpy_measures(right)["routing_fraction"], rel=1e-4)
    assert abs(row["op_raw_routing_fraction"] - numpy_measures(wrong)["routing_fraction"]) > 0.01


def test_the_first_position_may_be_left_out_and_the_row_says_so():
    model = wrapped("mistral")
    tokens = random_tokens(model.hf, 1, 11)
    row = operating_rows(model, tokens, layers=[0], skip_first=True, progress=False)[2]
    run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens)
    q, k = (run.sites[Site(point, 0)][0, 1:] for point in (Point.ROT_Q, Point.ROT_K))
    for gauge in GAUGES:
        expected = numpy_measures(dense(q, k, 0.25, gauge)[2])
        assert row[f"op_{gauge}_routing_fraction"] == pytest.approx(expected["routing_fraction"], rel=1e-4)
    assert row["op_skip_first"] and row["op_positions"] == 10 and row["op_capacity"] == 10
    assert math.isnan(row["op_raw_routing_fraction_std"])  # of one sequence


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(x[name] == pytest.approx(y[name], rel=1e-3, nan_ok=True) for name in x)
        for x, y in zip(a, b, strict=True)
    )


def test_tokens_come_as_a_tensor_as_batches_or_from_a_file(tmp_path, monkeypatch):
    model = wrapped("llama")
    file = token_file(tmp_path / "tokens", [30, 12, 21])
    rows = operating_rows(model, file, max_length=16, progress=False)
    windows = [(0, 0, 16), (0, 16, 14), (1, 0, 12), (2, 0, 16), (2, 16, 5)]
    tokens = torch.zeros(5, 16, dtype=torch.int64)
    lengths = torch.tensor([n for _, _, n in windows])
    for i, (doc, start, n) in enumerate(windows):
        tokens[i, :n] = torch.from_numpy(file[doc][start : start + n].astype(np.int64))
    assert same(rows, operating_rows(model, tokens, lengths=lengths, progress=False))
    zeros = torch.zeros(5, dtype=torch.int64)
    fed = iter([Batch(*(x[part] for x in (tokens, lengths, zeros, zeros))) for part in (slice(0, 2), slice(2, 5))])
    assert same(rows, operating_rows(model, fed, progress=False))
    monkeypatch.setattr(passes, "HELD", 1)  # a pass per layer
    assert same(rows, operating_rows(model, file, max_length=16, progress=False))
    assert same(rows[4:8], operating_rows(model, file, max_length=16, layers=[1], gauges=GAUGES, progress=False))


def test_layers_of_one_group_share_a_pass(monkeypatch):
    model = wrapped("llama")
    fed = batches_of(model, random_tokens(model.hf, 2, 11))
    runs = []
    own = HookedModel.capture
    monkeypatch.setattr(HookedModel, "capture", lambda *a, **k: runs.append(1) or own(*a, **k))
    seen = [(c.layer, c.q.shape, c.k.shape) for c in compared(model, fed)]
    assert len(runs) == 1 and [layer for layer, *_ in seen] == [0, 0, 1, 1, 2, 2]
    assert seen[0][1:] == ((11, 4, 16), (11, 2, 16))
    # Twice 22 tokens of 6 heads of 16 float32 numbers: two layers fit.
    monkeypatch.setattr(passes, "HELD", 2 * 2 * 22 * 6 * 16 * 4)
    assert len(list(compared(model, fed))) == 6 and len(runs) == 3


def test_whole_sequences_until_enough_tokens():
    model = wrapped("llama")
    tokens, lengths = random_tokens(model.hf, 4, 11), torch.tensor([5, 11, 2, 7])
    fed = batches_of(model, tokens, lengths=lengths, max_tokens=6)
    assert [batch.lengths.tolist() for batch in fed] == [[5, 11]]
    assert sum(int(b.lengths.sum()) for b in batches_of(model, tokens, lengths=lengths)) == 25
    rows = operating_rows(model, tokens, lengths=torch.tensor([5, 11, 1, 7]), progress=False)
    assert rows[0]["op_sequences"] == 3  # one position has nothing to compare


def test_ranks_over_those_of_the_kernel():
    rows = [
        {"layer": 0, "head": 1, "op_raw_routing_r90": 6.0, "op_raw_routing_fraction": 0.2, "op_raw_filtering_r90": 5}
    ]
    kernels = [{"layer": 0, "head": 0, "routing_r90": 9.0}, {"layer": 0, "head": 1, "routing_r90": 72.0}]
    joined = against_kernel(rows, kernels)
    assert joined == [rows[0] | {"op_raw_routing_r90_of_kernel": 6 / 72}]
    assert math.isnan(against_kernel(rows, [kernels[1] | {"routing_r90": 0.0}])[0]["op_raw_routing_r90_of_kernel"])
    with pytest.raises(InputError, match=r"lack \(layer, head\) \[\(0, 1\)\]"):
        against_kernel(rows, kernels[:1])


def test_a_silent_head_has_no_fraction_and_no_error():
    model = HookedModel.wrap(tiny("llama"))
    with torch.no_grad():
        model.hf.model.layers[0].self_attn.q_proj.weight[:16] = 0  # head 0
    rows = operating_rows(model, random_tokens(model.hf, 2, 11), layers=[0], progress=False)
    assert math.isnan(rows[0]["op_raw_routing_fraction"]) and rows[0]["op_raw_rms"] == 0
    assert 0 < rows[1]["op_raw_routing_fraction"] < 1


def test_bad_input_is_named():
    q, k = random_qk(5, 4, 2, 8)
    with pytest.raises(InputError, match="gauge must be one of raw, key_centred, double_centred, got 'other'"):
        inspect.unwrap(operating)(q, k, gauge="other")  # without the type checker of the tests
    with pytest.raises(InputError, match="4 query heads cannot share 3 groups"):
        operating(q, torch.cat([k, k[:, :1]], 1))
    with pytest.raises(InputError, match="has none left without its first"):
        operating(q[:1], k[:1], skip_first=True)
    model = wrapped("llama")
    tokens = random_tokens(model.hf, 2, 5)
    with pytest.raises(InputError, match="fewer than two positions"):
        operating_rows(model, tokens, lengths=torch.tensor([1, 1]), progress=False)
    with pytest.raises(InputError, match=r"lengths=\[5, 6\]: expected 2 numbers from 1 to 5"):
        batches_of(model, tokens, lengths=torch.tensor([5, 6]))
    with pytest.raises(InputError, match="lengths go with a tensor of tokens"):
        batches_of(model, [], lengths=torch.tensor([5]))
    unchecked = inspect.unwrap(batches_of)
    with pytest.raises(InputError, match="tokens hold a str: expected a tensor"):
        unchecked(model, "some text")
    with pytest.raises(InputError, match=r"tokens of shape \(5,\): expected \(sequences, positions\)"):
        unchecked(model, tokens[0])
    with pytest.raises(InputError, match="max_tokens must be at least 1, got 0"):
        batches_of(model, tokens, max_tokens=0)
    with pytest.raises(InputError, match="no sequence to run"):
        operating_rows(model, [], progress=False)
    with pytest.raises(InputError, match=r"layers \[3\]: the model has 3 loaded"):
        operating_rows(model, tokens, layers=[3], progress=False)
    with pytest.raises(InputError, match="no layer was asked for"):
        operating_rows(model, tokens, layers=[], progress=False)


def test_queries_normed_but_not_turned_are_refused():
    own = wrapped("qwen3")
    anatomy = dataclasses.replace(own.anatomy, spec=dataclasses.replace(own.cfg, rotary=False))
    model = HookedModel.wrap(own.hf, anatomy=anatomy)
    with pytest.raises(InputError, match="no site holds what it compares"):
        operating_rows(model, random_tokens(own.hf, 1, 5), progress=False)


def test_the_real_model_operates_below_its_capacity(smollm2):
    ids = smollm2.tokenizer("The routing part of a head moves what the filtering part weighs. " * 8)["input_ids"]
    rows = operating_rows(smollm2, torch.tensor([ids]), layers=[12], progress=False)
    assert len(rows) == 9
    for row in rows:
        assert row["op_capacity"] == min(len(ids), 128) // 2 * 2
        for gauge in GAUGES:
            assert 2 <= row[f"op_{gauge}_routing_r90"] < row["op_capacity"] / 2
            assert 0 < row[f"op_{gauge}_routing_fraction"] < 1
