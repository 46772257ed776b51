"""Corpus Gram matrices against dense spectra of the concatenated corpus, with RoPE and without; merging; the loss."""

import inspect
import math

import pytest
import torch
from midlens_kernels import bilinear_spectrum
from torch import Tensor

from interp.attention.corpus_gram import CorpusGram, corpus_grams, corpus_rows, store_grams
from interp.attention.operating import GAUGES
from interp.errors import InputError
from interp.extract import extract
from interp.plain import plain_run
from interp.sites import Point, Site
from tests.attention.test_operating import dense, random_qk
from tests.tiny_models import random_tokens
from tests.toy_store import token_file
from tests.wrapped_models import wrapped

CLOSE = {"rtol": 0, "atol": 1e-8}  # what a Gram matrix in float64 keeps, relative to |q| |k| of about 1 a token


def spectra(B: Tensor) -> tuple[Tensor, Tensor]:
    """Descending singular values of the skew and of the symmetric part, dense."""
    return tuple(torch.linalg.svdvals((B + sign * B.mT) / 2) for sign in (-1, 1))


def assert_same_spectra(gram: CorpusGram, B: Tensor, gauge="raw", **close) -> None:
    found = gram.spectrum(gauge)
    skew, symmetric = spectra(B / B.shape[-1])
    e = found.routing.shape[-1]
    torch.testing.assert_close(found.routing, skew[:, : 2 * e : 2], **(close or CLOSE))
    magnitude = found.filtering.abs().sort(dim=-1, descending=True).values
    torch.testing.assert_close(magnitude, symmetric[:, : 2 * e], **(close or CLOSE))


def test_without_rotation_it_is_the_kernel_between_roots_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 24, generator=generator, dtype=torch.float64)
    X = X @ torch.randn(24, 24, generator=generator, dtype=torch.float64) / 5 + 0.3
    P, K = (torch.randn(2, 24, 5, generator=generator, dtype=torch.float64) / 5 for _ in range(2))
    q, k = (torch.einsum("nd,hde->nhe", X, W) for W in (P, K))
    gram = CorpusGram(2, 5)
    for start, stop in ((0, 3), (3, 90), (90, 90), (90, 151), (151, 200)):  # one of them empty
        gram.update(q[start:stop], k[start:stop])
    assert gram.n == 200
    M = P @ K.mT
    assert_same_spectra(gram, X @ M @ X.mT)
    values, vectors = torch.linalg.eigh(X.mT @ X / 200)
    root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.mT
    skew, symmetric = spectra(root @ M @ root)
    torch.testing.assert_close(gram.spectrum().routing, skew[:, :10:2], **CLOSE)
    magnitude = gram.spectrum().filtering.abs().sort(dim=-1, descending=True).values
    torch.testing.assert_close(magnitude, symmetric[:, :10], **CLOSE)


@pytest.mark.parametrize("gauge", GAUGES)
def test_gauges_equal_the_dense_matrix_of_all_tokens(gauge):
    q, k = random_qk(50, 4, 2, 6)
    gram = CorpusGram(4, 6).update(q[:20], k[:20], scale=0.3).update(q[20:], k[20:], scale=0.3)
    assert_same_spectra(gram, dense(q, k, 0.3, gauge), gauge)
    others = [g for g in GAUGES if g != gauge]
    for other in others:  # the means are not small, so a gauge mistaken for another is noticed
        with pytest.raises(AssertionError):
            assert_same_spectra(gram, dense(q, k, 0.3, other), gauge)


def test_merging_is_adding():
    q, k = random_qk(50, 4, 2, 6)
    whole = CorpusGram(4, 6).update(q, k)
    left, right = CorpusGram(4, 6).update(q[:17], k[:17]), CorpusGram(4, 6).update(q[17:], k[17:])
    for merged in (left.merge(right), CorpusGram(4, 6).merge(whole).merge(CorpusGram(4, 6))):
        assert merged.n == 50
        for gauge in GAUGES:
            torch.testing.assert_close(merged.gram(gauge), whole.gram(gauge), rtol=1e-12, atol=1e-12)


def test_large_means_do_not_cost_digits():
    q, k = random_qk(400, 2, 1, 4)
    k = k + 1e6
    gram = CorpusGram(2, 4)
    for start in range(0, 400, 7):
        gram.update(q[start : start + 7], k[start : start + 7])
    rows = torch.cat([q[:, 0], k[:, 0] - k[:, 0].mean(0)], -1)
    exact = rows.mT @ rows / 400
    torch.testing.assert_close(gram.gram("key_centred")[0], exact, rtol=0, atol=1e-9)
    # Sums of squares from which the mean is taken out afterwards lose those digits.
    naive = k[:, 0].mT @ k[:, 0] / 400 - torch.outer(k[:, 0].mean(0), k[:, 0].mean(0))
    assert (naive - exact[4:, 4:]).abs().max() > 1e-6


def test_what_the_gram_loses():
    """Queries that are keys: B is symmetric, its routing zero. The Gram says so to 1e-8 only, the factors to 1e-15."""
    q, _ = random_qk(50, 1, 1, 6)
    gram = CorpusGram(1, 6).update(q, q)
    size = float(gram.spectrum().filtering.max())
    lost = float(gram.spectrum().routing.max()) / size
    factors = bilinear_spectrum(q.transpose(0, 1), q.transpose(0, 1))
    assert lost < 1e-7 and float(factors.routing.max() / factors.filtering.max()) < 1e-14
    assert lost > 1e-12
    routing, filtering = gram.parts()
    assert all(float(rank) == 0 for rank in routing.ranks())  # noise is not counted
    assert float(filtering.ranks().numerical) == 6


def test_a_small_plane_above_the_loss_is_counted():
    q, _ = random_qk(50, 1, 1, 6)
    k = q.clone()
    k[..., 0] = k[..., 0] + 1e-4 * q[..., 1]  # B = q q^T + 1e-4 q_0 q_1^T: one plane of routing
    ranks = CorpusGram(1, 6).update(q, k).parts()[0].ranks()
    assert float(ranks.numerical) == 2 and float(ranks.erank1) == pytest.approx(2, rel=1e-3)


def stacked(model, tokens, lengths, layer, first=0) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys of every real token, one sequence below the other, of the independent forward."""
    points = (Point.ROT_Q, Point.ROT_K) if model.cfg.rotary else (Point.Q, Point.K)
    found = []
    for row, n in zip(tokens, lengths.tolist(), strict=True):
        run = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), row[None, :n])
        found.append([run.sites[Site(point, layer)][0, first:] for point in points])
    return torch.cat([q for q, _ in found]), torch.cat([k for _, k in found])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_model_s_corpus_is_every_token_against_every_other(family, first):
    model = wrapped(family)
    tokens, lengths = random_tokens(model.hf, 4, 16), torch.tensor([16, 9, 12, 16])
    grams = corpus_grams(model, tokens, lengths=lengths, skip_first=bool(first), progress=False)
    assert sorted(grams) == list(range(model.cfg.n_layers))
    for layer, gram in grams.items():
        q, k = stacked(model, tokens, lengths, layer, first)
        assert gram.n == len(q) == 53 - 4 * first
        for gauge in GAUGES:
            B = dense(q, k, model.cfg.scale(layer), gauge)
            assert_same_spectra(gram, B, gauge, rtol=1e-3, atol=1e-4)  # a float32 forward pass


def test_rows():
    model = wrapped("llama")
    grams = corpus_grams(model, random_tokens(model.hf, 4, 16), layers=[0, 2], progress=False)
    rows = corpus_rows(grams, gauges=["raw", "double_centred"])
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in (0, 2) for head in range(4)]
    for row in rows:
        spectrum = grams[row["layer"]].spectrum("double_centred")
        energy = 2 * spectrum.routing[row["head"]].square().sum()
        share = float(energy / (energy + spectrum.filtering[row["head"]].square().sum()))
        assert row["corpus_double_centred_routing_fraction"] == pytest.approx(share)
        sigma = spectrum.routing[row["head"]].repeat_interleave(2)
        p = sigma / sigma.sum()
        entropy = -float(torch.xlogy(p, p).sum())
        assert row["corpus_double_centred_routing_erank1"] == pytest.approx(math.exp(entropy))
        assert row["corpus_tokens"] == 64 and "corpus_key_centred_routing_fraction" not in row


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_store_of_queries_and_keys_gives_the_same(tmp_path, family):
    model = wrapped(family)
    file = token_file(tmp_path / "tokens", [30, 12, 21])
    points = ("rot_q", "rot_k") if family == "llama" else ("q", "k")
    store = extract(
        model, file, [f"{point}.1" for point in points], tmp_path / "store",
        max_length=16, store_dtype="float32", progress=False,
    )  # fmt: skip
    grams = store_grams(store, [1], scale=model.cfg.scale(1), progress=False)
    # A store leaves out position 0 of every window.
    expected = corpus_grams(model, file, layers=[1], max_length=16, skip_first=True, progress=False)
    assert grams[1].n == expected[1].n == len(store) == 58
    for gauge in GAUGES:
        torch.testing.assert_close(grams[1].gram(gauge), expected[1].gram(gauge), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"not blocks\.0\.attn"):
        store_grams(store, [0], progress=False)


def test_bad_input_is_named():
    q, k = random_qk(5, 4, 2, 6)
    gram = CorpusGram(4, 6)
    with pytest.raises(InputError, match="no token was added yet"):
        gram.spectrum()
    with pytest.raises(InputError, match=r"do not fit 4 heads of width 6: expected n x h x e and n x g x e"):
        gram.update(q[:, :2], k)
    with pytest.raises(InputError, match="do not fit 4 heads of width 6"):
        inspect.unwrap(CorpusGram.update)(gram, q, k[:4])  # without the type checker of the tests
    with pytest.raises(InputError, match=r"cannot merge \(2, 12\) into \(4, 12\)"):
        gram.merge(CorpusGram(2, 6))
    with pytest.raises(InputError, match="gauge must be one of raw, key_centred, double_centred, got 'other'"):
        inspect.unwrap(CorpusGram.gram)(gram.update(q, k), "other")  # without the type checker of the tests
