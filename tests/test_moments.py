"""Streaming moments against two passes over all rows, shrinkage, and which rows of a model and a store count."""

import warnings
from pathlib import Path
from typing import get_args

import jaxtyping
import numpy as np
import pytest
import torch
from tiny_models import tiny
from toy_store import token_file, word_tokenizer

from interp.batching import Batch
from interp.errors import InputError
from interp.model import HookedModel
from interp.moments import (
    Moments,
    Whitening,
    moments_from_model,
    moments_from_store,
    prompt_rows,
    shrinkage,
    text_batches,
    whitener,
)
from interp.sites import Site

DOUBLE = torch.float64


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checker of the tests, which would refuse before our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def _rows(n: int, d: int, seed: int = 0, *, offset: float = 0.0, sd: float = 1.0) -> torch.Tensor:
    return offset + sd * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("order", ["stream", "tree"])
def test_chunks_give_what_two_passes_give_despite_a_large_offset(order: str):
    x, z = _rows(4000, 12, offset=300.0, sd=0.1), _rows(4000, 2, 1, offset=5.0)
    parts = [Moments.from_rows(a, b) for a, b in zip(x.split(171), z.split(171), strict=True)]
    if order == "stream":
        found = Moments.of(12, 2)
        for a, b in zip(x.split(171), z.split(171), strict=True):
            found.update(a, b)
    else:
        while len(parts) > 1:
            parts = [parts[i].merge(parts[i + 1]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
        found = parts[0]
    exact = x - x.to(torch.float64).mean(0)
    expected = torch.from_numpy(np.cov(x.numpy(), rowvar=False))
    assert found.n == found.n_groups == 4000
    assert _relative(found.mean, x.mean(0)) < 1e-14
    assert _relative(found.covariance(), expected) < 1e-12
    cross = exact.T @ (z - z.mean(0)) / 3999
    assert _relative(found.cross_covariance(), cross) < 1e-12


def test_raw_moments_in_float32_fail_at_the_same_data():
    x = _rows(4000, 12, offset=300.0, sd=0.1)
    raw = x.float()
    naive = raw.T @ raw / 4000 - torch.outer(raw.mean(0), raw.mean(0))
    assert _relative(naive, torch.from_numpy(np.cov(x.numpy(), rowvar=False))) > 0.3
    # while bfloat16 or float32 rows, upcast by `update`, lose only their own rounding
    assert _relative(Moments.from_rows(raw).covariance(), torch.from_numpy(np.cov(raw.numpy(), rowvar=False))) < 1e-6
    exact = np.cov(raw.double().numpy(), rowvar=False)
    assert _relative(Moments.from_rows(raw).covariance(), torch.from_numpy(exact)) < 1e-12


def test_prompts_are_counted_not_tokens():
    x = _rows(12, 3)
    assert Moments.from_rows(x, groups=4).n_groups == 4
    ids = torch.tensor([0, 0, 0, 7, 7, 7, 2, 2, 2, 2, 2, 2])
    assert Moments.from_rows(x, groups=ids).merge(Moments.from_rows(x, groups=ids)).n_groups == 6


def test_moments_survive_a_file_and_a_damaged_one_is_refused(tmp_path: Path):
    found = Moments.from_rows(_rows(9, 4), _rows(9, 1), groups=3)
    found.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert (again.n, again.n_groups) == (9, 3) and torch.equal(again.mean, found.mean)
    assert torch.equal(again.covariance(), found.covariance())
    assert torch.equal(again.cross_covariance(), found.cross_covariance())
    body = bytearray((tmp_path / "m.safetensors").read_bytes())
    body[-3] ^= 1
    (tmp_path / "m.safetensors").write_bytes(bytes(body))
    with pytest.raises(InputError, match="damaged"):
        Moments.load(tmp_path / "m.safetensors")


def test_what_moments_refuse():
    x = _rows(5, 3)
    x[2, 1] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        Moments.from_rows(x)
    with pytest.raises(InputError, match="two rows or more, got 1"):
        Moments.from_rows(_rows(1, 3)).covariance()
    with pytest.raises(InputError, match="cannot be merged"):
        Moments.of(3).merge(Moments.of(4))
    with pytest.raises(InputError, match="width 3 with 0 concepts"):
        Moments.of(3).update(_rows(2, 4))


@pytest.mark.parametrize("how", get_args(Whitening))
def test_a_whitener_solves_with_the_matrix_it_says(how: Whitening):
    moments, s = Moments.from_rows(_rows(40, 6) @ torch.diag(torch.arange(1.0, 7, dtype=DOUBLE))), _rows(6, 2, 3)
    sigma, eye = moments.covariance(), torch.eye(6, dtype=DOUBLE)
    q = whitener(moments, how)
    mean_variance = sigma.trace() / 6 * eye
    matrix = {
        "shrink": (1 - q.shrinkage) * sigma + q.shrinkage * mean_variance,
        "ridge": sigma + 0.1 * sigma.diagonal().sort().values[2] * eye,
        "diag": torch.diag(sigma.diagonal()),
        "none": eye,
        "full": sigma,
    }[how]
    torch.testing.assert_close(q.solve(s), torch.linalg.solve(matrix, s), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.gram(s), s.T @ torch.linalg.solve(matrix, s), rtol=1e-10, atol=1e-12)


def test_full_whitening_drops_the_null_space_at_every_scale_and_says_when_prompts_are_few():
    basis = torch.linalg.qr(_rows(8, 3, 4)).Q
    x = _rows(50, 3) @ basis.T
    for scale in (1e-4, 1.0, 1e4):
        q = whitener(Moments.from_rows(x * scale), "full")
        sigma = np.cov((x * scale).numpy(), rowvar=False)
        expected = torch.from_numpy(np.linalg.pinv(sigma, rcond=1e-10, hermitian=True))
        torch.testing.assert_close(q.solve(torch.eye(8, dtype=DOUBLE)), expected, rtol=1e-8, atol=0)
    with pytest.warns(UserWarning, match="5 prompts for 8 dimensions"):
        whitener(Moments.from_rows(_rows(5, 8)), "full")


def test_shrinkage_agrees_with_scikit_learn_and_stays_between_0_and_1():
    from sklearn.covariance import OAS

    for n in (4, 30, 1000):
        x = _rows(n, 200, n) * torch.linspace(0.1, 3, 200, dtype=DOUBLE)
        x = x - x.mean(0)
        theirs = OAS(assume_centered=True).fit(x.numpy()).shrinkage_
        ours = shrinkage(x.T @ x / n, n)
        assert 0 <= ours <= 1
        # theirs leaves out the paper's 2/d, which is 1 % at d = 200
        assert ours == pytest.approx(theirs, rel=2e-2)
    assert shrinkage(torch.eye(5, dtype=DOUBLE), 10) == 1.0
    assert shrinkage(torch.diag(torch.tensor([100.0, 1.0, 1.0], dtype=DOUBLE)), 1) == 1.0  # unclamped: above 1


def test_shrinkage_beats_the_unshrunk_covariance_where_prompts_are_fewer_than_dimensions():
    d, n = 60, 30
    truth = 1 / torch.arange(1, d + 1, dtype=DOUBLE)
    s = _rows(d, 1, 9) * truth.sqrt()[:, None]
    factors: dict[str, list[float]] = {"shrink": [], "full": [], "none": []}
    for seed in range(8):
        moments = Moments.from_rows(_rows(n, d, seed) * truth.sqrt())
        for how, seen in factors.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                g = whitener(moments, how).solve(s)  # pyright: ignore[reportArgumentType]
            ratio = (g * truth[:, None] * g).sum() * (s * s / truth[:, None]).sum() / (s * g).sum() ** 2
            seen.append(float(ratio))
    mean = {how: sum(seen) / len(seen) for how, seen in factors.items()}
    assert min(factors["shrink"]) >= 1  # the disturbance of the optimum is the floor
    assert mean["shrink"] < 0.7 * mean["full"] and mean["shrink"] < 0.7 * mean["none"], mean


def test_what_whitening_refuses(unchecked: None):
    few = Moments.from_rows(_rows(3, 6))
    with pytest.raises(InputError, match="expected one of shrink, ridge, diag, none, full"):
        whitener(few, "zca")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="singular"):
        whitener(few, "ridge", ridge=0.0)
    with pytest.raises(InputError, match="all equal"):
        whitener(Moments.from_rows(torch.ones(4, 6, dtype=DOUBLE)), "shrink")


@pytest.fixture(scope="module")
def toy() -> HookedModel:
    return HookedModel.wrap(tiny("llama"), word_tokenizer())


SITES = ["resid_post.0", "attn_out.2", "z.1[2]"]


@torch.no_grad()
@pytest.mark.parametrize("positions", ["last", "all", "content"])
def test_rows_of_a_model_are_those_of_unpadded_runs(toy: HookedModel, positions: str):
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9 <unk> w3", "w1 w1 w1 w2"]
    batches = text_batches(toy, texts, token_budget=12, prepend_bos=True)
    assert [len(b.tokens) for b in batches] == [2, 1, 1]
    expected: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    prompts: list[int] = []
    for i, text in enumerate(texts):
        tokens = toy.to_tokens(text, prepend_bos=True).tokens
        acts = toy.capture(tokens, SITES)
        at = [j for j in range(1, tokens.shape[1]) if int(tokens[0, j]) > 3] if positions != "last" else [-1]
        for site in SITES:
            expected[site].append(acts[Site.parse(site)][0, at])
        prompts += [i] * len(at)
    with torch.enable_grad():  # rows carry no graph, whatever the caller's mode
        parts = list(prompt_rows(toy, batches, SITES, positions=positions))  # pyright: ignore[reportArgumentType]
    assert torch.cat([p.prompt for p in parts]).tolist() == prompts
    assert not any(x.requires_grad for part in parts for x in part.acts.values())
    moments = moments_from_model(toy, batches, SITES, positions=positions)  # pyright: ignore[reportArgumentType]
    for name in SITES:
        rows, site = torch.cat(expected[name]), Site.parse(name)
        torch.testing.assert_close(torch.cat([p.acts[site] for p in parts]), rows, rtol=1e-5, atol=1e-6)
        assert (moments[site].n, moments[site].n_groups) == (len(prompts), 4)
        cov = torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False))
        torch.testing.assert_close(moments[site].covariance(), cov, rtol=1e-4, atol=1e-6)


def test_content_leaves_out_what_a_template_wrote_and_edits_are_seen(toy: HookedModel):
    batch = text_batches(toy, ["w1 w2 w3 w4"])[0]
    template = batch.template.clone()
    template[0, 2] = True
    rows = next(prompt_rows(toy, [batch._replace(template=template)], "resid_post.0", positions="content"))
    clean = toy.capture(batch.tokens, "resid_post.0")[Site.parse("resid_post.0")][0]
    torch.testing.assert_close(rows.acts[Site.parse("resid_post.0")], clean[[1, 3]])
    edits = {Site.parse("resid_post.0"): lambda x, where: x + 1}
    edited = next(prompt_rows(toy, [batch], "resid_post.1", edits=edits)).acts[Site.parse("resid_post.1")]
    assert not torch.allclose(edited, toy.capture(batch.tokens, "resid_post.1")[Site.parse("resid_post.1")][0, -1:])


def test_documents_of_a_corpus_batch_are_the_prompts(toy: HookedModel):
    tokens = torch.randint(4, 60, (3, 5), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.tensor([5, 5, 3]), torch.tensor([8, 8, 9]), torch.tensor([0, 5, 0]))
    found = moments_from_model(toy, [batch], "resid_post.0")[Site.parse("resid_post.0")]
    assert (found.n, found.n_groups) == (4 + 4 + 2, 2)


def test_what_rows_refuse(toy: HookedModel, unchecked: None):
    with pytest.raises(InputError, match="one token, at position 0"):
        list(prompt_rows(toy, text_batches(toy, ["w1", "w2 w3"]), "resid_post.0"))
    with pytest.raises(InputError, match="one of last, all, content"):
        list(prompt_rows(toy, [], "resid_post.0", positions="first"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="name one head"):
        list(prompt_rows(toy, [], "z.1"))
    with pytest.raises(InputError, match="no rows"):
        moments_from_model(toy, text_batches(toy, ["w1 <unk>"]), "resid_post.0")


def test_moments_of_a_store(toy: HookedModel, tmp_path: Path):
    from interp.extract import extract
    from interp.plan import Exclusions

    tokens = token_file(tmp_path / "tokens", [9, 4, 7, 12])
    store = extract(toy, tokens, ["resid_post.1"], tmp_path / "store", store_dtype="float32", progress=False)
    found = moments_from_store(store, "resid_post.1")
    rows = store.rows("resid_post.1", 0, len(store)).double()
    assert (found.n, found.n_groups) == (len(store), 4) and len(store) == 9 + 4 + 7 + 12 - 4
    expected = torch.from_numpy(np.cov(rows.numpy(), rowvar=False))
    torch.testing.assert_close(found.covariance(), expected, rtol=1e-10, atol=1e-14)
    kept = Exclusions(first_position=False)
    whole = extract(toy, tokens, ["resid_post.1"], tmp_path / "whole", exclude=kept, progress=False)
    with pytest.raises(InputError, match="keeps first_position"):
        moments_from_store(whole, "resid_post.1")
