"""Rows in one byte a number: bounds proven, what a store of them reads as and states, and that nothing else changes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file

from interp.errors import InputError
from interp.extract import extract
from interp.quantised import KINDS, figures, quantise, read
from interp.sites import Site
from interp.store import ActivationStore
from interp.stream import ActivationStream
from tests import planted
from tests.toy_store import SITES, ToyModel, files_of, token_file

DTYPES = ["int8", "float8_e4m3"]
TOP = {"int8": 127, "float8_e4m3": 448}
RESID = "blocks.1.hook_resid_post"
LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40]
SMALL = {"max_length": 16, "token_budget": 64, "rows_per_shard": 40, "progress": False}


def e4m3() -> np.ndarray:
    """Every byte's number, by definition: bias 7, three bits of mantissa, no infinity, all other bits 1 NaN."""
    values = []
    for byte in range(256):
        sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
        size = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values.append(np.nan if byte & 127 == 127 else (-1) ** sign * size)
    return np.array(values)


def nearest_e4m3(y: np.ndarray) -> np.ndarray:
    """The nearest of the format's numbers; of two as near, the one whose byte is even."""
    sizes = e4m3()[:127]
    middle = (sizes[1:] + sizes[:-1]) / 2
    place = np.searchsorted(middle, np.abs(y))  # exactly in the middle: the lower one
    tie = (place < 126) & (np.abs(y) == middle[np.minimum(place, 125)]) & (place % 2 == 1)
    return np.copysign(sizes[place + tie], y)


def plain(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """q and s of finite rows, by definition."""
    s = np.maximum(np.abs(x).max(-1) / np.float32(TOP[dtype]), np.float32(2.0**-126))
    y = (x / s[..., None]).astype(np.float64)  # a float32 quotient
    q = np.rint(y) if dtype == "int8" else nearest_e4m3(y)
    return q, np.where(np.abs(x).max(-1) == 0, np.float32(0), s)


def rows_of(scale: float = 1.0):
    """Rows whose entries, and whose sizes, differ by many powers of two."""
    entry = st.floats(-(2.0**40), 2.0**40, width=32) | st.floats(-1, 1, width=32) | st.just(0.0)
    plain_rows = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=entry)
    return st.tuples(plain_rows, st.integers(-160, 80)).map(lambda found: np.ldexp(*found))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=150)
@given(x=rows_of())
def test_scale_rounding_and_bound(dtype, x):
    found = quantise(torch.from_numpy(x), KINDS[dtype].dtype)
    q, s = plain(x, dtype)
    assert np.array_equal(found.scale.numpy(), s)
    assert np.array_equal(found.q.double().numpy(), q)
    back = read(found.q, found.scale).numpy()
    assert back.dtype == np.float32 and np.array_equal(back, (q * s[..., None]).astype(np.float32))
    wrong, size = np.abs(x.astype(np.float64) - back), np.abs(x.astype(np.float64))
    step = np.broadcast_to(s.astype(np.float64)[..., None], x.shape)
    if dtype == "int8":
        assert (wrong <= step * (1 / 2 + 2**-16)).all()
        normal = s > 2.0**-126
        assert (wrong.max(-1)[normal] <= size.max(-1)[normal] / 254 * (1 + 2**-14)).all()
    else:
        assert (wrong <= np.maximum(size / 16, step * (2**-10 + 2**-29))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bounds_are_reached(dtype):
    """Halfway between two numbers of the format: no smaller bound would hold."""
    x = torch.tensor([[127.0, 0.5, 99.5]]) if dtype == "int8" else torch.tensor([[448.0, 17.0, 2.0**-10]])
    found = quantise(x, KINDS[dtype].dtype)
    wrong = (x - read(found.q, found.scale)).abs()[0]
    assert found.scale.item() == 1
    assert wrong.tolist() == ([0, 0.5, 0.5] if dtype == "int8" else [0, 1.0, 2.0**-10])  # 17 -> 16: a 17th of it


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stored_number_reads_as_itself_and_is_written_as_itself(dtype):
    values = np.arange(-127, 128.0) if dtype == "int8" else e4m3()[~np.isnan(e4m3())]
    found = quantise(torch.tensor(values[None], dtype=torch.float32), KINDS[dtype].dtype)
    assert found.scale.item() == 1
    assert np.array_equal(read(found.q, found.scale).numpy()[0], values)
    assert not figures(found.error)["squared_error"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_zeros_tiny_rows_and_rows_that_are_not_finite(dtype, source):
    bad = torch.tensor([[0, 0, 0], [1, torch.nan, 3], [-torch.inf, 2, torch.inf], [1, -2, 3]], dtype=source)
    found = quantise(bad, KINDS[dtype].dtype)
    back = read(found.q, found.scale)
    assert found.scale[0] == 0 and (back[0] == 0).all()
    assert (found.q[:3].float() == 0).all() and found.scale[1:3].isnan().all() and back[1:3].isnan().all()
    assert torch.equal(back[3:], read(*quantise(bad[3:], KINDS[dtype].dtype)[:2]))
    alone = quantise(bad[[0, 3]], KINDS[dtype].dtype)
    assert figures(found.error) == figures(alone.error)  # what is not finite does not count
    assert figures(found.error)["vectors"] == 2
    tiny = torch.tensor([[1e-44, -3e-42, 0.0]])  # s would be no normal number: held to an absolute error
    small = quantise(tiny, KINDS[dtype].dtype)
    assert small.scale.item() == 2.0**-126
    assert (read(small.q, small.scale) - tiny).abs().max() <= 2.0**-127


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stated_error_is_that_of_the_rows(dtype):
    x = torch.randn(700, 3, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 700)[:, None, None]
    found = quantise(x, KINDS[dtype].dtype)  # several pieces
    assert x.numel() > 2**18 * 4
    lost = (x.double() - read(found.q, found.scale)).square().sum(-1)
    size = x.double().square().sum(-1)
    expected = {
        "vectors": 2100.0,
        "squared_error": lost.sum().item(),
        "squared_norm": size.sum().item(),
        "relative": (lost / size).sum().item(),
        "worst": (lost / size).max().item(),
    }
    assert figures(found.error) == pytest.approx(expected, rel=1e-4)
    pieces = [read(*quantise(part, KINDS[dtype].dtype)[:2]) for part in x.split(100)]
    assert torch.equal(torch.cat(pieces), read(found.q, found.scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_waits_for_the_device(dtype):
    """On the meta device there is nothing to wait for: reading one number back would be an error."""
    found = quantise(torch.empty(5000, 4, 96, device="meta"), KINDS[dtype].dtype)
    assert found.q.shape == (5000, 4, 96) and found.scale.shape == (5000, 4) and found.q.dtype == KINDS[dtype].dtype
    with pytest.raises(RuntimeError, match="meta"):
        figures(found.error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_massive_rows_cost_the_others_nothing(dtype):
    """A scale per row isolates them; with one scale for the store, ordinary int8 rows would be rounded to nothing."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    with_massive = torch.cat([x, 3000 * x[:1]])
    found = quantise(with_massive, KINDS[dtype].dtype)
    back = read(found.q, found.scale)
    assert torch.equal(back[:64], read(*quantise(x, KINDS[dtype].dtype)[:2]))
    bound = {"int8": 2e-4, "float8_e4m3": 1.5e-3}[dtype]
    assert ((x - back[:64]).square().sum(1) / x.square().sum(1)).max() < bound
    common = quantise(with_massive.reshape(1, -1), KINDS[dtype].dtype)
    ruined = read(common.q, common.scale).reshape(65, 256)[:64]
    if dtype == "int8":
        assert (ruined == 0).all()
    else:  # 3,000 is within the range of a format with an exponent of its own
        assert ((x - ruined).square().sum(1) / x.square().sum(1)).max() < bound


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", LENGTHS)


@pytest.fixture(scope="module")
def exact(file, tmp_path_factory):
    return extract(ToyModel(), file, SITES, tmp_path_factory.mktemp("exact") / "s", store_dtype="float32", **SMALL)


@pytest.fixture(scope="module", params=DTYPES)
def store(request, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "s"
    return extract(ToyModel(), file, SITES, folder, store_dtype=request.param, **SMALL)


@pytest.fixture
def copied(store, tmp_path):
    for name, content in files_of(store.path).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_rows_are_the_nearest_to_those_of_a_float32_store(store, exact):
    dtype = store.manifest["dtype"]
    assert len(store) == len(exact) and len(store.ends) > 2 and store.dtype is torch.float32
    keys, expected = store.keys(0, len(store)), exact.keys(0, len(exact))
    assert all(torch.equal(getattr(keys, name), getattr(expected, name)) for name in ("token", "doc", "position"))
    for site in SITES:
        q, s = plain(exact.rows(site, 0, len(exact)).numpy(), dtype)
        rows = store.rows(site, 0, len(store))
        assert rows.dtype is torch.float32 and torch.equal(
            rows, torch.from_numpy((q * s[..., None]).astype(np.float32))
        )
        end = int(store.ends[0])
        for start, stop in ((0, 3), (end - 3, end + 3), (end, end), (5, 9)):
            assert torch.equal(store.rows(site, start, stop), rows[start:stop])
    index = np.random.default_rng(0).integers(0, len(store), 500)
    batch = store.gather(SITES, index)
    for site in SITES:
        assert torch.equal(batch.acts[Site.parse(site)], store.rows(site, 0, len(store))[index])


def test_shards_are_plain_safetensors(store):
    z, resid = sorted(str(Site.parse(site)) for site in SITES)
    start = 0
    for entry in store.manifest["shards"]:
        content = load_file(store.path / entry["name"])
        assert set(content) == {"token", "doc", "position", z, f"{z}.scale", resid, f"{resid}.scale"}
        n = entry["rows"]
        for name, shape in ((z, (n, 2, 3)), (resid, (n, 6))):
            assert content[name].shape == shape and content[f"{name}.scale"].shape == shape[:-1]
            back = content[name].float() * content[f"{name}.scale"][..., None]
            assert torch.equal(back, store.rows(name, start, start + n))
        start += n
    expected = 12 + (6 + 4) + (6 + 2 * 4)  # keys, resid and its scale, z and a scale for each head
    heads = sum(int.from_bytes((store.path / e["name"]).read_bytes()[:8], "little") for e in store.manifest["shards"])
    assert sum(e["bytes"] for e in store.manifest["shards"]) == len(store) * expected + heads + 8 * len(store.ends)


def test_batches_are_those_of_a_float32_store_of_the_same_rows(store, exact):
    for own, other in zip(store.batches(SITES, 50, seed=3), exact.batches(SITES, 50, seed=3), strict=True):
        assert torch.equal(own.doc, other.doc) and torch.equal(own.position, other.position)
        for site, x in own.acts.items():
            assert (x - other.acts[site]).abs().max() <= other.acts[site].abs().max() / 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_the_bytes_are_twice_the_horizon(tmp_path, dtype):
    """At 2,048 numbers a row, for a store as for a stream."""
    tokens, sites = token_file(tmp_path / "t", [60] * 20), ["resid_post.1"]
    row_bytes, capacity, windows = [], [], []
    for own in ("bfloat16", dtype):
        model = ToyModel(width=2048)
        made = extract(model, tokens, sites, tmp_path / own, store_dtype=own, max_length=32, progress=False)
        stream = ActivationStream(model, tokens, sites, dtype=own, max_length=32, buffer_bytes=2 << 20)
        row_bytes.append(made.row_bytes)
        capacity.append(stream.material.capacity)
        windows.append(made.order(seed=0, horizon_bytes=530 * row_bytes[0]).window)
    assert row_bytes[0] / row_bytes[1] == pytest.approx(2, rel=0.01)
    assert capacity[1] / capacity[0] == pytest.approx(2, rel=0.01)
    assert windows == [512, 1024]  # whole blocks of 256


def test_the_error_is_stated(store, exact, capsys):
    from midlens.store import Store

    for site in SITES:
        name = str(Site.parse(site))
        x = exact.rows(site, 0, len(exact)).double()
        lost, size = (x - store.rows(site, 0, len(store))).square().sum(-1), x.square().sum(-1)
        expected = {"mean": (lost / size).mean(), "worst": (lost / size).max(), "overall": lost.sum() / size.sum()}
        assert store.error[name] == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
        assert store.manifest["error"][name] == store.error[name]
        assert sum(e["error"][name]["vectors"] for e in store.manifest["shards"]) == lost.numel()
    assert Store("info", (store.path,)).run() == 0
    mean, worst, overall = (store.error[RESID][name] for name in ("mean", "worst", "overall"))
    said = f"error      {RESID}: {mean:.1e} of a row's squared norm on average, {worst:.1e} at most; {overall:.1e} over"
    assert said in capsys.readouterr().out
    assert not exact.error and "error" not in exact.manifest


def test_versions(store, exact, monkeypatch):
    """Stores as they always were stay version 1; a program that knows only that refuses one-byte stores."""
    assert (exact.manifest["version"], store.manifest["version"]) == (1, 2)
    for made, version in ((exact, "1"), (store, "2")):
        path = made.path / made.manifest["shards"][0]["name"]
        head = path.read_bytes()
        size = int.from_bytes(head[:8], "little")
        assert json.loads(head[8 : 8 + size])["__metadata__"]["version"] == version
        assert len(ActivationStore.open(made.path)) == len(made)
    monkeypatch.setattr("interp.manifest.VERSIONS", (1,))
    assert len(ActivationStore.open(exact.path)) == len(exact)
    with pytest.raises(
        InputError, match=r"no activation store of version 1 \(found 'midlens-activations', version 2\)"
    ):
        ActivationStore.open(store.path)


def test_a_flipped_bit_in_a_scale_is_found(copied):
    shard = copied / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    size = int.from_bytes(content[:8], "little")
    first, _ = json.loads(content[8 : 8 + size])[f"{RESID}.scale"]["data_offsets"]
    assert (8 + size + first) % 4 == 0
    content[8 + size + first] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=rf"shard-00000.* is damaged: the sha256 of its {RESID}.scale"):
        ActivationStore.open(copied).verify()


def test_only_stores_of_one_dtype_are_merged_and_appended_to(store, file, tmp_path):
    dtype = store.manifest["dtype"]
    more = token_file(tmp_path / "u", [20, 30, 9], seed=4)
    other = extract(ToyModel(), more, SITES, tmp_path / "o", store_dtype="bfloat16", **SMALL)
    message = rf"{store.path} and {other.path} cannot be merged: dtype: '{dtype}' there, 'bfloat16' asked for"
    with pytest.raises(InputError, match=message):
        ActivationStore.merge([store.path, other.path], tmp_path / "n")
    with pytest.raises(
        InputError, match=rf"rows would be of another kind: dtype: '{dtype}' there, 'bfloat16' asked for"
    ):
        extract(ToyModel(), more, SITES, store.path, store_dtype="bfloat16", append=True, **SMALL)
    same = extract(ToyModel(), more, SITES, tmp_path / "p", store_dtype=dtype, **SMALL)
    merged = ActivationStore.merge([store.path, same.path], tmp_path / "m")
    rows = torch.cat([made.rows(RESID, 0, len(made)) for made in (store, same)])
    assert torch.equal(merged.rows(RESID, 0, len(merged)), rows)
    parts = [(len(made), made.error[RESID]) for made in (store, same)]
    assert merged.error[RESID]["mean"] == pytest.approx(sum(n * e["mean"] for n, e in parts) / len(merged))
    assert merged.error[RESID]["worst"] == max(e["worst"] for _, e in parts)
    extract(ToyModel(), file, SITES, tmp_path / "a", store_dtype=dtype, **SMALL)
    appended = extract(ToyModel(), more, SITES, tmp_path / "a", store_dtype=dtype, append=True, **SMALL)
    assert files_of(appended.path) == files_of(merged.path)


def test_killed_and_called_again(tmp_path):
    """SIGKILL in an int8 extraction, then the same call: the same bytes, the stated error included."""
    from tests.kill_child import SETTINGS

    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 60, 12)]
    tokens = token_file(tmp_path / "t", lengths)
    whole = extract(ToyModel(), tokens, SITES, tmp_path / "whole", store_dtype="int8", **SETTINGS)
    points = ["replace:3:before", "replace:4:after", "pwrite:19:before"]
    script = Path(__file__).with_name("kill_child.py")
    call = [sys.executable, str(script), str(tmp_path / "k"), str(tokens.path), *points]
    subprocess.run(call, check=True, timeout=600, env={**os.environ, "STORE_DTYPE": "int8"})
    for point in points:
        assert (tmp_path / "k" / point / "killed").read_text() == "True", point
        path = tmp_path / "k" / point / "s"
        finished = extract(ToyModel(), tokens, SITES, path, store_dtype="int8", **SETTINGS)
        finished.verify()
        assert files_of(path) == files_of(whole.path), point


class Poisoned(ToyModel):
    """NaN or infinity at one token id."""

    def __init__(self, token: int, value: float) -> None:
        super().__init__()
        self.table[token, 2] = value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused_or_nan(file, exact, tmp_path, dtype, value):
    model = Poisoned(int(file[10][20]), value)
    with pytest.raises(InputError, match=r"batch \d+, site blocks\..*: \d+ of \d+ rows hold NaN or inf.*'doc-"):
        extract(model, file, SITES, tmp_path / "s", store_dtype=dtype, **SMALL)
    kept = extract(model, file, SITES, tmp_path / "k", store_dtype=dtype, allow_nonfinite=True, **SMALL)
    plainly = extract(
        model, file, SITES, tmp_path / "f", store_dtype="float32", allow_nonfinite=True, **SMALL
    ).rows(RESID, 0, len(kept))  # fmt: skip
    bad = ~plainly.isfinite().all(1)
    rows = kept.rows(RESID, 0, len(kept))
    assert 0 < bad.sum() < len(bad)
    assert rows[bad].isnan().all() and rows[~bad].isfinite().all()
    assert torch.equal(plainly[~bad], exact.rows(RESID, 0, len(exact))[~bad])
    assert all(np.isfinite(value) for found in kept.error.values() for value in found.values())
    z = kept.rows("z.0", 0, len(kept))[bad]
    assert z[:, 0].isnan().all() and z[:, 1].isfinite().all()  # the other head has a scale of its own


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_has_the_rows_of_a_store(file, tmp_path, dtype):
    made = extract(ToyModel(), file, SITES, tmp_path / "s", store_dtype=dtype, **SMALL)
    whole = made.gather(SITES, np.arange(len(made)))
    place = {(int(d), int(p)): i for i, (d, p) in enumerate(zip(whole.doc, whole.position, strict=True))}
    stream = ActivationStream(ToyModel(), file, SITES, dtype=dtype, max_length=16, token_budget=64, buffer_bytes=8000)
    assert stream.material.generations > 1 and stream.dtype is torch.float32
    seen = 0
    for batch in stream.batches(SITES, 24, seed=0):
        rows = [place[int(d), int(p)] for d, p in zip(batch.doc, batch.position, strict=True)]
        seen += len(rows)
        for site, x in batch.acts.items():
            assert x.dtype is torch.float32 and torch.equal(x, whole.acts[site][rows])
    assert seen == len(made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_sae_is_trained_on_what_is_read(tmp_path, dtype):
    """The same SAE, bit for bit, as from a float32 store of the dequantised rows; its provenance names the dtype."""
    from saes.sae import SAE
    from saes.train import TrainConfig, fit

    tokens, sites = token_file(tmp_path / "t", [40] * 12), ["resid_post.1"]
    model = ToyModel(width=8)
    made = extract(model, tokens, sites, tmp_path / "s", store_dtype=dtype, max_length=40, progress=False)
    keys, rows = made.keys(0, len(made)), made.rows(RESID, 0, len(made))
    plainly = planted.store(tmp_path / "f", tokens, rows, keys.doc, keys.position, shards=3)
    config = TrainConfig(d_sae=16, k=2, epochs=2, batch_size=64, seed=1)
    one = fit(made, config, tmp_path / "one", site=RESID)
    other = fit(plainly, config, tmp_path / "other", site=RESID)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert SAE.load(tmp_path / "one").config.metadata["midlens_store"]["dtype"] == dtype


def test_what_a_part_says_of_its_rows(store):
    dtype = store.manifest["dtype"]
    assert store.specs[0].dtype == dtype
    assert ActivationStore.open(store.path, expect=store.specs[0]).specs == store.specs
    with pytest.raises(InputError, match=rf"dtype: '{dtype}' there, 'bfloat16' asked for"):
        ActivationStore.open(store.path, expect=replace(store.specs[0], dtype="bfloat16"))
