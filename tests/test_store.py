"""Reading a store: rows, seeded batches, damage, expectations, merging."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.extract import extract
from interp.shuffle import BLOCK, Order
from interp.sites import Site
from interp.store import ActivationStore, StoreSpec
from tests.toy_store import SITES, ToyModel, files_of, token_file

RESID = Site.parse("resid_post.1")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    file = token_file(folder / "t", [37, 5, 80, 61, 12, 44] * 8)
    return extract(ToyModel(), file, SITES, folder / "s", max_length=32, rows_per_shard=300, progress=False)


@pytest.fixture
def copied(store, tmp_path):
    for name, content in files_of(store.path).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def places(batches) -> list[tuple[int, int]]:
    return [(int(d), int(p)) for batch in batches for d, p in zip(batch.doc, batch.position, strict=True)]


def test_rows_within_and_across_shards(store):
    whole = torch.cat([store.rows(RESID, i, i + 1) for i in range(len(store))])
    end = int(store.ends[0])
    for start, stop in ((0, len(store)), (end - 3, end + 3), (end, end), (5, 9), (len(store), len(store))):
        assert torch.equal(store.rows("resid_post.1", start, stop), whole[start:stop])
    inside = store.rows(RESID, 5, 9)
    assert inside.untyped_storage().data_ptr() == store.rows(RESID, 0, 3).untyped_storage().data_ptr()
    with pytest.raises(InputError, match=rf"rows 0\.\.{len(store) + 1} were asked for; the store has 0\.\."):
        store.rows(RESID, 0, len(store) + 1)
    with pytest.raises(InputError, match=r"holds blocks.0.attn.hook_z, blocks.1.hook_resid_post, not blocks.0"):
        store.rows("resid_post.0", 0, 1)


def test_writing_to_rows_never_reaches_the_disk(store):
    before = files_of(store.path)
    fresh = ActivationStore.open(store.path)
    fresh.rows(RESID, 0, 10).zero_()
    assert files_of(store.path) == before
    store.verify()


def test_gather_keeps_the_order_asked_for(store):
    index = np.random.default_rng(0).integers(0, len(store), 500)
    batch = store.gather(SITES, index)
    keys = store.keys(0, len(store))
    for site in SITES:
        assert torch.equal(batch.acts[Site.parse(site)], store.rows(site, 0, len(store))[index])
    for name in ("token", "doc", "position"):
        assert torch.equal(getattr(batch, name), getattr(keys, name)[index])


@pytest.mark.parametrize("horizon", [1 << 31, 1 << 14])
def test_each_row_once_per_epoch_in_an_order_of_its_own(store, horizon):
    def run(**options):
        return places(store.batches([RESID], 64, **{"seed": 1, "horizon_bytes": horizon, **options}))

    order = run()
    assert sorted(order) == sorted(places([store.keys(0, len(store))]))
    assert order == run(workers=5)
    for other in (run(seed=2), run(epoch=1)):
        assert sorted(other) == sorted(order)
        assert other != order


@pytest.mark.parametrize("first", [0, 1, 7, 10**6])
def test_first_skips_without_reading(store, first, monkeypatch):
    every = list(store.batches([RESID], 100, seed=3))
    read = []
    gather = ActivationStore.gather
    monkeypatch.setattr(
        ActivationStore, "gather", lambda s, sites, rows: read.append(len(rows)) or gather(s, sites, rows)
    )
    rest = list(store.batches([RESID], 100, seed=3, first=first))
    assert places(rest) == places(every[first:])
    assert all(torch.equal(a.acts[RESID], b.acts[RESID]) for a, b in zip(rest, every[first:], strict=True))
    assert sum(read) == sum(len(batch.doc) for batch in every[first:])


def test_acts_belong_to_their_keys(store):
    keys = store.keys(0, len(store))
    rows = dict(zip(places([keys]), store.rows(RESID, 0, len(store)), strict=True))
    for batch in store.batches([RESID], 50, seed=0):
        for place, row in zip(places([batch]), batch.acts[RESID], strict=True):
            assert torch.equal(rows[place], row)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5000), st.integers(1, 4000), st.integers(0, 9), st.integers(0, 5000), st.integers(0, 5000))
def test_orders_are_permutations_and_stretches_agree(n, window, seed, a, b):
    order = Order(n, seed=seed, window=window)
    whole = order.rows(0, n)
    assert sorted(whole) == list(range(n))
    start, stop = sorted((min(a, n), min(b, n)))
    assert (Order(n, seed=seed, window=window).rows(start, stop) == whole[start:stop]).all()


def test_a_shuffled_batch_mixes_the_whole_horizon():
    n, window = 200 * BLOCK, 50 * BLOCK
    order = Order(n, seed=0, window=window).rows(0, n)
    for start in range(0, window - 1024, 1024):
        blocks = order[start : start + 1024] // BLOCK
        # 1,024 rows drawn from 50 blocks miss a given one with (49/50)^1024 = 1e-9; and the blocks are spread over the
        # store: 50 of 200 all in one half happen once in 10^17.
        assert len(set(blocks)) == 50
        assert blocks.min() < 100 <= blocks.max()
    full = Order(n, seed=0, window=n).rows(0, n)
    assert abs(np.corrcoef(full, np.arange(n))[0, 1]) < 0.02
    assert np.mean(np.abs(np.diff(full)) < BLOCK) < 0.02


def test_leaving_a_loop_early_is_clean(store):
    iterator = store.batches([RESID], 10, seed=0, workers=3)
    next(iterator)
    iterator.close()


def test_bad_batches_are_refused(store):
    for options in ({"size": 0}, {"size": 5, "first": -1}, {"size": 5, "workers": 0}):
        with pytest.raises(InputError, match="batches: size and workers must be positive"):
            store.batches([RESID], seed=0, **options)


def test_truncation_is_found_on_opening(copied):
    shard = copied / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(
        InputError, match=r"shard-00001.safetensors holds .* bytes instead of .*run the same extraction"
    ):
        ActivationStore.open(copied)
    shard.unlink()
    with pytest.raises(InputError, match=r"shard-00001.safetensors is missing"):
        ActivationStore.open(copied)


@pytest.mark.parametrize(
    ("offset", "where"),
    [(3, "header"), (40, "header"), (-1, "blocks.1.hook_resid_post"), (0.5, "blocks.0.attn.hook_z")],
)
def test_a_flipped_bit_is_found_by_verify(copied, offset, where):
    shard = copied / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[int(offset * len(content)) if isinstance(offset, float) else offset] ^= 4
    shard.write_bytes(content)
    opened = ActivationStore.open(copied)
    with pytest.raises(
        InputError, match=rf"shard-00000.* is damaged: the sha256 of its {where}.*recomputes only what is"
    ):
        opened.verify()


def test_expectations(store):
    spec = store.specs[0]
    ActivationStore.open(store.path, expect=spec)
    ActivationStore.open(store.path, expect=StoreSpec(model="toy", seed=0))
    with pytest.raises(
        InputError, match=r"made with other settings: model: 'toy' there, 'x' asked for; seed: 0 there, 4"
    ):
        ActivationStore.open(store.path, expect=StoreSpec(model="x", seed=4))


def test_what_is_no_store_is_refused(tmp_path, copied):
    with pytest.raises(InputError, match=r"holds no manifest.json, so it is no finished activation store"):
        ActivationStore.open(tmp_path / "none")
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(InputError, match="no activation store of version 1"):
        ActivationStore.open(copied)
    manifest["parts"][0]["spec"]["colour"] = "red"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"unknown fields \['colour'\]"):
        ActivationStore.open(copied)


def test_merging(store, tmp_path):
    other_file = token_file(tmp_path / "t", [20, 30], seed=4)
    other = extract(ToyModel(), other_file, SITES, tmp_path / "o", progress=False)
    merged = ActivationStore.merge([store.path, other.path], tmp_path / "m")
    assert len(merged) == len(store) + len(other)
    assert torch.equal(merged.rows(RESID, len(store), len(merged)), other.rows(RESID, 0, len(other)))
    first_doc = store.manifest["parts"][0]["file_documents"]
    assert (merged.keys(len(store), len(merged)).doc - first_doc == other.keys(0, len(other)).doc).all()
    assert sorted(places(merged.batches([RESID], 64, seed=0))) == sorted(places([merged.keys(0, len(merged))]))
    with pytest.raises(InputError, match="exists already"):
        ActivationStore.merge([store.path], tmp_path / "m")
    with pytest.raises(InputError, match="hold the same rows"):
        ActivationStore.merge([store.path, store.path], tmp_path / "n")
    half = extract(ToyModel(), other_file, SITES, tmp_path / "h", store_dtype="float16", progress=False)
    with pytest.raises(InputError, match="cannot be merged: dtype: 'bfloat16' there, 'float16' asked for"):
        ActivationStore.merge([other.path, half.path], tmp_path / "n")
    with pytest.raises(InputError, match="at least one store"):
        ActivationStore.merge([], tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_a_store_in_words_and_its_damage_as_a_status(copied, capsys):
    from midlens.store import Store

    assert Store("info", (copied,)).run() == 0
    text = capsys.readouterr().out
    for part in ("blocks.1.hook_resid_post (6,)", "toy, revision r1", "first position", "no BOS", "1,912 tokens of 48"):
        assert part in text
    assert Store("verify", (copied,)).run() == 0
    assert "passed" in capsys.readouterr().out
    (copied / "shard-00000.safetensors").write_bytes(b"")
    assert Store("verify", (copied,)).run() == 1
    assert "FAILED" in capsys.readouterr().out
