"""Activations in memory as rows: what training, sweeping and measuring make of them is what they make of a store."""

from pathlib import Path

import jaxtyping
import pytest
import torch

from interp.errors import InputError
from interp.sites import Site
from saes.recipe import TrainConfig
from saes.row_quality import measure_rows
from saes.sae import SAE
from saes.tensor_rows import TensorRows
from saes.train import fit
from tests import planted
from tests.rows import sparse_mixture

SITE = Site.parse("resid_post.3")
CONFIG = TrainConfig(d_sae=32, k=3, batch_size=64, tokens=1280, lr=3e-3, sample=256, dead_after_tokens=300)


def test_an_epoch_is_every_row_once_and_goes_on_from_any_batch():
    x = sparse_mixture(200)[0]
    rows = TensorRows({"resid_post.3": x, "resid_post.5": 2 * x})
    whole = list(rows.batches([SITE, "resid_post.5"], 64, seed=1, epoch=2))
    assert [len(batch.doc) for batch in whole] == [64, 64, 64, 8]
    order = torch.cat([batch.position for batch in whole]).long()
    assert torch.equal(order.sort().values, torch.arange(200)) and not torch.equal(order, torch.arange(200))
    for number, batch in enumerate(whole):
        place = order[number * 64 : number * 64 + 64]
        assert torch.equal(batch.acts[SITE], x[place]) and torch.equal(
            batch.acts[Site.parse("resid_post.5")], 2 * x[place]
        )
        (again, *_) = rows.batches([SITE], 64, seed=1, epoch=2, first=number)
        assert torch.equal(again.position, batch.position)
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not torch.equal(next(iter(rows.batches([SITE], 200, **other))).position.long(), order)


def test_training_saves_where_it_comes_from_and_is_resumed_on_the_same_rows_alone(tmp_path: Path):
    x = sparse_mixture(320)[0]
    rows = TensorRows({SITE: x}, model="gpt2", about={"bos": 50256, "max_length": 128})
    sae = fit(rows, CONFIG, tmp_path, site=SITE)
    known = SAE.load(tmp_path).config.metadata
    assert (known["model_name"], known["hook_name"], known["prepend_bos"]) == ("gpt2", str(SITE), True)
    same = TensorRows({SITE: x.clone()}, model="gpt2", about={"bos": 50256, "max_length": 128})
    assert torch.equal(fit(same, CONFIG, tmp_path, site=SITE).W_dec, sae.W_dec)
    other = x.clone()
    other[17, 3] = torch.nextafter(other[17, 3], torch.tensor(9.0))
    with pytest.raises(InputError, match="other settings"):
        fit(
            TensorRows({SITE: other}, model="gpt2", about={"bos": 50256, "max_length": 128}),
            CONFIG,
            tmp_path,
            site=SITE,
        )


def test_measured_as_a_store_of_the_same_rows_is(tmp_path: Path):
    x = sparse_mixture(320)[0]
    sae = fit(TensorRows({SITE: x}), CONFIG, tmp_path / "sae", site=SITE)
    tokens = planted.token_file(tmp_path / "tokens", [20] * 16)
    doc, position = (part.flatten() for part in torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij"))
    store = planted.store(tmp_path / "store", tokens, x, doc, position)
    ours, its = (
        measure_rows(sae, rows, site, force=True)
        for rows, site in ((TensorRows({SITE: x}), SITE), (store, planted.SITE))
    )
    assert ours.kept == its.kept and torch.equal(ours.firing.fires, its.firing.fires)
    assert ours.kept.explained_variance > 0 and bool(ours.firing.fires.any())


def test_what_is_no_rows_is_refused_and_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' types would refuse before our words
    x = sparse_mixture(20)[0]
    for wrong in ({}, {SITE: x[0]}, {SITE: x, "resid_post.5": x[:10]}):
        with pytest.raises(InputError, match="one row for each token at every site, as many at each; got"):
            TensorRows(wrong)
    with pytest.raises(InputError, match=r"these rows are of blocks\.3\.hook_resid_post, not blocks\.4"):
        TensorRows({SITE: x}).rows("resid_post.4", 0, 3)
    with pytest.raises(
        InputError, match=r"got Tensor\. A tensor of activations becomes rows by .*TensorRows\({site: x}"
    ):
        fit(x, CONFIG, tmp_path, site=SITE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"an SAE reads a torch\.Tensor, got ndarray: torch\.as_tensor\(x\)"):
        SAE(CONFIG.shape(16)).encode(x.numpy())  # pyright: ignore[reportArgumentType]
