"""Evaluation against planted answers: reconstruction, splicing, loss recovered, and the record on disk."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saes.suite
from interp.batching import batches
from interp.errors import InputError
from interp.model import HookedModel, Where
from interp.sites import Site
from midlens.__main__ import main
from midlens.evaluate import Evaluate
from saes.belongs import check_belongs, limits_of
from saes.config import SAEConfig
from saes.evaluate import (
    Evaluation,
    _content,
    evaluate,
    measure_loss,
    measure_losses,
    measure_rows,
    names_of,
    row_norms,
    threshold_of,
)
from saes.reconstruction import ReconstructionFitter
from saes.sae import SAE
from saes.splice import massive_threshold, replace_rows
from saes.train import TrainConfig, fit
from tests import planted
from tests.planted import SITE
from tests.tiny_models import random_tokens, tiny

D = 12


def _noisy(seed: int, n: int = 400, mean: float = 0.0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their reconstructions: anisotropic, and reconstructed with a constant error besides noise."""
    rng = np.random.default_rng(seed)
    x = mean + spread * rng.normal(size=(n, D)) * np.linspace(0.2, 2, D)
    return x, x + 0.5 * spread * rng.normal(size=(n, D)) + 0.3 * spread


def _definition(x: np.ndarray, x_hat: np.ndarray) -> float:
    return 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 400), max_size=6), mean=st.sampled_from([0, 1, 1e5]))
def test_streamed_quality_is_the_definition(seed, cuts, mean):
    x, x_hat = _noisy(seed, mean=mean)
    fitters = [ReconstructionFitter(), ReconstructionFitter()]
    edges = [0, *sorted(cuts), 400]
    for i, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):  # noqa: RUF007
        fitters[i % 2].update(torch.from_numpy(x[start:stop]), torch.from_numpy(x_hat[start:stop]))
    found = fitters[0].merge(fitters[1]).result()
    assert found.n_tokens == 400
    assert found.explained_variance == pytest.approx(_definition(x, x_hat), rel=1e-9)
    assert found.mse == pytest.approx(((x - x_hat) ** 2).sum(1).mean(), rel=1e-12)
    cosines = (x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-12)


WRONG = {
    "uncentred": lambda x, y: 1 - ((x - y) ** 2).sum() / (x**2).sum(),
    "mean of squares for mean": lambda x, y: (
        1 - ((x - y) ** 2).sum(1).mean() / ((x**2).sum(1).mean() - ((x**2).mean(0) ** 2).mean())
    ),
    "mean of per-token ratios": lambda x, y: (1 - ((x - y) ** 2).sum(1) / ((x - x.mean(0)) ** 2).sum(1)).mean(),
    "variance of the error": lambda x, y: 1 - (x - y).var(0).sum() / x.var(0).sum(),
}


@pytest.mark.parametrize("name", WRONG)
def test_common_wrong_formulas_would_show(name):
    """Each differs from the definition by more than 0.01 on these rows, and the fitter sides with the definition."""
    x, x_hat = _noisy(0, mean=3)
    found = ReconstructionFitter().update(torch.from_numpy(x), torch.from_numpy(x_hat)).result().explained_variance
    assert found == pytest.approx(_definition(x, x_hat), rel=1e-12)
    assert abs(WRONG[name](x, x_hat) - found) > 0.01


def test_quality_of_rows_without_variance_is_refused():
    fitter = ReconstructionFitter()
    with pytest.raises(InputError, match="explained variance needs rows that differ, and got 0 rows"):
        fitter.result()
    with pytest.raises(InputError, match="got 3 rows whose deviation is 0"):
        fitter.update(torch.ones(3, 2), torch.zeros(3, 2)).result()


def _planted(tmp_path, *, mean: float = 5.0, massive: int = 3):
    """Rows = mean + two of eight orthonormal features + noise outside their span; some rows a thousandfold."""
    sae = planted.orthonormal_sae(D, 8, 2, mean=mean)
    rng = np.random.default_rng(1)
    n = 200
    codes = np.zeros((n, 8), np.float32)
    for row in codes:
        row[rng.choice(6, 2, replace=False)] = rng.uniform(1, 3, 2)  # features 6 and 7 never fire
    noise = rng.normal(size=(n, 4)).astype(np.float32) * 0.4
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]
    x = mean + torch.from_numpy(codes) @ basis[:8] + torch.from_numpy(noise) @ basis[8:]
    x[:massive] *= 1000
    tokens = planted.token_file(tmp_path / "tokens", [n // 4 + 1] * 4)
    doc, position = torch.arange(n) // (n // 4), torch.arange(n) % (n // 4) + 1
    return sae, planted.store(tmp_path / "store", tokens, x, doc, position), tokens, codes, noise, x.double().numpy()


def test_planted_dictionary_is_measured_exactly(tmp_path):
    sae, store, _, codes, noise, x = _planted(tmp_path)
    threshold = threshold_of(sae, store, SITE)
    assert threshold == pytest.approx(10 * np.sort(np.linalg.norm(x, axis=1))[99], rel=1e-5)
    found = measure_rows(sae, store, SITE, threshold=threshold)
    kept = x[3:]
    assert (found.kept.n_tokens, found.massive_rows, found.n_documents) == (197, 3, 4)
    error = (noise[3:].astype(np.float64) ** 2).sum()
    assert found.kept.explained_variance == pytest.approx(1 - error / ((kept - kept.mean(0)) ** 2).sum(), rel=1e-5)
    assert found.kept.mse == pytest.approx(error / 197, rel=1e-5)
    assert found.firing.n_tokens == 197
    np.testing.assert_array_equal(found.firing.fires.numpy(), (codes[3:] > 0).sum(0))
    x_hat = sae(torch.from_numpy(x).float()).detach().double().numpy()
    assert found.all_rows.explained_variance == pytest.approx(_definition(x, x_hat), rel=1e-6)
    assert found.all_rows.n_tokens == 200
    assert abs(found.all_rows.explained_variance - found.kept.explained_variance) > 0.01


def test_threshold_of_training_is_kept(tmp_path):
    _, store, *_ = _planted(tmp_path)
    sae = planted.orthonormal_sae(D, 8, 2, massive_norm_threshold=17.5)
    assert threshold_of(sae, store, SITE) == 17.5
    assert massive_threshold(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])) == 30.0


def test_rows_that_are_not_finite_are_refused(tmp_path):
    _, _, tokens, *_ = _planted(tmp_path)
    x = torch.ones(5, D)
    x[1, 2], x[4, 0] = torch.nan, torch.inf
    bad = planted.store(tmp_path / "bad", tokens, x, torch.zeros(5).long(), torch.arange(5))
    with pytest.raises(InputError, match=r"2 of 5 rows of .* at blocks\.1\.hook_resid_post hold NaN or infinity"):
        row_norms(bad, SITE)


def _where(b: int, t: int, lengths: list[int]) -> Where:
    return Where(torch.arange(t).expand(b, t), torch.tensor(lengths), torch.tensor(lengths))


def test_exactly_the_ordinary_positions_are_replaced():
    x = torch.ones(2, 4, D)
    x[0, 2] = 100
    allowed = torch.ones(2, 4, dtype=torch.bool)
    allowed[1, 1] = False
    edit = replace_rows(torch.zeros_like, max_norm=50.0, allowed=allowed)
    out = edit(x, _where(2, 4, [4, 3]))
    # row 0: position 2 is massive; row 1: position 1 is not allowed, position 3 is padding; position 0 of both stays
    replaced = [[False, True, False, True], [False, False, True, False]]
    assert (out == 0).all(-1).tolist() == replaced
    assert torch.equal(out[~torch.tensor(replaced)], x[~torch.tensor(replaced)])
    everything = replace_rows(torch.zeros_like, skip_first=False)(x, _where(2, 4, [4, 3]))
    assert (everything == 0).all(-1).tolist() == [[True] * 4, [True, True, True, False]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_splicing_the_identity_changes_no_logit(family):
    model = HookedModel.wrap(tiny(family))
    tokens = random_tokens(model.hf, 3, 9)
    lengths = torch.tensor([9, 4, 7])
    site = Site.parse(SITE)
    with torch.no_grad():
        clean = model(tokens, lengths=lengths)
        with model.edited({site: replace_rows(lambda x: x)}):
            spliced = model(tokens, lengths=lengths)
        with model.edited({site: replace_rows(torch.zeros_like)}):
            ablated = model(tokens, lengths=lengths)
    assert torch.equal(clean, spliced)
    assert torch.equal(clean[:, 0], ablated[:, 0]), "position 0 passes through"
    assert (clean[:, 1:] - ablated[:, 1:]).abs().amax(-1).min() > 1e-3


def _identity_sae(d: int) -> "planted.SAE":
    """[x, -x] with every feature allowed to fire: x = ReLU(x) - ReLU(-x)."""
    eye = torch.eye(d)
    both = torch.cat([eye, -eye])
    config = planted.SAEConfig(d_in=d, d_sae=2 * d, k=2 * d)
    return planted.SAE.of_weights(config, W_enc=both.T, b_enc=torch.zeros(2 * d), W_dec=both, b_dec=torch.zeros(d))


def _silent_sae(d: int) -> "planted.SAE":
    config = planted.SAEConfig(d_in=d, d_sae=4, k=2)
    zeros = {"W_enc": torch.zeros(d, 4), "b_enc": torch.zeros(4), "W_dec": torch.zeros(4, d), "b_dec": torch.zeros(d)}
    return planted.SAE.of_weights(config, **zeros)


def _text_and_rows(tmp_path, model: HookedModel, *, prepend_bos: bool = False):
    """Tokens, and a store of the model's own rows, position 0 of each document left out."""
    tokens = planted.token_file(tmp_path / "tokens", [9, 14, 3, 20], prepend_bos=prepend_bos)
    acts, doc, position = [], [], []
    for batch in batches(tokens, token_budget=64, max_length=32):
        with torch.no_grad():
            found = model.capture(batch.tokens, [SITE], lengths=batch.lengths)[Site.parse(SITE)]
        for row, length in enumerate(batch.lengths.tolist()):
            acts.append(found[row, 1:length])
            doc.append(batch.doc[row].expand(length - 1))
            position.append(batch.start[row] + torch.arange(1, length))
    store = planted.store(tmp_path / "store", tokens, torch.cat(acts), torch.cat(doc), torch.cat(position))
    return tokens, store


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_loss_recovered_is_one_for_the_identity_and_zero_for_nothing(tmp_path, prepend_bos):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens, store = _text_and_rows(tmp_path, model, prepend_bos=prepend_bos)
    best = evaluate(_identity_sae(48), store, SITE, model=model, tokens=tokens)
    worst = evaluate(_silent_sae(48), store, SITE, model=model, tokens=tokens)
    assert best.ce_tokens == worst.ce_tokens == tokens.n_tokens - (0 if prepend_bos else 4)
    assert best.n_documents == 4 and best.n_tokens == len(store) and best.massive_rows == 0
    assert best.loss_recovered == pytest.approx(1, abs=1e-6) and best.delta_ce == pytest.approx(0, abs=1e-6)
    assert best.kl == pytest.approx(0, abs=1e-6) and best.explained_variance == pytest.approx(1, abs=1e-12)
    assert worst.loss_recovered == 0 and worst.ce_spliced == worst.ce_zero and worst.kl == worst.kl_zero > 0.01
    assert worst.dead_fraction == 1 and worst.l0 == 0 and worst.cosine == 0
    assert best.l0 == pytest.approx(48) and best.dead_fraction == 0


def test_losses_equal_runs_with_plain_torch_hooks(tmp_path):
    """Half the stream reconstructed: CE and KL of the three runs, one document at a time, no HookedModel involved."""
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens, store = _text_and_rows(tmp_path, model)
    sae = planted.orthonormal_sae(48, 24, 8)
    found = evaluate(sae, store, SITE, model=model, tokens=tokens)

    def run(ids, replace):
        def hook(module, inputs, output):
            x = output[0] if isinstance(output, tuple) else output
            x = torch.cat([x[:, :1], replace(x[0, 1:])[None]], 1)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = model.hf.model.layers[1].register_forward_hook(hook)
        try:
            with torch.no_grad():
                return model.hf(ids[None]).logits[0, :-1].double().log_softmax(-1)
        finally:
            handle.remove()

    ce, kl = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for doc in range(4):
        ids = torch.from_numpy(tokens[doc].astype(np.int64))
        runs = [run(ids, r) for r in (lambda x: x, lambda x: sae(x), torch.zeros_like)]
        for i, log_q in enumerate(runs):
            ce[i] -= log_q.gather(1, ids[1:, None]).sum()
            kl[i] += (runs[0].exp() * (runs[0] - log_q)).sum()
    ce, kl = (ce / found.ce_tokens).tolist(), (kl / found.ce_tokens).tolist()
    assert [found.ce_clean, found.ce_spliced, found.ce_zero] == pytest.approx(ce, rel=1e-5)
    assert [found.kl, found.kl_zero] == pytest.approx(kl[1:], rel=1e-4)
    assert found.loss_recovered == pytest.approx((ce[2] - ce[1]) / (ce[2] - ce[0]), rel=1e-4)
    assert found.delta_ce == pytest.approx(ce[1] - ce[0], rel=1e-4)


def test_special_tokens_pass_through(tmp_path):
    """A document of special tokens alone is left as it is by every edit; ordinary words are not."""
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    documents = [
        planted.SimpleNamespace(id=name, text=text) for name, text in (("a", "<s> </s> <s> </s>"), ("b", "w9 w4 w7"))
    ]
    tokens = planted.tokenize(documents, model.tokenizer, tmp_path / "tokens")
    one = planted.tokenize(documents[:1], model.tokenizer, tmp_path / "one")
    effects = measure_loss(_silent_sae(48), model, one, SITE)
    assert effects.n_tokens == 3 and effects.ce["zero"] == effects.ce_clean and effects.kl["zero"] == 0
    assert measure_loss(_silent_sae(48), model, tokens, SITE).kl["zero"] > 1e-3


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_template_tokens_pass_through(tmp_path, prepend_bos):
    """Position by position, in windows shorter than the documents."""
    tokens = planted.token_file(tmp_path / "tokens", [9, 14, 3], prepend_bos=prepend_bos)
    tokens.template = np.random.default_rng(0).integers(0, 2, tokens.n_tokens).astype(np.uint8)
    for batch in batches(tokens, token_budget=16, max_length=6):
        allowed = _content(batch, tokens)
        for row, length in enumerate(batch.lengths.tolist()):
            for t in range(1 if prepend_bos else 0, length):
                place = tokens.offsets[batch.doc[row]] + int(batch.start[row]) + t
                assert bool(allowed[row, t]) == (tokens.template[place] == 0)
            assert not (prepend_bos and allowed[row, 0])


def test_tokens_are_limited(tmp_path):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens = planted.token_file(tmp_path / "tokens", [20] * 12)
    found = measure_loss(_silent_sae(48), model, tokens, SITE, max_tokens=50, max_length=32, token_budget=32)
    assert 50 <= found.n_tokens < 50 + 32


def test_several_saes_share_the_clean_and_the_ablated_run(tmp_path):
    """Values to the last bit; ablation again where another SAE holds other rows to be massive."""
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens, store = _text_and_rows(tmp_path, model)
    saes = {name: planted.orthonormal_sae(48, 24, k) for name, k in (("a", 2), ("b", 5), ("c", 8), ("d", 8))}
    median = float(row_norms(store, SITE).median())
    thresholds = {"a": median, "b": median, "c": math.inf, "d": {Site.parse(SITE): median}}
    runs: list[int] = []
    model.hf.register_forward_hook(lambda *_: runs.append(1))
    options: dict = {"max_tokens": 40, "max_length": 16, "token_budget": 32}
    alone = {
        name: measure_loss(sae, model, tokens, SITE, threshold=thresholds[name], **options)
        for name, sae in saes.items()
    }
    n_batches = len(runs) // 12
    assert n_batches > 1 and len(runs) == 12 * n_batches
    runs.clear()
    assert measure_losses(saes, model, tokens, SITE, thresholds=thresholds, **options) == alone
    assert len(runs) == (1 + 4 + 2) * n_batches
    assert alone["a"].ce["zero"] == alone["d"].ce["zero"] != alone["c"].ce["zero"]
    assert len({found.ce["spliced"] for found in alone.values()}) == 4


def test_several_transcoders_share_theirs(tmp_path):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens = planted.token_file(tmp_path / "tokens", [9, 14])
    saes = {}
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        config = planted.SAEConfig(d_in=48, d_sae=24, k=8, d_out=48, apply_b_dec_to_input=False)
        weights = {"W_enc": torch.randn(48, 24, generator=g), "W_dec": torch.randn(24, 48, generator=g)}
        saes[str(seed)] = planted.SAE.of_weights(config, **weights, b_enc=torch.zeros(24), b_dec=torch.zeros(48))
    runs: list[int] = []
    model.hf.register_forward_hook(lambda *_: runs.append(1))
    places: tuple = (model, tokens, "blocks.1.ln2.hook_normalized")
    found = measure_losses(saes, *places, site_out=OTHER, thresholds=dict.fromkeys(saes, math.inf))
    assert len(runs) == 3 + 2
    assert found == {name: measure_loss(sae, *places, site_out=OTHER) for name, sae in saes.items()}


def _record(**changes) -> Evaluation:
    names = [f.name for f in dataclasses.fields(Evaluation) if f.name not in ("densities", "parts")]
    numbers = {name: 0.1 + i for i, name in enumerate(names)}
    counts = {name: 7 for name in ("n_tokens", "n_documents", "massive_rows", "ce_tokens")}
    densities = torch.tensor([0.0, 1 / 3, 1e-7], dtype=torch.float64)
    return Evaluation(**numbers | counts | {"densities": densities} | changes)


def test_record_survives_the_disk(tmp_path):
    record = _record(kl=1 / 3, loss_recovered=math.pi)
    found = Evaluation.load(record.save(tmp_path / "evaluation.json"))
    assert found.scalars() == record.scalars() and torch.equal(found.densities, record.densities)
    assert "densities" not in record.scalars() and record.scalars()["n_tokens"] == 7


def test_a_record_of_numbers_that_are_not_there_is_json_all_the_same(tmp_path):
    """Of a crosscoder, which no model was run for: null in the file, where JSON has no NaN, and NaN again when read."""
    parts = {"against": {"mean_paired_cosine": math.nan, "pairs": [1, math.inf]}}
    path = _record(delta_ce=math.nan, ce_clean=math.nan, parts=parts).save(tmp_path / "evaluation.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["delta_ce"] is None
    assert content["parts"] == {"against": {"mean_paired_cosine": None, "pairs": [1, None]}}
    found = Evaluation.load(path)
    assert math.isnan(found.delta_ce) and math.isnan(found.ce_clean) and found.kl == _record().kl
    path.write_text(path.read_text().replace('"n_tokens": 7', '"n_tokens": null'))
    with pytest.raises(InputError, match="n_tokens is None; evaluate the SAE again"):
        Evaluation.load(path)


def test_record_as_text():
    lines = dict(line.split() for line in _record(n_tokens=12345, kl=1 / 3).text().splitlines())
    assert lines["n_tokens"] == "12,345" and lines["kl"] == "0.333333" and len(lines) == len(_record().scalars())


def test_names_come_from_store_and_sae_unless_given(tmp_path):
    _, store, *_ = _planted(tmp_path)
    nameless, named = planted.orthonormal_sae(D, 8, 2), planted.orthonormal_sae(D, 8, 2, hook_name=SITE)
    assert names_of(named, store) == ("planted", [Site.parse(SITE)])
    assert names_of(nameless, store, model="other", site="resid_post.1") == ("other", [Site.parse(SITE)])
    with pytest.raises(InputError, match="do not say which site they belong to: name it"):
        names_of(nameless, store)
    with pytest.raises(InputError, match=r"holds blocks\.1\.hook_resid_post, not blocks\.2\.hook_resid_post"):
        names_of(named, store, site="resid_post.2")


def test_the_command_evaluates_and_writes(tmp_path, monkeypatch, capsys):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens, _ = _text_and_rows(tmp_path, model)
    planted.orthonormal_sae(48, 24, 8, hook_name=SITE).save(tmp_path / "sae")
    asked = []
    monkeypatch.setattr(HookedModel, "load", lambda name, **options: asked.append(name) or model)
    command = Evaluate(tmp_path / "sae", tmp_path / "store", tmp_path / "tokens", out=tmp_path / "evaluation.json")
    assert command.run() == 0 and asked == ["planted"]
    found = Evaluation.load(tmp_path / "evaluation.json")
    assert capsys.readouterr().out == f"{found.text()}\n{tmp_path / 'evaluation.json'}\n"
    assert found.ce_tokens == tokens.n_tokens - 4 and found.l0 <= 8


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "e.json").write_text('{"kl": 1, "extra": 2}')
    with pytest.raises(
        InputError, match=r"no evaluation of this version \(missing: \['alive', 'ce_clean', .* unknown: \['extra'\]\)"
    ):
        Evaluation.load(tmp_path / "e.json")


def test_shrinkage_is_seen_exactly():
    """Reconstructions that are a multiple of the row: bias and L2 ratio are that multiple, the cosine stays 1."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, D)) + 0.5
    found = ReconstructionFitter().update(torch.from_numpy(x), torch.from_numpy(0.8 * x)).result()
    assert (found.bias, found.l2_ratio) == pytest.approx((0.8, 0.8), rel=1e-12)
    assert found.cosine == pytest.approx(1, rel=1e-12) and found.fvu == 1 - found.explained_variance


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 400))
def test_bias_and_ratio_are_their_definitions_whatever_the_split(seed, cut):
    x, x_hat = _noisy(seed, mean=1)
    x[5] = 0
    one, two = ReconstructionFitter(), ReconstructionFitter()
    one.update(torch.from_numpy(x[:cut]), torch.from_numpy(x_hat[:cut]))
    two.update(torch.from_numpy(x[cut:]), torch.from_numpy(x_hat[cut:]))
    found = two.merge(one).result()
    assert found.bias == pytest.approx((x_hat**2).sum() / (x * x_hat).sum(), rel=1e-10)
    norms = np.linalg.norm(x, axis=1)
    ratios = np.linalg.norm(x_hat, axis=1)[norms > 0] / norms[norms > 0]
    assert found.l2_ratio == pytest.approx(ratios.mean(), rel=1e-12) and len(ratios) == 399
    # γ is the scale that undoes the bias: x_hat / γ is the best multiple of x_hat
    best = (x * x_hat).sum() / (x_hat**2).sum()
    assert 1 / found.bias == pytest.approx(best, rel=1e-10)


def test_nothing_reconstructed_has_no_bias():
    found = ReconstructionFitter().update(torch.eye(3), torch.zeros(3, 3)).result()
    assert math.isnan(found.bias) and found.l2_ratio == 0


def test_densities_are_summed_up():
    densities = torch.tensor([0.0, 0.0, 1e-4, 1e-3, 0.01, 0.02, 0.1, 0.5], dtype=torch.float64)
    record = _record(densities=densities)
    assert record.alive == 6 and record.density_over_1pct == 3 / 8 and record.density_over_10pct == 1 / 8
    logs = np.log10(densities[2:].numpy())
    found = (record.log10_density_p10, record.log10_density_median, record.log10_density_p90)
    assert found == pytest.approx(tuple(np.quantile(logs, [0.1, 0.5, 0.9])), rel=1e-12)
    assert math.isnan(_record(densities=torch.zeros(4, dtype=torch.float64)).log10_density_median)


def test_a_trained_threshold_is_the_one_used(tmp_path):
    """What `fit` writes is what evaluation reads: no second key for the same number."""
    _, store, *_ = _planted(tmp_path)
    config = planted_recipe()
    sae = fit(store, config, tmp_path / "sae", site=SITE)
    own = sae.config.metadata["massive_norm_threshold"]
    assert threshold_of(sae, store, SITE) == own
    assert own != threshold_of(planted.orthonormal_sae(D, 8, 2), store, SITE), "the fallback would be another number"


def planted_recipe():
    return TrainConfig(d_sae=16, k=2, epochs=1, batch_size=64, massive=7.0)


def _two_sites(tmp_path):
    """Rows at two sites: y = (3 codes) through another basis, with a massive row at each site."""
    rng = np.random.default_rng(5)
    n = 120
    codes = np.abs(rng.normal(size=(n, 4))).astype(np.float32) + 0.5
    x_basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0][:4]
    y_basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0][:4]
    x, y = (
        torch.from_numpy(codes) @ x_basis,
        3 * torch.from_numpy(codes) @ y_basis + 0.1 * torch.from_numpy(rng.normal(size=(n, D)).astype(np.float32)),
    )
    x[0] *= 1e4
    y[1] *= 1e4
    tokens = planted.token_file(tmp_path / "tokens", [n + 1])
    place = torch.zeros(n).long(), torch.arange(n) + 1
    return x, y, x_basis, y_basis, planted.store(tmp_path / "store", tokens, x, *place, others={OTHER: y})


OTHER = "blocks.1.hook_mlp_out"


def test_a_transcoder_is_measured_against_the_site_it_writes(tmp_path):
    x, y, x_basis, y_basis, store = _two_sites(tmp_path)
    config = planted.SAEConfig(d_in=D, d_sae=4, k=4, d_out=D, apply_b_dec_to_input=False)
    weights = {"W_enc": x_basis.T, "b_enc": torch.zeros(4), "W_dec": 3 * y_basis, "b_dec": torch.full((D,), 0.01)}
    sae = planted.SAE.of_weights(config, **weights)
    limits = {Site.parse(SITE): 100.0, Site.parse(OTHER): 200.0}
    found = measure_rows(sae, store, SITE, site_out=OTHER, threshold=limits)
    assert found.massive_rows == 2 and found.kept.n_tokens == 118, "massive at either site"
    kept = np.arange(2, 120)
    y_hat = ((x[2:] @ x_basis.T).clamp(min=0) @ (3 * y_basis) + 0.01).double().numpy()
    truth = y.double().numpy()[kept]
    assert found.kept.explained_variance == pytest.approx(_definition(truth, y_hat), rel=1e-6)
    assert found.kept.mse == pytest.approx(((truth - y_hat) ** 2).sum(1).mean(), rel=1e-5)
    assert found.firing.fires.tolist() == [118] * 4 and not found.sources
    with pytest.raises(InputError, match=r"does not say which site it writes: name it \(site_out\)"):
        measure_rows(sae, store, SITE, threshold=limits)


def test_a_crosscoder_is_measured_over_all_its_sources_and_each(tmp_path):
    x, y, x_basis, y_basis, store = _two_sites(tmp_path)
    W = torch.cat([x_basis, y_basis / 3], 1)
    config = planted.SAEConfig(d_in=2 * D, d_sae=4, k=4, sources=(D, D))
    weights = {"W_enc": W.T / 2, "b_enc": torch.zeros(4), "W_dec": W * 2, "b_dec": torch.zeros(2 * D)}
    sae = planted.SAE.of_weights(config, **weights)
    found = measure_rows(sae, store, [SITE, OTHER], threshold=200.0)
    both = torch.cat([x, y], 1)[2:]
    hat = sae(both).detach().double().numpy()
    assert found.kept.explained_variance == pytest.approx(_definition(both.double().numpy(), hat), rel=1e-6)
    assert list(found.sources) == [SITE, OTHER]
    parts = [_definition(both.double().numpy()[:, s], hat[:, s]) for s in (slice(0, D), slice(D, 2 * D))]
    assert [part.explained_variance for part in found.sources.values()] == pytest.approx(parts, rel=1e-6)
    assert abs(parts[0] - parts[1]) > 0.01, "the sources differ, so that a swap would show"


def test_a_transcoder_spliced_in_equals_a_run_with_plain_hooks(tmp_path):
    """What the MLP writes is replaced by the transcoder's output from what it reads, position 0 excepted."""
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens = planted.token_file(tmp_path / "tokens", [9, 14])
    d = 48
    config = planted.SAEConfig(d_in=d, d_sae=24, k=8, d_out=d, apply_b_dec_to_input=False)
    g = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(d, 24, generator=g), "b_enc": torch.zeros(24), "b_dec": torch.zeros(d)}
    sae = planted.SAE.of_weights(config, **weights, W_dec=0.1 * torch.randn(24, d, generator=g))
    found = measure_loss(sae, model, tokens, "blocks.1.ln2.hook_normalized", site_out=OTHER)
    seen = {}
    layer, gain = model.hf.model.layers[1], model.hf.model.layers[1].post_attention_layernorm

    def read(module, inputs, output):
        seen["x"] = output / module.weight  # TransformerLens's hook_normalized comes before the gain

    def write(module, inputs, output):
        return torch.cat([output[:, :1], sae(seen["x"][0, 1:])[None]], 1)

    ce = count = 0
    handles = [gain.register_forward_hook(read), layer.mlp.register_forward_hook(write)]
    for doc in range(2):
        ids = torch.from_numpy(tokens[doc].astype(np.int64))
        with torch.no_grad():
            log_q = model.hf(ids[None]).logits[0, :-1].double().log_softmax(-1)
        ce -= float(log_q.gather(1, ids[1:, None]).sum())
        count += len(ids) - 1
    for handle in handles:
        handle.remove()
    assert found.n_tokens == count and found.ce["spliced"] == pytest.approx(ce / count, rel=1e-5)
    assert abs(found.ce["spliced"] - found.ce_clean) > 1e-3
    with pytest.raises(InputError, match="runs before the site it reads"):
        measure_loss(sae, model, tokens, OTHER, site_out="blocks.1.ln2.hook_normalized")


def test_an_sae_of_another_place_is_refused_unless_forced(tmp_path):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    tokens, store = _text_and_rows(tmp_path, model)
    elsewhere = planted.orthonormal_sae(48, 24, 8, hook_name="blocks.0.hook_resid_post")
    foreign = planted.orthonormal_sae(48, 24, 8, hook_name=SITE, model_name="google/gemma-2-2b")
    with pytest.raises(InputError, match=r"for the site blocks\.0\.hook_resid_post, and is asked to work on blocks\.1"):
        evaluate(elsewhere, store, SITE, model=model, tokens=tokens)
    with pytest.raises(InputError, match=r"for the model google/gemma-2-2b, .* planted.*force=True, --force"):
        evaluate(foreign, store, SITE, model=model, tokens=tokens)
    with pytest.raises(InputError, match=r"for the site blocks\.0"):
        measure_loss(elsewhere, model, tokens, SITE)
    assert evaluate(foreign, store, SITE, model=model, tokens=tokens, force=True, max_ce_tokens=10).ce_tokens >= 10
    narrow = planted.orthonormal_sae(D, 8, 2)
    with pytest.raises(InputError, match=r"reads activations of width 12, these have width 48"):
        evaluate(narrow, store, SITE, model=model, tokens=tokens, force=True)


@pytest.mark.parametrize(
    ("made", "given"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("gpt2-small", "openai-community/gpt2"),
        ("meta-llama/Llama-3.1-8B", "/data/models/llama-3.1-8b/"),
        (None, "anything"),
    ],
)
def test_one_model_under_several_names(made, given):
    check_belongs(planted.orthonormal_sae(D, 8, 2, model_name=made), model=given)


def test_one_site_under_several_names():
    sae = planted.orthonormal_sae(D, 8, 2, hook_name="blocks.2.hook_resid_pre")
    check_belongs(sae, site="resid_post.1", d=D)
    with pytest.raises(InputError, match=r"for the site blocks\.1\.hook_resid_post"):
        check_belongs(sae, site="resid_pre.1")


def test_a_model_without_a_name_is_not_held_against_an_sae():
    model = HookedModel.wrap(tiny("gpt2"))
    check_belongs(planted.orthonormal_sae(48, 24, 8, model_name="gpt2"), model=model)
    model.name = "pythia-70m"
    with pytest.raises(InputError, match="for the model gpt2, and is asked to work on pythia-70m"):
        check_belongs(planted.orthonormal_sae(48, 24, 8, model_name="gpt2"), model=model)


def test_limits_of_several_sites_are_told_apart():
    sae = planted.orthonormal_sae(D, 8, 2, hook_names=[SITE, OTHER], massive_norm_threshold=[3.0, 4.0])
    a, b = Site.parse(SITE), Site.parse(OTHER)
    assert limits_of(sae, [b, a]) == {a: 3.0, b: 4.0} and limits_of(sae, [b]) == {b: 4.0}
    wrong = planted.orthonormal_sae(D, 8, 2, hook_name=SITE, massive_norm_threshold=[3.0, 4.0])
    with pytest.raises(InputError, match=r"massive_norm_threshold is \[3\.0, 4\.0\], expected a number for each of"):
        limits_of(wrong, [a])


def test_the_command_evaluates_other_tools_saes(tmp_path, monkeypatch, capsys):
    """A folder of Gemma Scope's, and a pickle of Goodfire's: figures as of the same SAE in our own layout."""
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    _text_and_rows(tmp_path, model)
    monkeypatch.setattr(HookedModel, "load", lambda name, **options: model)
    plain = planted.orthonormal_sae(48, 24, 8)
    weights = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    weights = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "params.npz", threshold=np.zeros(24, np.float32),
             **{name: tensor.numpy() for name, tensor in weights.items()})  # fmt: skip
    names = {"encoder_linear.weight": "W_enc", "decoder_linear.weight": "W_dec",
             "encoder_linear.bias": "b_enc", "decoder_linear.bias": "b_dec"}  # fmt: skip
    torch.save(
        {new: (weights[old].T.contiguous() if weights[old].ndim == 2 else weights[old]) for new, old in names.items()},
        tmp_path / "sae.pth",
    )
    config = SAEConfig(d_in=48, d_sae=24, architecture="standard", apply_b_dec_to_input=False)
    SAE.of_weights(config, **weights).save(tmp_path / "own")
    common = ["evaluate", "--store", str(tmp_path / "store"), "--tokens", str(tmp_path / "tokens"), "--site", SITE]
    shown = []
    for options in ("--sae npz", "--sae sae.pth --trust-pickle", "--sae own --against npz"):
        placed = [word if word.startswith("--") else str(tmp_path / word) for word in options.split()]
        assert main([*common, *placed]) == 0
        shown.append(dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()))
    assert shown[0]["explained_variance"] == shown[1]["explained_variance"] == shown[2]["explained_variance"]
    assert shown[2]["against.matching.share_over_09"].startswith("1")
    assert main([*common, "--sae", str(tmp_path / "sae.pth")]) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert main([*common, "--sae", "no-such-sae"]) == 2
    assert "'no-such-sae' is no file or folder here, no preset" in capsys.readouterr().err


def test_the_command_runs_everything_into_one_file(tmp_path, monkeypatch, capsys):
    model = HookedModel.wrap(tiny("llama"), planted.word_tokenizer())
    _text_and_rows(tmp_path, model)
    planted.orthonormal_sae(48, 24, 8, hook_name=SITE).save(tmp_path / "sae")
    planted.orthonormal_sae(48, 32, 8, hook_name=SITE).save(tmp_path / "other")
    rows = [{"text": f"w5 w{3 + i} w{(40 if i % 2 else 60) + i} w7", "label": "ab"[i % 2]} for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(HookedModel, "load", lambda name, **options: model)
    common = ["evaluate", "--sae", str(tmp_path / "sae"), "--store", str(tmp_path / "store")]
    common += ["--tokens", str(tmp_path / "tokens"), "--out", str(tmp_path / "e.json")]
    more = ["--probing", str(tmp_path / "mine.jsonl"), "--geometry", "--against", str(tmp_path / "other")]
    widths, measure = [], saes.suite.measure_rows

    def counted(sae, *arguments, **options):
        widths.append(sae.config.d_sae)
        return measure(sae, *arguments, **options)

    monkeypatch.setattr(saes.suite, "measure_rows", counted)
    assert main([*common, *more]) == 0
    assert widths == [32], "what fires of the SAE itself is known from its evaluation"
    shown = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1])
    found = Evaluation.load(tmp_path / "e.json")
    assert set(found.parts) == {"probing", "geometry", "against"}
    # 24 of the other's 32 orthonormal directions are this SAE's own
    assert found.parts["against"]["matching"]["share_over_09"] == 1
    assert found.parts["against"]["splitting"]["one_child"] == 1 and found.parts["geometry"]["decoder"]["most"] < 1e-5
    assert float(shown["probing.mine.dense"]) == pytest.approx(found.parts["probing"]["mine"]["mean_accuracy"]["dense"])
    assert shown["explained_variance"] and shown["against.splitting.wide"] == "32"
    for made, message in (
        ({"hook_name": "blocks.0.hook_resid_post"}, "was made for the site blocks.0.hook_resid_post, this SAE for"),
        ({"model_name": "gpt2"}, "was made for the model gpt2, this SAE for pythia-70m"),
    ):
        planted.orthonormal_sae(48, 24, 8, model_name="pythia-70m", hook_name=SITE).save(tmp_path / "sae")
        planted.orthonormal_sae(48, 32, 8, **{"hook_name": SITE} | made).save(tmp_path / "other")
        assert main([*common, "--geometry", "--against", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err
    assert main([*common, "--against", str(tmp_path / "other"), "--force"]) == 0
    assert main([*common, "--probing", "colours"]) == 2
    assert "'colours' is no probing task: expected language" in capsys.readouterr().err
    assert "against" in Evaluation.load(tmp_path / "e.json").parts, "refused before anything ran"
    assert main([*common, "--absorption", "--force"]) == 2
    assert "no token of a blank and 3 or more lower-case letters" in capsys.readouterr().err
    kept = Evaluation.load(tmp_path / "e.json")
    assert kept.explained_variance == found.explained_variance and not kept.parts, "what was finished is kept"
    planted.orthonormal_sae(48, 24, 8, hook_name="blocks.0.hook_resid_post").save(tmp_path / "sae")
    assert main([*common, "--site", "resid_post.1"]) == 2
    assert "insist (force=True, --force)" in capsys.readouterr().err
    assert main([*common, "--site", "resid_post.1", "--force"]) == 0
